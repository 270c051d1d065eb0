"""What every request passes through: a name for the log, and a cap on its body."""

import asyncio
import logging
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import BodyTooLarge, error_response

log = logging.getLogger(__name__)


class RequestId:
    """Give each response an `x-request-id`; answer an unexpected exception with 500 and log it under that id."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = uuid.uuid4().hex[:16]
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception:
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            message = f"Something went wrong on the server; its log says more under request {request_id}."
            response = error_response(500, message, "internal_error", headers={"x-should-retry": "false"})
            await response(scope, receive, send_named)


class BodyLimit:
    """Stop reading a body at `max_bytes`: whoever reads it gets BodyTooLarge, whatever the path."""

    # A client that is still sending when the connection closes may never see the answer.
    DRAIN_S = 2.0

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen, over = 0, False

        async def receive_capped() -> Message:
            nonlocal seen, over
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                over = True
                raise BodyTooLarge(f"The body is over {self.max_bytes / 1e6:g} MB, the most that is read.")
            return message

        async def send_then_drain(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if over and last:
                await send({**message, "more_body": True})
                await self._drain(receive)
                message = {"type": "http.response.body"}
            await send(message)

        return await self.app(scope, receive_capped, send_then_drain)

    async def _drain(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self.DRAIN_S):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass
