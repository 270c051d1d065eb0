"""/docs: the API's interactive documentation. All its scripts and styles are served from this machine."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

DESCRIPTION = """\
Speech to text and translation on your own machine: NVIDIA Canary on MLX.

`/transcribe` and `/translate` are this server's own API; `/v1/audio/…` and `/v1/models` follow OpenAI's.
All errors have the shape of OpenAI's. If the server has API keys, send one as `Authorization: Bearer KEY`.

    curl -F file=@talk.wav 'http://127.0.0.1:8000/transcribe?format=text'
"""


def install_docs(app: FastAPI) -> None:
    app.description = DESCRIPTION
    app.openapi_tags = [
        {"name": "native", "description": "Send a file, get its text."},
        {"name": "openai", "description": "For clients of OpenAI's audio API."},
        {"name": "operations", "description": "Health, readiness and metrics."},
    ]
    assets = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/docs-assets", StaticFiles(directory=assets), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="canary-server",
            swagger_js_url="/docs-assets/swagger-ui-bundle.js",
            swagger_css_url="/docs-assets/swagger-ui.css",
            swagger_favicon_url="/docs-assets/favicon.png",
        )
