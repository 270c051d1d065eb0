"""Messages for a client that may read slowly, or not at all."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

# How many messages may wait, and how long sending one may take; beyond that, the client counts as not reading.
MAX_WAITING = 500
SEND_S = 20.0


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
        if len(self._waiting) >= MAX_WAITING:
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
