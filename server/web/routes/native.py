"""POST /transcribe and /translate: a file in, its text out."""

import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Literal, Self

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.decoding import DecodingOptions
from model.task import Task
from server.audio.containers import SUPPORTED
from server.engine.registry import Served
from server.errors import RequestError, invalid_field
from server.longform.transcribe import OnProgress
from server.longform.transcription import Transcription, language_source
from server.settings import Settings
from server.text import formats
from server.text.languages import Language, language_pair
from server.text.subtitles import SubtitleRules
from server.web.answers import answer
from server.web.requests import EnginesDep, SettingsDep, Upload, UploadDep, transcribe_upload, unless_disconnected
from server.web.schemas import TranscriptBody, error_responses
from server.web.streaming import event_stream, progress_of

router = APIRouter(tags=["native"])

_ACCEPTED: dict[str, formats.Format] = {
    "application/json": "json",
    "text/plain": "text",
    "application/x-subrip": "srt",
    "text/vtt": "vtt",
}
EVENTS = "text/event-stream"


class Fields(BaseModel):
    """The fields of a request, in the query or in the form next to `file`. An empty field counts as not given."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="One of `/v1/models`; by default the first.")
    language: Language = Field(
        None,
        description="The spoken language: `de`, `de-DE` or `german`; `auto` detects it.",
        examples=["de"],
    )
    target_language: Language = Field(
        None,
        description="Translate into this language; from or to English. The spoken language means no translation.",
        examples=["en"],
    )
    timestamps: Literal["none", "segment", "word"] | None = Field(
        None, description="By default `none`; for srt and vtt `segment`."
    )
    pnc: bool = Field(True, description="Punctuation and capitals.")
    prompt: str | None = Field(
        None, max_length=2000, description="Context such as names, for models whose prompt takes one."
    )
    format: formats.Format | None = Field(
        None, description="By default what the `Accept` header asks for, or else json.", examples=["json"]
    )
    line_length: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="For srt and vtt: characters per line, at most. By default the server's setting.",
    )
    lines: int | None = Field(
        None, ge=1, le=10, description="For srt and vtt: lines per cue, at most. By default the server's setting."
    )
    stream: bool = Field(False, description="Send segments as server-sent events as soon as they are ready.")
    detect_each: bool = Field(
        False,
        description="With the language `auto`: detect it anew every few seconds; each segment then has a language.",
    )
    one_pass: bool = Field(
        False, description="For Parakeets: transcribe long audio in one pass with local attention, not in pieces."
    )
    head: Literal["tdt", "rnnt", "ctc"] | None = Field(
        None, description="For Parakeets with two heads: the one to write with. By default the transducer."
    )

    @classmethod
    def read(cls, request: Request, upload: Upload) -> Self:
        """Raises RequestError, which names the field and what is supported."""
        given: dict[str, str] = {}
        for name, value in [*request.query_params.multi_items(), *upload.fields]:
            if name not in cls.model_fields:
                raise RequestError(f"unknown field {name[:40]!r}; supported: file, {', '.join(cls.model_fields)}", name)
            if value and given.setdefault(name, value) != value:
                raise RequestError(f"{name} is given twice: {given[name][:40]!r} and {value[:40]!r}", name)
        try:
            fields = cls.model_validate(given)
        except ValidationError as error:
            raise invalid_field(error) from None
        asked = accepted(request.headers.get("accept", ""))
        stream = fields.stream or ("stream" not in given and asked == EVENTS)
        format = fields.format or _ACCEPTED.get(asked or "", "json")
        return fields.model_copy(update={"format": format, "stream": stream})


def accepted(header: str) -> str | None:
    """The supported media type that an Accept header ranks highest; None for any."""
    wishes = []
    for wish in header.split(","):
        media_type, *parameters = (part.strip().lower() for part in wish.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        if media_type in _ACCEPTED or media_type in (EVENTS, "*/*"):
            wishes.append((media_type, float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0))
    best = max(wishes, key=lambda wish: wish[1], default=("*/*", 1.0))
    return best[0] if best[0] != "*/*" and best[1] > 0 else None


def _openapi() -> dict[str, Any]:
    """The fields for /docs. FastAPI cannot see them, since the body may be a form or the file itself."""
    fields = Fields.model_json_schema()["properties"]
    file = {"type": "string", "format": "binary", "description": SUPPORTED}
    form = {"type": "object", "required": ["file"], "properties": {"file": file, **fields}}
    content = {"multipart/form-data": {"schema": form}, "application/octet-stream": {"schema": file}}
    parameters = [
        {"name": name, "in": "query", "schema": schema, "description": schema["description"]}
        for name, schema in fields.items()
    ]
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


_TEXTS = {
    "text/plain": {"schema": {"type": "string"}, "example": "My sister sees five dogs.\n"},
    "application/x-subrip": {
        "schema": {"type": "string"},
        "example": "1\n00:00:00,300 --> 00:00:03,900\nMy sister sees five dogs.\n",
    },
    "text/vtt": {
        "schema": {"type": "string"},
        "example": "WEBVTT\n\n00:00:00.300 --> 00:00:03.900\nMy sister sees five dogs.\n",
    },
    EVENTS: {
        "schema": {"type": "string"},
        "example": 'event: segment\ndata: {"start": 0.3, "end": 3.9, "text": "My sister sees five dogs."}\n\n'
        'event: done\ndata: {"text": "My sister sees five dogs."}\n\n',
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": TranscriptBody, "description": "The text, in the format asked for.", "content": _TEXTS},
    **error_responses(400, 401, 403, 404, 408, 413, 500, 503),
}


@router.post("/transcribe", openapi_extra=_openapi(), responses=_RESPONSES)
async def transcribe(request: Request, upload: UploadDep, engines: EnginesDep, settings: SettingsDep) -> Response:
    """The text of an audio file, in the spoken language or translated into `target_language`.

    With `stream=true` each segment is sent as an event `segment` as soon as it is ready. The last event, `done`, has
    the same content as `format=json`; an event `error` has the usual error body.
    """
    fields = Fields.read(request, upload)
    return await _respond(request, settings, upload, fields, engines.named(fields.model), fields.target_language)


@router.post("/translate", openapi_extra=_openapi(), responses=_RESPONSES)
async def translate(request: Request, upload: UploadDep, engines: EnginesDep, settings: SettingsDep) -> Response:
    """The text of an audio file in English, or in another `target_language`; speech in that language is transcribed."""
    fields = Fields.read(request, upload)
    target = fields.target_language or "en"
    return await _respond(request, settings, upload, fields, engines.named(fields.model), target)


async def _respond(
    request: Request,
    settings: Settings,
    upload: Upload,
    fields: Fields,
    model: Served,
    target: str | None,
) -> Response:
    # Without times there would be a single cue over the whole length.
    timestamps = fields.timestamps or ("segment" if fields.format in ("srt", "vtt") else "none")
    languages = language_pair(fields.language, target, settings.default_language)
    task = Task(*languages, pnc=fields.pnc, timestamps=timestamps, context=fields.prompt or "")
    if fields.stream:
        return await event_stream(request, _events(request, upload, fields, task, model), _error_event)
    done = await unless_disconnected(request, _transcribed(request, upload, fields, task, model))
    if fields.format == "json":
        return JSONResponse(_body(done, fields, task, model))
    assert fields.format
    rules = SubtitleRules.from_settings(settings, fields.line_length, fields.lines)
    text = formats.render(done, fields.format, rules)
    return Response(text, media_type=formats.MEDIA_TYPES[fields.format])


def _transcribed(
    request: Request, upload: Upload, fields: Fields, task: Task, model: Served, tell: OnProgress | None = None
) -> Coroutine[Any, Any, Transcription]:
    options = DecodingOptions(head=fields.head, one_pass=fields.one_pass)
    return transcribe_upload(
        request, upload.file, task, model.id, tell, detect_each=fields.detect_each, options=options
    )


def _body(done: Transcription, fields: Fields, task: Task, model: Served) -> dict[str, Any]:
    source = language_source(task, bool(fields.language), done)
    return {**done.to_dict(source), "model": model.id, "timing": done.timing.to_dict(done.duration)}


async def _events(request: Request, upload: Upload, fields: Fields, task: Task, model: Served) -> AsyncIterator[str]:
    async for ready in progress_of(lambda tell: _transcribed(request, upload, fields, task, model, tell)):
        if isinstance(ready, Transcription):
            yield _event("done", _body(ready, fields, task, model))
        else:
            for segment in ready:
                yield _event("segment", formats.segment_dict(segment))


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _error_event(error: Exception) -> str:
    return _event("error", json.loads(bytes(answer(error).body)))
