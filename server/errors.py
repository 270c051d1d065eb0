"""What can go wrong for a caller. `server/web/answers.py` turns it into an HTTP answer.

    ServiceError                 500  server_error            nothing the caller sent is to blame
    ├── RequestError             400  invalid_request         the caller can put it right
    │   ├── AudioError           400  invalid_audio
    │   │   └── AudioTooLong     400  audio_too_long
    │   ├── Unauthorized         401  invalid_api_key
    │   ├── Forbidden            403  forbidden               a foreign host or origin
    │   ├── ModelNotFound        404  model_not_found
    │   ├── BodyTooSlow          408  body_too_slow
    │   ├── BodyTooLarge         413  body_too_large
    │   └── ClientGone           499  client_gone             nobody is left to answer; for the log
    ├── TranscriptionFailed      500  transcription_failed    the model failed; the log says why
    └── Unavailable              503  unavailable             later may do
        ├── ModelLoading         503  model_loading
        ├── ModelFailed          503  model_failed            trying again at once is of no use
        ├── TooManyRequests      503  too_many_requests
        ├── QueueFull            503  queue_full
        ├── StorageFull          503  storage_full            nowhere to keep the upload while it is read
        └── EngineStopped        503  stopping

model.task.TaskError (a language, pair or feature that the model lacks) is 400 as well:
unsupported_language, unsupported_language_pair or unsupported_task.

Every answer has the shape OpenAI's clients read: {"error": {"message", "type", "param", "code", "request_id"}}.
Messages say what the caller can use; what happened inside goes to the log.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol


class ServiceError(Exception):
    """The root. `param` names the field at fault, when there is one."""

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
    headers: ClassVar = {"retry-after": "5"}


class ModelLoading(Unavailable):
    code = "model_loading"


class ModelFailed(Unavailable):
    code = "model_failed"
    headers: ClassVar = {"x-should-retry": "false", "retry-after": "30"}


class TooManyRequests(Unavailable):
    code = "too_many_requests"


class QueueFull(Unavailable):
    code = "queue_full"


class StorageFull(Unavailable):
    code = "storage_full"


class EngineStopped(Unavailable):
    code = "stopping"


class InvalidFields(Protocol):
    """pydantic's ValidationError, and FastAPI's RequestValidationError."""

    def errors(self) -> Sequence[Any]: ...


def invalid_field(error: InvalidFields) -> RequestError:
    """The first failure of a validation as one line: the field, the value, what is possible."""
    first = error.errors()[0]
    # FastAPI puts the place ("query", "body") before the field's name; pydantic alone does not.
    field = str(first["loc"][-1])[:80] if first["loc"] else None
    if first["type"] == "missing":
        return RequestError(f"{field} is required", field)
    value, message = first.get("input"), first["msg"]
    if isinstance(value, str | int | float | bool):
        message = f"{field}: {str(value)[:80]!r} is not possible: {message[0].lower()}{message[1:]}"
    else:
        message = f"{field}: {message}" if field else message
    return RequestError(message, field)
