"""What the live routes share: one conversation over a websocket, whichever side ends it."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from server.errors import EngineStopped, RequestError, ServiceError
from server.live.capacity import LiveCapacity, Seat

log = logging.getLogger(__name__)

# Close codes of RFC 6455.
NORMAL, GOING_AWAY, POLICY, INTERNAL, TRY_LATER = 1000, 1001, 1008, 1011, 1013
# How long sending the last messages, and closing, may take.
FAREWELL_S = 2.0
WENT_WRONG = "Internal server error; see the server's log."

# The most unsent messages, and how long sending one may take. Beyond either, the client counts as not reading.
MAX_UNSENT = 500
SEND_S = 20.0

# An error as a message of the protocol: code, message.
ErrorMessage = Callable[[str, str], dict[str, Any]]


class Fatal(Exception):
    """Ends the connection. The client gets the message as an error, then as the reason for closing."""

    def __init__(self, code: str, message: str, close: int = POLICY):
        super().__init__(message)
        self.code, self.close = code, close


class NotReading(Exception):
    """The client does not read its messages."""


class Outbox:
    """`put` never waits; `run` sends the messages one after the other."""

    def __init__(self, send: Callable[[Any], Awaitable[None]]):
        self._send = send
        self._waiting: deque[tuple[object, Any]] = deque()
        self._changed = asyncio.Event()

    def put(self, message: Any, replaces: object = None) -> None:
        """Send `message` after all others. It takes the place of the last one if that still waits and was put with
        the same `replaces`. Raises NotReading."""
        if replaces is not None and self._waiting and self._waiting[-1][0] == replaces:
            self._waiting.pop()
        if len(self._waiting) >= MAX_UNSENT:
            raise NotReading
        self._waiting.append((replaces, message))
        self._changed.set()

    async def run(self) -> None:
        """Raises NotReading when sending takes too long."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.send_all()

    async def send_all(self) -> None:
        """Send all waiting messages."""
        while self._waiting:
            _, message = self._waiting.popleft()
            try:
                async with asyncio.timeout(SEND_S):
                    await self._send(message)
            except TimeoutError:
                raise NotReading from None


async def converse(
    websocket: WebSocket, talk: Callable[[Outbox], Coroutine[Any, Any, None]], error_message: ErrorMessage
) -> None:
    """Run `talk`, send what it puts into the outbox, and close when either ends."""
    outbox = Outbox(websocket.send_json)
    last_words: dict[str, Any] | None = None
    close = NORMAL, ""
    try:
        await first_of(outbox.run(), talk(outbox))
    except WebSocketDisconnect:
        return
    except NotReading:
        close = POLICY, "the client does not read its messages"
    except Fatal as fatal:
        last_words = error_message(fatal.code, str(fatal))
        close = fatal.close, str(fatal)
    except ServiceError as refused:
        last_words = error_message(refused.code, str(refused))
        close = _close_code(refused), str(refused)
    except Exception:
        log.exception("a live session failed")
        last_words = error_message("internal_error", WENT_WRONG)
        close = INTERNAL, WENT_WRONG
    if close[1]:
        log.info("a live session was ended: %s", close[1])
    await _say_goodbye(websocket, outbox, last_words, *close)


def _close_code(error: ServiceError) -> int:
    if isinstance(error, RequestError):
        return POLICY
    return GOING_AWAY if isinstance(error, EngineStopped) else TRY_LATER


async def first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, then cancel the others; raises what that one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def seat(websocket: WebSocket) -> AsyncIterator[Seat]:
    """A place among the live sessions. Raises TooManySessions if there is none."""
    state = websocket.app.state
    capacity: LiveCapacity = state.live
    taken = capacity.take()
    try:
        with state.metrics.live_sessions.track_inprogress():
            yield taken
    finally:
        capacity.give_back(taken)


async def _say_goodbye(
    websocket: WebSocket, outbox: Outbox, last_words: dict[str, Any] | None, code: int, reason: str
) -> None:
    """Send the remaining messages and close, without waiting long for a client that does not read."""
    try:
        if last_words:
            outbox.put(last_words)
        async with asyncio.timeout(FAREWELL_S):
            await outbox.send_all()
    except (TimeoutError, NotReading, RuntimeError, WebSocketDisconnect):
        pass
    try:
        async with asyncio.timeout(FAREWELL_S):
            # The reason is limited to 123 bytes.
            await websocket.close(code, reason.encode()[:123].decode(errors="ignore"))
    except (TimeoutError, RuntimeError, WebSocketDisconnect):
        pass
