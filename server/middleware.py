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
    """Stop reading a body at `max_bytes`: whoever reads it gets BodyTooLarge, whatever the path.

    An answer that comes before the body's end closes the connection: left to uvicorn, a sender could go on forever.
    """

    # A client that is still sending when the connection closes may never see the answer.
    DRAIN_S = 2.0

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        announced = int(headers.get(b"content-length", b"0"))
        seen, ended = 0, announced == 0 and b"transfer-encoding" not in headers

        async def receive_capped() -> Message:
            nonlocal seen, ended
            self._check(max(seen, announced))
            message = await receive()
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
