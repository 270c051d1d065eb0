"""What every request passes through: an ID, a line in the log, and limits on bodies and concurrent requests."""

import asyncio
import logging
import time
import uuid
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, BodyTooSlow, TooManyRequests
from server.logs import request_id
from server.web.answers import answer, error_response
from server.web.metrics import Metrics

log = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_PROBES = frozenset({"/health", "/ready", "/metrics"})
_STATIC_FILES = ("/static/", "/docs-assets/")
# The longest path in a log line, in characters.
_LOGGED_PATH = 200


class Requests:
    """Give each request an ID, in the header `x-request-id` and in the log; count it; refuse more than `at_once`.

    An unexpected exception gives a 500 and is logged under that ID.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, at_once: int):
        self.app = app
        self._metrics = metrics
        self._at_once = at_once
        self._running = 0

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

        self._running += 1
        try:
            if self._running > self._at_once:
                too_many = TooManyRequests(f"Limit of {self._at_once} concurrent requests reached; try again shortly.")
                return await answer(too_many)(scope, receive, send_named)
            await self.app(scope, receive, send_named)
        except ClientDisconnect:
            # In the middle of a body, or by a body that is not HTTP: there is nobody to answer.
            pass
        except Exception:
            log.exception("request %s failed: %s", name, _path(scope))
            if status or scope["type"] != "http":
                raise
            message = f"Internal server error; see request {name} in the server's log."
            response = error_response(500, message, "internal_error", headers={"x-should-retry": "false"})
            await response(scope, receive, send_named)
        finally:
            self._running -= 1
            # 499: the client left before there was an answer.
            self._record(scope, status or 499, time.monotonic() - began)
            request_id.reset(named)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request under its route, since there are few routes, and log it under its path.

        Static files have no route of their own and share their folder's name.
        """
        method, path = _method(scope), _path(scope)
        folder = next((prefix.rstrip("/") for prefix in _STATIC_FILES if path.startswith(prefix)), "(none)")
        route = getattr(scope.get("route"), "path", folder)
        self._metrics.count_request(method, route, status, seconds)
        is_routine = route in _PROBES or (status < 400 and path.startswith(_STATIC_FILES))
        fields = {"method": method, "path": path, "route": route, "status": status, "seconds": round(seconds, 3)}
        log.log(
            logging.DEBUG if is_routine else logging.INFO,
            *("%s %s %s in %.3f s (%s)", method, path, status, seconds, request_id.get()),
            extra={"fields": fields},
        )


def _path(scope: Scope) -> str:
    """The path without its query, percent-encoded, so that no line break or control character gets into the log."""
    path = quote(scope["path"])
    return path if len(path) <= _LOGGED_PATH else f"{path[:_LOGGED_PATH]}…"


def _method(scope: Scope) -> str:
    """The method as counted and logged. Unknown ones share a name, or each would add to the metrics."""
    if scope["type"] == "websocket":
        return "WEBSOCKET"
    return scope["method"] if scope["method"] in _METHODS else "OTHER"


class BodyLimit:
    """Raise BodyTooLarge in whatever reads a body of more than `max_bytes`, and BodyTooSlow for one that stalls.

    If the answer comes before the end of the body, close the connection; uvicorn would let the client send forever.
    """

    # Read on for this long before closing: a client that is still sending may never see the answer.
    DRAIN_S = 2.0
    # A body may take this many seconds, plus one second for every `SLOWEST` bytes received.
    PATIENCE_S = 60.0
    SLOWEST = 1000

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        announced = int(headers.get(b"content-length", b"0"))
        began = time.monotonic()
        seen, ended = 0, announced == 0 and b"transfer-encoding" not in headers

        async def receive_capped() -> Message:
            nonlocal seen, ended
            self._check(max(seen, announced))
            # After the end, the only message left is that the client disconnected; that may take any time.
            left_s = None if ended else max(0.0, began + self.PATIENCE_S + seen / self.SLOWEST - time.monotonic())
            try:
                async with asyncio.timeout(left_s):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow("The request body arrives too slowly.") from None
            seen += len(message.get("body", b""))
            ended = ended or not message.get("more_body")
            self._check(seen)
            return message

        async def send_and_close(message: Message) -> None:
            if not ended and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif not ended and not message.get("more_body"):
                await send({**message, "more_body": True})
                # Reading would tell a client that sent "Expect: 100-continue" to start sending.
                if seen or b"expect" not in headers:
                    await self._drain(receive)
                message = {"type": "http.response.body"}
            await send(message)

        return await self.app(scope, receive_capped, send_and_close)

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise BodyTooLarge(f"The request body is larger than {self.max_bytes / 1e6:g} MB, the server's limit.")

    async def _drain(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self.DRAIN_S):
                while (await receive()).get("more_body"):
                    pass
        except TimeoutError:
            pass
