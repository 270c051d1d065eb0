"""Errors as HTTP answers. Only this module knows their shape."""

import errno
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Mount

from model.task import TaskError
from server.errors import ClientGone, ServiceError, StorageFull, invalid_field, task_code
from server.logs import request_id

log = logging.getLogger(__name__)


def error_response(
    status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse(error_body(status, message, code, param), status, headers)


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    request = request_id.get() or None
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "request_id": request}}


def answer(error: Exception) -> JSONResponse:
    """The response for an error from `server.errors`, or for a library's error with the same meaning."""
    if isinstance(error, TaskError):
        return error_response(400, f"{error}.", task_code(error), error.param)
    if isinstance(error, RequestValidationError | ValidationError):
        error = invalid_field(error)
    if isinstance(error, ClientDisconnect):
        error = ClientGone("The client disconnected during its upload.")
    if _is_storage_full(error):
        log.error("no disk space for an upload in the temporary folder (see TMPDIR): %s", error)
        error = StorageFull("No disk space for the upload; try again shortly.")
    if isinstance(error, ServiceError):
        return error_response(error.status, str(error), error.code, error.param, error.headers)
    if not isinstance(error, HTTPException):
        log.error("unexpected error", exc_info=error)
        message = "Internal server error; see the server's log."
        return error_response(500, message, "internal_error", headers=ServiceError.headers)
    headers, phrase = dict(error.headers or {}), HTTPStatus(error.status_code).phrase
    message = str(error.detail)
    if error.status_code == 404 and message == phrase:
        message = "Not found; /docs lists the available paths."
    if error.status_code == 405:
        allow = next((value for name, value in headers.items() if name.lower() == "allow"), "another method")
        message = f"Method not allowed; use {allow}."
    return error_response(error.status_code, message, phrase.lower().replace(" ", "_"), headers=headers)


def _is_storage_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _path_without_slash(request: Request) -> str | None:
    """The path without its trailing slash, if that is the path of a route."""
    path = request.scope["path"].rstrip("/")
    if path == request.scope["path"]:
        return None
    scope = {**request.scope, "path": path}
    routes = (route for route in request.app.routes if not isinstance(route, Mount))
    return path[:200] if any(route.matches(scope)[0] is not Match.NONE for route in routes) else None


def install_error_handlers(app: FastAPI) -> None:
    """Give every expected error the same shape. Unexpected ones are caught in `middleware.Requests`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException) and error.status_code == 404 and (path := _path_without_slash(request)):
            return error_response(404, f"Not found; the path is {path}, without a trailing slash.", "not_found")
        return answer(error)

    async def handle_system(request: Request, error: Exception) -> JSONResponse:
        if not _is_storage_full(error):
            raise error
        return answer(error)

    app.add_exception_handler(OSError, handle_system)
    for kind in (ServiceError, TaskError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, handle)
