"""What every request passes through: a name for the log, a line in it, and caps on bodies and on requests at once."""

import asyncio
import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, BodyTooSlow, TooManyRequests
from server.logs import request_id
from server.web.answers import answer, error_response
from server.web.metrics import Metrics

log = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


class Requests:
    """Name each request, in the header `x-request-id` and in the log; count it, and refuse those over `at_once`.

    An unexpected exception is answered with 500 and logged under that name.
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
                # a close that comes before the acceptance is uvicorn's 403
                status = status or 403
            await send(message)

        self._running += 1
        try:
            if self._running > self._at_once:
                too_many = TooManyRequests(f"{self._at_once} requests are being served, the most that may be.")
                return await answer(too_many)(scope, receive, send_named)
            await self.app(scope, receive, send_named)
        except Exception:
            log.exception("request %s failed: %s", name, scope["path"])
            if status or scope["type"] != "http":
                raise
            message = f"Something went wrong on the server; its log says more under request {name}."
            response = error_response(500, message, "internal_error", headers={"x-should-retry": "false"})
            await response(scope, receive, send_named)
        finally:
            self._running -= 1
            self._tell(scope, status, time.monotonic() - began)
            request_id.reset(named)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        method = _method(scope)
        route = getattr(scope.get("route"), "path", "(none)")
        # 499: nobody was left to answer
        self._metrics.count_request(method, route, status or 499, seconds)
        level = logging.DEBUG if route in ("/health", "/ready", "/metrics") else logging.INFO
        fields = {"method": method, "route": route, "status": status or 499, "seconds": round(seconds, 3)}
        log.log(level, "%s %s %s in %.3f s (%s)", *fields.values(), request_id.get(), extra={"fields": fields})


def _method(scope: Scope) -> str:
    """As counted and logged: one name for all that clients make up, or each would be remembered."""
    if scope["type"] == "websocket":
        return "WEBSOCKET"
    return scope["method"] if scope["method"] in _METHODS else "OTHER"


class BodyLimit:
    """Stop reading a body at `max_bytes`: whoever reads it gets BodyTooLarge, whatever the path.

    An answer that comes before the body's end closes the connection: left to uvicorn, a sender could go on forever.
    """

    # A client that is still sending when the connection closes may never see the answer.
    DRAIN_S = 2.0
    # A body is given up that has not come after so long, and a second more for each kilobyte that did.
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
            # After the end there is nothing to come but the caller's leaving.
            left_s = None if ended else max(0.0, began + self.PATIENCE_S + seen / self.SLOWEST - time.monotonic())
            try:
                async with asyncio.timeout(left_s):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow("The body comes too slowly.") from None
            seen += len(message.get("body", b""))
            ended = ended or not message.get("more_body")
            self._check(seen)
            return message

        async def send_and_close(message: Message) -> None:
            if not ended and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif not ended and not message.get("more_body"):
                await send({**message, "more_body": True})
                # Reading asks a client that sent "Expect" to go on; one that has not begun need not.
                if seen or b"expect" not in headers:
                    await self._drain(receive)
                message = {"type": "http.response.body"}
            await send(message)

        return await self.app(scope, receive_capped, send_and_close)

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            raise BodyTooLarge(f"The body is over {self.max_bytes / 1e6:g} MB, the most that is read.")

    async def _drain(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self.DRAIN_S):
                while (await receive()).get("more_body"):
                    pass
        except TimeoutError:
            pass
