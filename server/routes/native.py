"""POST /transcribe and /translate: one file in, its text out."""

from typing import Any, Literal, Self

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from model.prompt import Task

from .. import formats
from ..dependencies import EngineDep, SettingsDep, Upload, UploadDep
from ..errors import RequestError, invalid_field
from ..languages import language_code
from ..pipeline import transcribe_upload

router = APIRouter()


class Fields(BaseModel):
    """What may be asked for, in the query or in the form beside `file`. An empty field is one not given."""

    model_config = ConfigDict(extra="forbid")

    language: str | None = None
    target_language: str | None = None
    timestamps: Literal["none", "segment", "word"] | None = None
    pnc: bool = True
    format: formats.Format = "json"

    @field_validator("language", "target_language")
    @classmethod
    def _as_code(cls, value: str | None, info: Any) -> str | None:
        return value and language_code(value, info.field_name)

    @classmethod
    def read(cls, request: Request, upload: Upload) -> Self:
        """Raises RequestError naming the field and what is possible."""
        given: dict[str, str] = {}
        pairs = request.query_params.multi_items()
        pairs += [(name, value) for name, values in upload.fields.items() for value in values]
        for name, value in pairs:
            if name not in cls.model_fields:
                raise RequestError(f"{name[:40]!r} is not a field; possible: file, {', '.join(cls.model_fields)}", name)
            if value and given.setdefault(name, value) != value:
                raise RequestError(f"{name} is given twice: {given[name][:40]!r} and {value[:40]!r}", name)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise invalid_field(error) from None


def _openapi() -> dict[str, Any]:
    """The fields for /docs; FastAPI cannot see them, since a body may be a form or the file itself."""
    fields = Fields.model_json_schema()["properties"]
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "properties": {"file": file, **fields}}
    content = {"multipart/form-data": {"schema": form}, "application/octet-stream": {"schema": file}}
    parameters = [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


@router.post("/transcribe", openapi_extra=_openapi())
async def transcribe(request: Request, upload: UploadDep, settings: SettingsDep) -> Response:
    """The text of an audio file, in the language spoken unless `target_language` names another."""
    fields = Fields.read(request, upload)
    return await _respond(request, upload, fields, fields.language or settings.default_language, fields.target_language)


@router.post("/translate", openapi_extra=_openapi())
async def translate(request: Request, upload: UploadDep, engine: EngineDep, settings: SettingsDep) -> Response:
    """The text of an audio file in another language: English, unless `target_language` names another."""
    fields = Fields.read(request, upload)
    language = fields.language or settings.default_language
    target = fields.target_language or "en"
    if target == language:
        spoken = f"language is {language!r}" if fields.language else f"no language is given, so {language!r} is assumed"
        others = sorted(set(engine.info.config.languages if engine.info else ()) - {language})
        asked = "target_language is too" if fields.target_language else "target_language must be given"
        raise RequestError(f"{spoken}, and {asked}; possible: {', '.join(others)}", "target_language")
    return await _respond(request, upload, fields, language, target)


async def _respond(request: Request, upload: Upload, fields: Fields, language: str, target: str | None) -> Response:
    # Cues without times would be one cue of the whole length.
    timestamps = fields.timestamps or ("segment" if fields.format in ("srt", "vtt") else "none")
    task = Task(language, target, pnc=fields.pnc, timestamps=timestamps)
    transcript = await transcribe_upload(request, upload.file, task)
    if fields.format == "json":
        source = "request" if fields.language else "default"
        return JSONResponse(formats.to_dict(transcript, source))
    write = {"text": formats.to_text, "srt": formats.to_srt, "vtt": formats.to_vtt}[fields.format]
    return Response(write(transcript), media_type=formats.MEDIA_TYPES[fields.format])
