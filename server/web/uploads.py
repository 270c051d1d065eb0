"""Limits on request bodies: their size, their rate, and which of them is ended when connections are scarce."""

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTooLarge, BodyTooSlow

# The lowest rate of a body, in bytes per second, averaged over each window of so many seconds. A phone with bad
# reception still reaches it.
SLOWEST, WINDOW_S = 4000, 20.0
# A body's deadline: this many seconds, plus one for every `AVERAGE` bytes of its size.
PATIENCE_S, AVERAGE = 60.0, 8000
# Uploads younger than this are never ended to make room.
YOUNG_S = 1.0


class Upload:
    """A body that is being received."""

    def __init__(self, announced: int):
        self.announced = announced
        self.seen = 0
        self.is_too_slow = False
        self._began = self._window_began = time.monotonic()
        self._window_seen = 0
        self._waiting: asyncio.Timeout | None = None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.seen / max(self.age_s, 0.001)

    async def next(self, receive: Receive) -> Message:
        """The next part of the body. Raises BodyTooSlow."""
        while not self.is_too_slow:
            try:
                async with asyncio.timeout(max(0.0, self._patience_s())) as self._waiting:
                    message = await receive()
            except TimeoutError:
                self._end_window()
            else:
                self.seen += len(message.get("body", b""))
                return message
            finally:
                self._waiting = None
        raise BodyTooSlow("The request body arrives too slowly.")

    def give_way(self) -> None:
        """Raise BodyTooSlow in `next`, at once if it is waiting."""
        self.is_too_slow = True
        if self._waiting:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    @property
    def _size(self) -> int:
        return max(self.seen, self.announced)

    def _end_window(self) -> None:
        """Check the rate and the deadline, and begin the next window."""
        now = time.monotonic()
        is_late = self.age_s >= PATIENCE_S + self._size / AVERAGE
        if is_late or self.seen - self._window_seen < SLOWEST * (now - self._window_began):
            self.is_too_slow = True
        self._window_began, self._window_seen = now, self.seen

    def _patience_s(self) -> float:
        """Seconds until the window ends, or the deadline if that is sooner."""
        now = time.monotonic()
        return min(self._window_began + WINDOW_S, self._began + PATIENCE_S + self._size / AVERAGE) - now


class Uploads:
    """The bodies that are being received now."""

    def __init__(self) -> None:
        self.receiving: set[Upload] = set()

    def end_slowest(self) -> bool:
        """End the slowest upload to make room for another request. False if none is slow enough."""
        slow = [u for u in self.receiving if u.age_s >= YOUNG_S and u.rate < SLOWEST and not u.is_too_slow]
        if slow:
            min(slow, key=lambda upload: upload.rate).give_way()
        return bool(slow)


class BodyLimit:
    """Raises BodyTooLarge in whatever reads a body of more than `max_bytes`, and BodyTooSlow if it arrives too slowly.

    If the answer comes before the end of the body, the connection is closed; uvicorn would let the client send forever.
    """

    # Read on for this long before closing: a client that is still sending may never see the answer.
    DRAIN_S = 2.0

    def __init__(self, app: ASGIApp, max_bytes: int, uploads: Uploads):
        self.app = app
        self.max_bytes = max_bytes
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        upload = Upload(int(headers.get(b"content-length", b"0")))
        ended = upload.announced == 0 and b"transfer-encoding" not in headers

        async def receive_capped() -> Message:
            nonlocal ended
            if ended:
                # The only message left is that the client disconnected; that may take any time.
                return await receive()
            self._check(max(upload.seen, upload.announced))
            self._uploads.receiving.add(upload)
            message = await upload.next(receive)
            if not message.get("more_body"):
                ended = True
                self._uploads.receiving.discard(upload)
            self._check(upload.seen)
            return message

        async def send_and_close(message: Message) -> None:
            if not ended and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif not ended and not message.get("more_body"):
                await send({**message, "more_body": True})
                # Reading would tell a client that sent "Expect: 100-continue" to start sending.
                if not upload.is_too_slow and (upload.seen or b"expect" not in headers):
                    await self._drain(receive)
                message = {"type": "http.response.body"}
            await send(message)

        try:
            return await self.app(scope, receive_capped, send_and_close)
        finally:
            self._uploads.receiving.discard(upload)

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
