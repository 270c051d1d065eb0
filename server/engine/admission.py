"""Which recordings a model takes on, and when each begins: decided before they are decoded.

Knows no HTTP and no audio formats: to it, a recording is a number of seconds. Used by one event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self, cast

import numpy as np

from model.config import SAMPLE_RATE
from server.errors import QueueFull, WaitedTooLong
from server.settings import Settings

# Recordings that are decoded beyond the batch's rows, so that the model never waits for the next one.
AHEAD = 4
# Longer recordings get at most half of the places, so that short ones never wait for them to end.
LONG_S = 120.0
# The most pieces of one recording that are in the engine at a time.
PIECES = 4
# A file without a length in its header is taken to have this bit rate. A lower one in a header is not believed.
BYTES_PER_S, FEWEST_BYTES_PER_S = 2000, 500
# The half-life of what is measured, in seconds of work; and what is assumed at first: a model on a slow CPU.
HALF_LIFE_S = 60.0
FIRST_SPEED, FIRST_BUSY_S = 5.0, 2.0
MAX_RETRY_S = 600


class Turn:
    """A recording that was admitted. length_s: an estimate until it is decoded."""

    def __init__(self, length_s: float, pieces: Callable[[], int]):
        self.length_s = length_s
        self.done_s = 0.0
        self._decoded_s = 0.0
        self._pieces = pieces
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_long(self) -> bool:
        return self.length_s > LONG_S

    @property
    def left_s(self) -> float:
        return max(0.0, self.length_s - self.done_s)

    def pieces(self) -> int:
        """How many of its pieces may be in the engine now. The more recordings run, the fewer."""
        return self._pieces()

    def counted(self, blocks: Iterator[np.ndarray]) -> Generator[np.ndarray, None, Any]:
        """Passes on the blocks, (n,) at 16 kHz, and corrects the length. Returns what `blocks` returns."""
        try:
            while True:
                try:
                    block = next(blocks)
                except StopIteration as end:
                    self.length_s = self._decoded_s
                    return end.value
                self._decoded_s += len(block) / SAMPLE_RATE
                self.length_s = max(self.length_s, self._decoded_s)
                yield block
        finally:
            cast(Any, blocks).close()


class Admission:
    """The recordings of one model: `at_once` are worked on, and others wait for a turn, first come, first served.

    max_waiting: how many pieces and recordings may wait; max_waiting_s: how many seconds of audio; the last recording
    may exceed this. rows: of the batch; waiting_pieces: how many pieces wait in the engine.
    """

    def __init__(self, rows: int, max_waiting: int, max_waiting_s: float, waiting_pieces: Callable[[], int]):
        self.at_once = rows + AHEAD
        self._rows = rows
        self._max_waiting = max_waiting
        self._max_waiting_s = max_waiting_s
        self._waiting_pieces = waiting_pieces
        self._running: set[Turn] = set()
        self._waiting: deque[Turn] = deque()
        self._speed = Speed()

    @classmethod
    def from_settings(cls, settings: Settings, waiting_pieces: Callable[[], int]) -> Self:
        return cls(settings.max_rows, settings.max_queue, settings.max_queue_audio_s, waiting_pieces)

    @property
    def waiting(self) -> int:
        """Recordings that wait for their turn."""
        return len(self._waiting)

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait for their turn."""
        return sum(turn.length_s for turn in self._waiting)

    @property
    def retry_after_s(self) -> int:
        """Seconds until all that is admitted is done, at the measured speed."""
        # Long recordings take turns with others.
        backlog_s = self.waiting_s + sum(min(turn.left_s, LONG_S) for turn in self._running)
        return round(min(MAX_RETRY_S, max(1.0, backlog_s / self._speed.now)))

    def check(self) -> None:
        """Raise QueueFull if no recording can be admitted now. Cheap: call it before reading a request."""
        count = self._waiting_pieces() + self.waiting
        if count >= self._max_waiting:
            reason = f"{count} pieces of audio are waiting"
        elif self.waiting_s >= self._max_waiting_s:
            reason = f"{self.waiting_s:.0f} s of audio are waiting"
        else:
            return
        raise QueueFull(f"Queue full: {reason}; try again in {self.retry_after_s} s.", self.retry_after_s)

    @asynccontextmanager
    async def turn(self, length_s: float, start_by: float | None = None) -> AsyncIterator[Turn]:
        """Wait for a turn, and hold it inside the `with` block.

        Raises QueueFull at once, and WaitedTooLong if it has not begun at `start_by`, by the monotonic clock.
        """
        self.check()
        turn = Turn(length_s, self._pieces)
        self._waiting.append(turn)
        self._begin_next()
        try:
            try:
                async with asyncio.timeout(None if start_by is None else max(0.0, start_by - time.monotonic())):
                    await turn.begun
            except TimeoutError:
                raise WaitedTooLong from None
            yield turn
        finally:
            if turn in self._running:
                self._running.remove(turn)
                self._note_idle()
            else:
                self._waiting.remove(turn)
            self._begin_next()

    def note_done(self, turn: Turn, done_s: float) -> None:
        """Note that the first `done_s` seconds of the recording are transcribed."""
        if done_s > turn.done_s:
            self._speed.add(done_s - turn.done_s)
            turn.done_s = done_s

    def _begin_next(self) -> None:
        for turn in list(self._waiting):
            if len(self._running) >= self.at_once:
                return
            if turn.is_long and sum(other.is_long for other in self._running) >= self.at_once // 2:
                continue
            self._waiting.remove(turn)
            if not self._running:
                self._speed.resume()
            self._running.add(turn)
            if not turn.begun.done():
                turn.begun.set_result(None)

    def _note_idle(self) -> None:
        if not self._running:
            self._speed.pause()

    def _pieces(self) -> int:
        return max(1, min(PIECES, self._rows // max(1, len(self._running))))


class Speed:
    """Seconds of audio transcribed per second of work, an exponentially weighted mean."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._audio_s, self._busy_s = FIRST_SPEED * FIRST_BUSY_S, FIRST_BUSY_S
        self._since: float | None = None

    @property
    def now(self) -> float:
        return max(0.01, self._audio_s / (self._busy_s + self._unnoted()))

    def add(self, audio_s: float) -> None:
        self._note_time()
        self._audio_s += audio_s

    def resume(self) -> None:
        """Work begins."""
        self._since = self._clock()

    def pause(self) -> None:
        """No work is left."""
        self._note_time()
        self._since = None

    def _unnoted(self) -> float:
        return self._clock() - self._since if self._since is not None else 0.0

    def _note_time(self) -> None:
        busy_s = self._unnoted()
        kept = 0.5 ** (busy_s / HALF_LIFE_S)
        self._audio_s *= kept
        self._busy_s = self._busy_s * kept + busy_s
        if self._since is not None:
            self._since = self._clock()


def most_passes(settings: Settings) -> int:
    """The most passes that admitted recordings and live sessions have in an engine at a time."""
    return 2 * settings.max_rows + AHEAD + settings.max_live_sessions


def charged_s(declared_s: float | None, size: int, max_s: float) -> float:
    """An estimate of a recording's length. declared_s: from its header; size: in bytes."""
    if declared_s is None:
        return min(max_s, size / BYTES_PER_S)
    return min(max_s, declared_s, size / FEWEST_BYTES_PER_S)
