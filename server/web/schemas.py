"""The shapes of answers, for the OpenAPI document; `formats` and `verbose_json` produce them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ErrorDetails(BaseModel):
    message: str = Field(description="What is wrong, and what is supported.")
    type: str = Field(description="`invalid_request_error` below status 500, `server_error` from there on.")
    param: str | None = Field(description="The field at fault.")
    code: str = Field(description="For programs: `invalid_audio`, `unsupported_language`, `queue_full` …")
    request_id: str | None = Field(description="The same as in the header `x-request-id` and in the server's log.")


class Error(BaseModel):
    error: ErrorDetails


class WordBody(BaseModel):
    model_config = ConfigDict(extra="allow")
    word: str
    start: float = Field(description="Seconds from the start of the audio.")
    end: float


class SegmentBody(BaseModel):
    model_config = ConfigDict(extra="allow")
    start: float = Field(description="Seconds from the start of the audio.")
    end: float
    text: str
    tokens: list[int] = Field(description="The token ids that the model generated.")
    words: list[WordBody] = Field(description="Empty unless `timestamps=word`.")


class TimingBody(BaseModel):
    """Seconds, added up over the pieces of a long audio. `total_s` is elapsed time."""

    queue_s: float = Field(description="Waiting for the model.")
    audio_decode_s: float = Field(description="Decoding and resampling the file.")
    features_s: float
    encode_s: float
    decode_s: float = Field(description="Generating the text, token by token.")
    total_s: float
    audio_s: float = Field(description="The audio's length.")
    real_time_factor: float = Field(description="`total_s` per second of audio.")


class WarningBody(BaseModel):
    model_config = ConfigDict(extra="allow")
    code: str = Field(description="`language_mismatch` or `truncated`.")
    message: str


class TranscriptBody(BaseModel):
    """The body of `format=json`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "text": "My sister sees five dogs.",
                "language": "en",
                "language_source": "detected",
                "target_language": "en",
                "duration": 4.2,
                "segments": [
                    {"start": 0.3, "end": 3.9, "text": "My sister sees five dogs.", "tokens": [412, 77], "words": []}
                ],
                "model": "canary-1b-v2",
                "timing": {
                    "queue_s": 0.0,
                    "audio_decode_s": 0.01,
                    "features_s": 0.02,
                    "encode_s": 0.11,
                    "decode_s": 0.2,
                    "total_s": 0.35,
                    "audio_s": 4.2,
                    "real_time_factor": 0.083,
                },
            }
        },
    )
    text: str
    language: str = Field(description="The spoken language, ISO 639-1.")
    language_source: Literal["request", "default", "detected", "text", "model"] = Field(
        description="Where the language comes from: `request`; `default`, the server's or only assumed; `detected` in "
        "the sound; `text`, guessed from the text; `model`, which has only one."
    )
    target_language: str = Field(description="The language of the text.")
    duration: float = Field(description="Seconds.")
    segments: list[SegmentBody]
    truncated: bool | None = Field(None, description="True if the file is cut off; otherwise absent.")
    warnings: list[WarningBody] | None = Field(None, description="Absent if there are none.")
    model: str
    timing: TimingBody


class Usage(BaseModel):
    type: Literal["duration"]
    seconds: int = Field(description="The audio's length, rounded up.")


class LanguageCode(BaseModel):
    code: str


class OpenAITranscription(BaseModel):
    """`response_format=json`."""

    text: str
    languages: list[LanguageCode] | None = None
    usage: Usage
    warnings: list[WarningBody] | None = Field(None, description="Absent if there are none. An extension.")


class VerboseSegment(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: int
    seek: int = Field(description="Its start in hundredths of a second.")
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float = Field(description="Always 0: decoding is deterministic.")
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class OpenAIVerboseTranscription(BaseModel):
    """`response_format=verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="The language's English name, in lower case.", examples=["german"])
    languages: list[LanguageCode]
    duration: float
    text: str
    segments: list[VerboseSegment]
    words: list[WordBody] | None = None
    timestamps_source: str | None = Field(
        default=None,
        description="Where the times come from: `model`, `aligner` or `cross_attention`. An extension.",
    )
    usage: Usage
    warnings: list[WarningBody] | None = Field(None, description="Absent if there are none. An extension.")


class ModelBody(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since 1970.")
    owned_by: str


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


class Health(BaseModel):
    """About the default model; null until it is loaded."""

    status: Literal["ok"]
    version: str
    model: str
    dtype: str | None
    device: str | None
    languages: list[str] | None
    running: int = Field(description="Passes in the running batch.")
    waiting: int = Field(description="Passes in the queue.")


class ModelState(BaseModel):
    id: str
    state: Literal["idle", "loading", "ready", "stopping", "failed"] = Field(
        description="`idle` models are loaded on first use."
    )


class Ready(BaseModel):
    status: Literal["ready"]
    models: list[ModelState]


class NotReady(BaseModel):
    status: Literal["idle", "loading", "stopping", "failed"]
    stage: Literal["downloading", "converting", "loading"]
    progress: float | None = Field(description="Progress of the stage, from 0 to 1; null if unknown.")
    reason: str | None = Field(description="Why the model failed; null if it is loaded for the first time.")
    models: list[ModelState]
    error: ErrorDetails


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`."""
    descriptions = {
        400: "The request is invalid or not supported; the message says what is supported.",
        401: "An API key is required.",
        403: "The host or origin is not allowed.",
        404: "No such model.",
        408: "The body stalled.",
        413: "The body is too large.",
        500: "The model failed on this audio.",
        503: "The queue is full or the model is loading; try again after `retry-after` seconds.",
    }
    return {status: {"model": Error, "description": descriptions[status]} for status in statuses}
