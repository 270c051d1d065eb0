"""GET /, the page in the browser; its files under /static; and GET /capabilities, the choices that the page offers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

from model.family import ModelConfig
from model.task import Task, TaskError
from server.text.languages import LANGUAGE_NAMES
from server.web.requests import EnginesDep, SettingsDep

STATIC = Path(__file__).parents[1] / "static"

# Everything the page loads or connects to is on this server, and no other site may frame it.
CONTENT_SECURITY_POLICY = "; ".join([
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    # to find out how long an opened recording is
    "media-src blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
])  # fmt: skip

HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Cached but revalidated each time, so that the page always matches the server.
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """Scripts, styles and images, with the same headers as the page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


# app.py mounts it at /static
files = PageFiles(directory=STATIC)


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers=HEADERS)


@router.get("/capabilities")
async def capabilities(engines: EnginesDep, settings: SettingsDep) -> dict[str, Any]:
    """The default model's languages with English names and the languages each can be translated to, the largest upload,
    and the limits of a subtitle.

    Raises ModelLoading, ModelFailed.
    """
    async with engines.use() as engine:
        assert engine.info
        config = engine.info.config
    return {
        "model": engines.default.id,
        "languages": [
            {"code": code, "name": LANGUAGE_NAMES.get(code, code).capitalize(), "targets": targets(code, config)}
            for code in config.languages
        ],
        "default_language": settings.default_language,
        "max_upload_mb": settings.max_upload_mb,
        "subtitles": {
            "max_characters": settings.subtitle_line_length * settings.subtitle_lines,
            "max_s": settings.subtitle_max_s,
        },
    }


def targets(language: str, config: ModelConfig) -> list[str]:
    """The languages that `language` can be translated to."""
    task = Task(language)
    others = [code for code in config.languages if code != language]
    return [code for code in others if _is_possible(replace(task, target_language=code), config)]


def _is_possible(task: Task, config: ModelConfig) -> bool:
    try:
        config.check(task)
    except TaskError:
        return False
    return True
