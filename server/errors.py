"""Errors that callers see. `server/web/answers.py` turns them into HTTP answers.

    ServiceError                 500  server_error            not the caller's fault
    ├── RequestError             400  invalid_request         the caller can fix it
    │   ├── AudioError           400  invalid_audio
    │   │   └── AudioTooLong     400  audio_too_long
    │   ├── Unauthorized         401  invalid_api_key
    │   ├── Forbidden            403  forbidden               a host or origin that is not allowed
    │   ├── ModelNotFound        404  model_not_found
    │   ├── BodyTooSlow          408  body_too_slow
    │   ├── BodyTooLarge         413  body_too_large
    │   └── ClientGone           499  client_gone             the client disconnected; only in the log
    ├── TranscriptionFailed      500  transcription_failed    the model failed; the log says why
    └── Unavailable              503  unavailable             try again later
        ├── ModelLoading         503  model_loading
        ├── ModelFailed          503  model_failed            it is being loaded again
        │   └── ModelGivenUp     503  model_failed            retrying soon does not help
        ├── TooManySessions      503  too_many_sessions       of live sessions; their websocket is closed with 1013
        ├── Busy                 503  unavailable             the answer says when to try again
        │   ├── QueueFull        503  queue_full
        │   ├── TooManyRequests  503  too_many_requests       or too many connections
        │   └── WaitedTooLong    503  waited_too_long         not started within `max_wait_s`
        ├── StorageFull          503  storage_full            no disk space for the upload
        └── EngineStopped        503  stopping

model.task.TaskError (a language, pair or feature that the model does not support) is also 400:
unsupported_language, unsupported_language_pair or unsupported_task.

Every answer has the shape that OpenAI's clients expect: {"error": {"message", "type", "param", "code", "request_id"}}.
Messages tell callers what to do; internal details go to the log.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from model.task import LanguagePairError, TaskError

# When to try again, in seconds, where nothing tells how long it will take.
RETRY_AFTER_S = 5


class ServiceError(Exception):
    """The root. `param` names the field at fault, if there is one."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "server_error"
    headers: ClassVar[dict[str, str]] = {"x-should-retry": "false"}

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class RequestError(ServiceError):
    status = 400
    code = "invalid_request"
    headers: ClassVar = {}


class AudioError(RequestError):
    code = "invalid_audio"

    def __init__(self, message: str, param: str | None = "file"):
        super().__init__(message, param)


class AudioTooLong(AudioError):
    code = "audio_too_long"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"
    headers: ClassVar = {"www-authenticate": "Bearer"}


class Forbidden(RequestError):
    status = 403
    code = "forbidden"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class BodyTooSlow(RequestError):
    status = 408
    code = "body_too_slow"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"


class ClientGone(RequestError):
    status = 499
    code = "client_gone"


class TranscriptionFailed(ServiceError):
    code = "transcription_failed"


class Unavailable(ServiceError):
    status = 503
    code = "unavailable"
    headers: ClassVar = {"retry-after": str(RETRY_AFTER_S)}


class ModelLoading(Unavailable):
    code = "model_loading"


class ModelFailed(Unavailable):
    code = "model_failed"


class ModelGivenUp(ModelFailed):
    headers: ClassVar = {"x-should-retry": "false", "retry-after": "30"}


class TooManySessions(Unavailable):
    code = "too_many_sessions"


class Busy(Unavailable):
    """retry_after_s: when what waits now should be done."""

    def __init__(self, message: str, retry_after_s: int = RETRY_AFTER_S):
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:  # type: ignore[override]
        return {"retry-after": str(self.retry_after_s)}


class QueueFull(Busy):
    code = "queue_full"


class TooManyRequests(Busy):
    code = "too_many_requests"


class WaitedTooLong(Busy):
    code = "waited_too_long"

    def __init__(self, retry_after_s: int = RETRY_AFTER_S):
        super().__init__(
            "The server is too busy: the request waited too long to start. Try again later.", retry_after_s
        )


class StorageFull(Unavailable):
    code = "storage_full"


class EngineStopped(Unavailable):
    code = "stopping"


def task_code(error: TaskError) -> str:
    """The code of an error that is not one of those above."""
    if isinstance(error, LanguagePairError):
        return "unsupported_language_pair"
    return "unsupported_language" if error.param in ("language", "target_language") else "unsupported_task"


class InvalidFields(Protocol):
    """pydantic's ValidationError, and FastAPI's RequestValidationError."""

    def errors(self) -> Sequence[Any]: ...


def invalid_field(error: InvalidFields) -> RequestError:
    """The first invalid field in one line: its name, its value, and what is valid."""
    first = error.errors()[0]
    # FastAPI puts the place ("query", "body") before the field's name, and a list's items have a number after it.
    names = [part for part in first["loc"] if isinstance(part, str)]
    field = names[-1][:80] if names else None
    if first["type"] == "missing":
        return RequestError(f"{field} is required", field)
    value, message = first.get("input"), _rule(first)
    if first["type"] not in ("value_error", "extra_forbidden") and isinstance(value, str | int | float | bool):
        message = f"{str(value)[:80]!r} is not valid; {message}"
    return RequestError(f"{field}: {message}" if field else message, field)


def _rule(error: Any) -> str:
    """What a value must be, from one of pydantic's errors."""
    match error["type"]:
        case "literal_error":
            return "must be one of " + error["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        case "bool_parsing":
            return "must be true or false"
        case "value_error":
            return str(error["ctx"]["error"])
        case "extra_forbidden":
            return "unknown field"
    message = error["msg"].partition(", unable to")[0]
    return "must" + message.removeprefix("Input should") if message.startswith("Input should") else message
