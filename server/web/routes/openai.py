"""OpenAI's audio API: POST /v1/audio/transcriptions and /v1/audio/translations, GET /v1/models.

Thin adapters over the same code as the native routes. They read requests leniently, since OpenAI's SDKs and their users
write them in many ways.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Literal, Self

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.task import Task
from server.audio.containers import SUPPORTED
from server.engine.registry import Engines, Served
from server.errors import RequestError, invalid_field
from server.longform.transcription import Transcription
from server.settings import Settings
from server.text import formats
from server.text.languages import Language, language_pair
from server.text.subtitles import SubtitleRules
from server.text.verbose_json import to_openai_json, to_verbose_json
from server.web.answers import answer
from server.web.requests import EnginesDep, SettingsDep, Upload, UploadDep, transcribe_upload, unless_disconnected
from server.web.schemas import ModelBody, Models, OpenAITranscription, OpenAIVerboseTranscription, error_responses
from server.web.streaming import event_stream, progress_of

router = APIRouter(prefix="/v1", tags=["openai"])

_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
# Like Whisper, keep the end of a longer prompt; it must leave room for the text.
PROMPT_CHARS_KEPT = 1000


class OpenAIFields(BaseModel):
    """The fields that have an effect. Others are ignored, and an empty one counts as not given."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(
        None,
        description="One of `/v1/models`; `whisper-1`, `gpt-4o-transcribe` and the like mean the default.",
        examples=["whisper-1"],
    )
    language: Language = Field(
        None, description="The spoken language: `de`, `de-DE` or `german`. By default detected.", examples=["de"]
    )
    prompt: str | None = Field(None, description="Context such as names; ignored by models whose prompt takes none.")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: str | None = Field(None, description="Ignored: decoding is deterministic.")

    @field_validator("response_format", mode="before")
    @classmethod
    def _is_format(cls, value: str) -> str:
        if value not in _FORMATS:
            raise RequestError(
                f"response_format: {value[:40]!r} is not supported; must be one of {', '.join(_FORMATS)}",
                "response_format",
            )
        return value

    @classmethod
    def read(cls, request: Request, upload: Upload) -> Self:
        """Raises RequestError, which names the field and what is supported."""
        given: dict[str, Any] = {}
        for name, value in [*request.query_params.multi_items(), *upload.fields]:
            name = name.removesuffix("[]")
            if value and name == "timestamp_granularities":
                given.setdefault(name, []).append(value)
            elif value:
                given[name] = value
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise invalid_field(error) from None


class TranscriptionFields(OpenAIFields):
    stream: bool = Field(False, description="Send the text as server-sent events as soon as it is ready.")
    timestamp_granularities: list[Literal["segment", "word"]] = Field(
        default_factory=list, description="For `verbose_json`: `word` adds the times of words."
    )


class TranslationFields(OpenAIFields):
    target_language: Language = Field(None, description="By default `en`.", examples=["de"])
    to_language: Language = Field(None, description="Alias of `target_language`.")


def _form(fields: type[OpenAIFields]) -> dict[str, Any]:
    """The form for /docs."""
    properties = dict(fields.model_json_schema()["properties"])
    if granularities := properties.pop("timestamp_granularities", None):
        properties["timestamp_granularities[]"] = granularities
    file = {"type": "string", "format": "binary", "description": SUPPORTED}
    form = {"type": "object", "required": ["file"], "properties": {"file": file, **properties}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


_TEXTS = {media: {"schema": {"type": "string"}} for media in ("text/plain", "application/x-subrip", "text/vtt")}
_EVENTS = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": 'data: {"type": "transcript.text.delta", "delta": "My sister sees five dogs."}\n\n'
        'data: {"type": "transcript.text.done", "text": "My sister sees five dogs."}\n\n',
    }
}


def _responses(content: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    model = OpenAITranscription | OpenAIVerboseTranscription
    answered = {"model": model, "description": "The text in the `response_format` asked for.", "content": content}
    return {200: answered, **error_responses(400, 401, 403, 404, 408, 413, 500, 503)}


@router.post("/audio/transcriptions", openapi_extra=_form(TranscriptionFields), responses=_responses(_TEXTS | _EVENTS))
async def transcriptions(request: Request, upload: UploadDep, engines: EnginesDep, settings: SettingsDep) -> Response:
    """The text of an audio file in the spoken language."""
    fields = TranscriptionFields.read(request, upload)
    words = "word" in fields.timestamp_granularities
    model, task = engines.named(fields.model), _task(fields, settings.default_language, None, words)
    if fields.stream:
        return await event_stream(request, _events(request, upload, task, model), _error_event)
    done = await unless_disconnected(
        request, transcribe_upload(request, upload.file, task, model.id, shorten_context=True)
    )
    return _rendered(done, fields, settings, "transcribe", words)


@router.post("/audio/translations", openapi_extra=_form(TranslationFields), responses=_responses(_TEXTS))
async def translations(request: Request, upload: UploadDep, engines: EnginesDep, settings: SettingsDep) -> Response:
    """The text of an audio file in English, or in another `target_language`; speech in that language is transcribed."""
    fields = TranslationFields.read(request, upload)
    target = fields.target_language or fields.to_language or "en"
    task = _task(fields, settings.default_language, target, False)
    model = engines.named(fields.model)
    done = await unless_disconnected(
        request, transcribe_upload(request, upload.file, task, model.id, shorten_context=True)
    )
    return _rendered(done, fields, settings, "translate", False)


def _task(fields: OpenAIFields, default_language: str, target: str | None, words: bool) -> Task:
    timed = fields.response_format in ("srt", "vtt", "verbose_json")
    return Task(
        *language_pair(fields.language, target, default_language),
        timestamps=("word" if words else "segment") if timed else "none",
        context=(fields.prompt or "")[-PROMPT_CHARS_KEPT:],
    )


def _rendered(done: Transcription, fields: OpenAIFields, settings: Settings, task: str, words: bool) -> Response:
    match fields.response_format:
        case "json":
            return JSONResponse({**to_openai_json(done), **formats.warnings_dict(done.warnings)})
        case "verbose_json":
            return JSONResponse({**to_verbose_json(done, task, words), **formats.warnings_dict(done.warnings)})
        case other:
            text = formats.render(done, other, SubtitleRules.from_settings(settings))
            return Response(text, media_type=formats.MEDIA_TYPES[other])


async def _events(request: Request, upload: Upload, task: Task, model: Served) -> AsyncIterator[str]:
    """Events of the text's parts, then one of the whole text, which equals the joined parts."""
    sent = ""
    work = progress_of(lambda tell: transcribe_upload(request, upload.file, task, model.id, tell, shorten_context=True))
    async for ready in work:
        if isinstance(ready, Transcription):
            text = ready.text
            if text.startswith(sent) and (rest := text[len(sent) :]):
                yield _event({"type": "transcript.text.delta", "delta": rest})
                sent = text
            done = {"type": "transcript.text.done", "text": sent, **formats.warnings_dict(ready.warnings)}
            yield _event(done)
        elif delta := " ".join(segment.text for segment in ready if segment.text):
            delta = f" {delta}" if sent else delta
            sent += delta
            yield _event({"type": "transcript.text.delta", "delta": delta})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _error_event(error: Exception) -> str:
    return _event(json.loads(bytes(answer(error).body)))


@router.get("/models", response_model=Models, responses=error_responses(401, 403))
async def models(engines: EnginesDep) -> dict[str, Any]:
    """The models that requests can name."""
    return {"object": "list", "data": [_model(engines, model) for model in engines.models]}


@router.get("/models/{id:path}", response_model=ModelBody, responses=error_responses(401, 403, 404))
async def model(id: str, engines: EnginesDep) -> dict[str, Any]:
    """One model, by any of its names."""
    return _model(engines, engines.named(id))


def _model(engines: Engines, model: Served) -> dict[str, Any]:
    owner = "nvidia" if any(name.startswith("nvidia/") for name in model.names) else "canary-server"
    return {"id": model.id, "object": "model", "created": engines.started_at, "owned_by": owner}
