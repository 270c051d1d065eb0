"""The server's side of its supervisor: the sockets it inherits, its signs of life, and exits that ask for a restart."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from server.cli.supervise import BEAT_S, GIVEN_UP, HUNG, READY, VARIABLE
from server.engine.failure import Failure

log = logging.getLogger("canary")

# How long the requests in progress may take to be answered before the process exits, and closing everything after that.
LAST_ANSWERS_S, CLOSING_S = 10, 2


@dataclass
class Supervised:
    """sockets: to listen on; link: to the supervisor; restarts: by reason, before this process began."""

    sockets: list[socket.socket]
    link: socket.socket
    restarts: Mapping[str, int]
    exit_code: int | None = None

    @classmethod
    def from_environment(cls) -> Self | None:
        """None if this process has no supervisor. Processes started from this one are not told."""
        told = os.environ.pop(VARIABLE, None)
        if not told:
            return None
        found = json.loads(told)
        sockets = [socket.socket(fileno=number) for number in (*found["sockets"], found["link"])]
        for each in sockets:
            each.set_inheritable(False)
            each.setblocking(False)
        return cls(sockets[:-1], sockets[-1], found["restarts"])

    def tell_ready(self) -> None:
        self._tell(READY)

    async def beat(self, on_orphaned: Callable[[], None]) -> None:
        """Tell the supervisor that the event loop runs. on_orphaned: called once the supervisor has ended."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                said = self.link.recv(64)
            except BlockingIOError:
                return
            except ConnectionError:
                said = b""
            if not said:
                loop.remove_reader(self.link)
                log.warning("the supervisor has ended")
                on_orphaned()

        loop.add_reader(self.link, read)
        while True:
            self._tell(b".")
            await asyncio.sleep(BEAT_S)

    def leave(self, failure: Failure, stop: Callable[[int], None]) -> None:
        """End the process once the requests in progress are answered. New connections wait for the next process.

        stop: ends the server, within so many seconds.
        """
        log.critical("%s; this process ends and the supervisor starts another", failure.message)
        code = HUNG if failure.reason == "hang" else GIVEN_UP
        stop(LAST_ANSWERS_S)
        # A normal exit would wait for the model's thread.
        asyncio.get_running_loop().call_later(LAST_ANSWERS_S + CLOSING_S, os._exit, code)
        self.exit_code = code

    def exit_if_left(self) -> None:
        """To be called once the server has ended. Exits if `leave` ended it."""
        if self.exit_code is not None:
            os._exit(self.exit_code)

    def _tell(self, what: bytes) -> None:
        # The supervisor may have ended, or be stopped with the buffer full.
        with suppress(OSError):
            self.link.send(what)
