"""What every request passes through: an ID, a line in the log, and limits on concurrent requests."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RETRY_AFTER_S, EngineStopped, TooManyRequests
from server.logs import request_id
from server.web.answers import answer, error_response
from server.web.metrics import Metrics
from server.web.room import UPLOADS
from server.web.uploads import Uploads

log = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
# Answered however many requests there are.
PROBES = frozenset({"/health", "/ready", "/metrics"})
_STATIC_FILES = ("/static/", "/docs-assets/")
# The longest path in a log line, in characters.
_LOGGED_PATH = 200


class Requests:
    """Give each request an ID, in the header `x-request-id` and in the log; count it; refuse more than `at_once`, and
    more than `per_address` from one address. Probes are never refused.

    backlog_s: seconds until the recordings that are admitted now are done.
    An unexpected exception gives a 500 and is logged under that ID.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        uploads: Uploads,
        backlog_s: Callable[[], int],
        at_once: int,
        per_address: int | None = None,
    ):
        self.app = app
        self._metrics = metrics
        self._uploads = uploads
        self._backlog_s = backlog_s
        self._at_once = at_once
        self._per_address = per_address
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        name = uuid.uuid4().hex[:16]
        named = request_id.set(name)
        began = time.monotonic()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", name.encode())]}
            elif message["type"] == "websocket.accept":
                status = 101
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", name.encode())]}
            elif message["type"] == "websocket.close":
                # If the websocket was not accepted, uvicorn turns a close into a 403.
                status = status or 403
            await send(message)

        address = _address(scope)
        is_counted = scope["path"] not in PROBES
        refusal = self._refusal(address) if is_counted else None
        self._running[address] += is_counted
        try:
            if refusal:
                return await answer(refusal)(scope, receive, send_named)
            await self.app(scope, receive, send_named)
        except asyncio.CancelledError:
            # The server is stopping, and the time for running requests is over.
            if status or scope["type"] != "http":
                raise
            stopped = EngineStopped("The server stopped before it could answer; send the request again.")
            await answer(stopped)(scope, receive, send_named)
        except Exception:
            log.exception("request %s failed: %s", name, _path(scope))
            if status or scope["type"] != "http":
                raise
            message = f"Internal server error; see request {name} in the server's log."
            response = error_response(500, message, "internal_error", headers={"x-should-retry": "false"})
            await response(scope, receive, send_named)
        finally:
            self._running[address] -= is_counted
            if not self._running[address]:
                del self._running[address]
            # 499: the client left before there was an answer.
            self._record(scope, status or 499, time.monotonic() - began)
            request_id.reset(named)

    def _refusal(self, address: str) -> TooManyRequests | None:
        """The refusal of one more request from this address; None if there is room."""
        if self._per_address and self._running[address] >= self._per_address:
            # Only the client itself knows when its other requests end.
            return TooManyRequests(
                f"Limit of {self._per_address} concurrent requests from one address reached; try again shortly."
            )
        # A slow upload makes room.
        if self._running.total() >= self._at_once and not self._uploads.end_slowest():
            # Websockets and uploads take places, too, and nothing tells when they end.
            retry_after_s = max(RETRY_AFTER_S, self._backlog_s())
            message = f"Limit of {self._at_once} concurrent requests reached; try again in {retry_after_s} s."
            return TooManyRequests(message, retry_after_s)
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request under its route, since there are few routes, and log it under its path.

        Static files have no route of their own and share their folder's name.
        """
        method, path = _method(scope), _path(scope)
        folder = next((prefix.rstrip("/") for prefix in _STATIC_FILES if path.startswith(prefix)), "(none)")
        # An upload may be refused before it meets its route.
        route = path if path in UPLOADS else getattr(scope.get("route"), "path", folder)
        self._metrics.count_request(method, route, status, seconds)
        is_routine = route in PROBES or (status < 400 and path.startswith(_STATIC_FILES))
        fields = {"method": method, "path": path, "route": route, "status": status, "seconds": round(seconds, 3)}
        log.log(
            logging.DEBUG if is_routine else logging.INFO,
            *("%s %s %s in %.3f s (%s)", method, path, status, seconds, request_id.get()),
            extra={"fields": fields},
        )


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _path(scope: Scope) -> str:
    """The path without its query, percent-encoded, so that no line break or control character gets into the log."""
    path = quote(scope["path"])
    return path if len(path) <= _LOGGED_PATH else f"{path[:_LOGGED_PATH]}…"


def _method(scope: Scope) -> str:
    """The method as counted and logged. Unknown ones share a name, or each would add to the metrics."""
    if scope["type"] == "websocket":
        return "WEBSOCKET"
    return scope["method"] if scope["method"] in _METHODS else "OTHER"
