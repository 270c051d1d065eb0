"""What the live routes share: one conversation over a websocket, from its start to its end, whoever ends it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from server.errors import EngineStopped, ServiceError
from server.settings import Settings
from server.web.routes.outbox import NotReading, Outbox

log = logging.getLogger(__name__)

# RFC 6455's codes for closing.
NORMAL, GOING_AWAY, POLICY, INTERNAL, TRY_LATER = 1000, 1001, 1008, 1011, 1013
# How long the last messages, and closing, may take.
FAREWELL_S = 2.0
WENT_WRONG = "Something went wrong on the server; its log says more."

# An error as a message of the protocol: code, message.
ErrorMessage = Callable[[str, str], dict[str, Any]]


class Fatal(Exception):
    """What ends the connection: told to the client as an error, then as the reason of closing."""

    def __init__(self, code: str, message: str, close: int = POLICY):
        super().__init__(message)
        self.code, self.close = code, close


async def converse(
    websocket: WebSocket, talk: Callable[[Outbox], Coroutine[Any, Any, None]], told: ErrorMessage
) -> None:
    """Run `talk`, sending what it puts into the outbox, and close when either ends."""
    outbox = Outbox(websocket.send_json)
    last_words: dict[str, Any] | None = None
    close = NORMAL, ""
    try:
        await first_of(outbox.run(), talk(outbox))
    except WebSocketDisconnect:
        return
    except NotReading:
        close = POLICY, "messages are not being read"
    except Fatal as fatal:
        last_words = told(fatal.code, str(fatal))
        close = fatal.close, str(fatal)
    except ServiceError as refused:
        last_words = told(refused.code, str(refused))
        close = GOING_AWAY if isinstance(refused, EngineStopped) else POLICY, str(refused)
    except Exception:
        log.exception("a live session failed")
        last_words = told("internal_error", WENT_WRONG)
        close = INTERNAL, WENT_WRONG
    if close[1]:
        log.info("a live session was ended: %s", close[1])
    await _say_goodbye(websocket, outbox, last_words, *close)


async def first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, and end the others; raises what that one raised."""
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
async def seat(websocket: WebSocket) -> AsyncIterator[None]:
    """One of the live sessions that there may be. Raises Fatal if all are taken."""
    state = websocket.app.state
    settings: Settings = state.settings
    if not hasattr(state, "live_seats"):
        state.live_seats = Seats(settings.max_live_sessions)
    with state.live_seats.one() as free:
        if not free:
            raise Fatal("too_many_sessions", f"All {settings.max_live_sessions} live sessions are in use.", TRY_LATER)
        with state.metrics.live_sessions.track_inprogress():
            yield


async def _say_goodbye(
    websocket: WebSocket, outbox: Outbox, last_words: dict[str, Any] | None, code: int, reason: str
) -> None:
    """Send what waits and close, without waiting long for a client that does not read."""
    try:
        if last_words:
            outbox.put(last_words)
        async with asyncio.timeout(FAREWELL_S):
            await outbox.send_all()
    except (TimeoutError, NotReading, RuntimeError, WebSocketDisconnect):
        pass
    try:
        async with asyncio.timeout(FAREWELL_S):
            # a reason may have 123 bytes
            await websocket.close(code, reason.encode()[:123].decode(errors="ignore"))
    except (TimeoutError, RuntimeError, WebSocketDisconnect):
        pass


class Seats:
    """How many live sessions there may be at once."""

    def __init__(self, most: int):
        self.most = most
        self.taken = 0

    @contextmanager
    def one(self):
        """A seat for as long as it is used. Yields whether there was one."""
        if self.taken >= self.most:
            yield False
            return
        self.taken += 1
        try:
            yield True
        finally:
            self.taken -= 1
