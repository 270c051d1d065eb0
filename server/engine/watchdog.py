"""Finds a model that hangs: its thread says what it begins to do, and a watchdog knows how long that may take.

A thread in native code cannot be ended from outside. All that can be done is to notice, and to do without it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# The kinds of work, and the seconds that one unit of each is assumed to take until it has been measured: a second of
# audio to encode or to align, a decoder row to prefill or to advance by a token.
ASSUMED_S = {"encode": 0.25, "prefill": 0.25, "step": 0.25, "finish": 0.25}
# Work may take this long however small it is: the first use compiles kernels, and memory may have been swapped out.
FLOOR_S = 60.0
# Beyond that, work may take so many times as long as its kind took at its slowest.
MARGIN = 20.0
# How much of the slowest speed is forgotten with each measurement.
FORGET = 0.05
# How often the watchdog looks.
TICK_S = 1.0


@dataclass(frozen=True, eq=False)
class Work:
    """One piece of work. size: seconds of audio for "encode" and "finish", rows for "prefill" and "step"."""

    kind: str
    size: float
    began: float
    limit_s: float

    def __str__(self) -> str:
        unit = "rows" if self.kind in ("prefill", "step") else "s of audio"
        return f"{self.kind} of {self.size:.4g} {unit}"


class Heartbeat:
    """What the engine's thread is doing, and how fast it has been. Written by that thread, read by the watchdog."""

    def __init__(self) -> None:
        self.work: Work | None = None
        self._slowest_s = dict(ASSUMED_S)
        self._measured: set[str] = set()

    def beat(self, kind: str, size: float) -> None:
        """The work before this is done, and work of `kind` begins. See `Work` for the size."""
        self.rest()
        limit_s = FLOOR_S + MARGIN * size * self._slowest_s[kind]
        self.work = Work(kind, size, time.monotonic(), limit_s)

    def rest(self) -> None:
        """The work is done, and none follows for now."""
        if done := self.work:
            self.work = None
            self._measure(done.kind, (time.monotonic() - done.began) / max(done.size, 1.0))

    def _measure(self, kind: str, unit_s: float) -> None:
        known_s = self._slowest_s[kind] if kind in self._measured else unit_s
        self._measured.add(kind)
        self._slowest_s[kind] = max(unit_s, known_s + FORGET * (unit_s - known_s))


class Watchdog:
    """Calls `on_hang`, once and in its own thread, when a piece of work takes longer than its limit.

    It adds up the time between its own looks and counts no gap as more than two of them. So a computer that slept, or a
    process that was stopped, is not taken for a model that hangs.
    """

    def __init__(self, heartbeat: Heartbeat, on_hang: Callable[[Work], None]):
        self._heartbeat = heartbeat
        self._on_hang = on_hang
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        watched, age_s, looked_at = None, 0.0, time.monotonic()
        while not self._ended.wait(TICK_S):
            now, work = time.monotonic(), self._heartbeat.work
            gap_s, looked_at = min(now - looked_at, 2 * TICK_S), now
            if work is not watched:
                watched, age_s = work, 0.0
            elif work:
                age_s += gap_s
                if age_s > work.limit_s:
                    self._on_hang(work)
                    return
