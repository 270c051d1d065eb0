"""What can go wrong for a caller, and the one place that turns it into an answer.

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

model.prompt.TaskError (a language, pair or feature that the model does not have) is 400 as well: unsupported_language,
unsupported_language_pair or unsupported_task.

Every answer has the shape OpenAI's clients read: {"error": {"message", "type", "param", "code", "request_id"}}.
Messages say what the caller can use; what happened inside goes to the log.
"""

import errno
import logging
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from model.prompt import LanguagePairError, TaskError

from .logs import request_id

log = logging.getLogger(__name__)


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


def error_response(
    status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse(error_body(status, message, code, param), status, headers)


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    told = {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id.get() or None}
    return {"error": told}


def invalid_field(error: ValidationError | RequestValidationError) -> RequestError:
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


def answer(error: Exception) -> JSONResponse:
    """The response for an error of the tree above, or of a library under us that means the same."""
    if isinstance(error, TaskError):
        return error_response(400, f"{error}.", _task_code(error), error.param)
    if isinstance(error, RequestValidationError | ValidationError):
        error = invalid_field(error)
    if _is_storage_full(error):
        log.error("there is no room for an upload, see TMPDIR: %s", error)
        error = StorageFull("There is no room for the upload now; try again in a moment.")
    if isinstance(error, ServiceError):
        return error_response(error.status, str(error), error.code, error.param, error.headers)
    if not isinstance(error, HTTPException):
        log.error("unexpected", exc_info=error)
        message = "Something went wrong on the server; its log says more."
        return error_response(500, message, "internal_error", headers=ServiceError.headers)
    headers, phrase = dict(error.headers or {}), HTTPStatus(error.status_code).phrase
    message = str(error.detail)
    if error.status_code == 404 and message == phrase:
        message = "There is nothing at this path; /docs lists what there is."
    if error.status_code == 405:
        allow = next((value for name, value in headers.items() if name.lower() == "allow"), "another method")
        message = f"This path takes {allow}."
    return error_response(error.status_code, message, phrase.lower().replace(" ", "_"), headers=headers)


def _task_code(error: TaskError) -> str:
    if isinstance(error, LanguagePairError):
        return "unsupported_language_pair"
    return "unsupported_language" if error.param in ("language", "target_language") else "unsupported_task"


def _is_storage_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every expected error in one shape. The unexpected ones are caught in `middleware.Requests`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return answer(error)

    async def handle_system(request: Request, error: Exception) -> JSONResponse:
        if not _is_storage_full(error):
            raise error
        return answer(error)

    app.add_exception_handler(OSError, handle_system)
    for kind in (ServiceError, TaskError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
