"""The passes that wait for the model, and which one is next.

Live sessions go first, but while files wait too, each kind gets its share of the model's time: start-time fair queueing
(Goyal, Vin and Cheng, 1996) over two queues. Within a queue the lowest priority number is first, then the oldest pass.
"""

import bisect
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from server.engine.passes import Pass, PassResult
from server.errors import ServiceError

# Priorities.
LIVE, INTERACTIVE, BULK = 0, 1, 2
# The share of the model's time that live sessions get while files wait. The rest is for files.
LIVE_SHARE = 0.75


@dataclass(order=True)
class Waiting:
    """A pass that waits or runs. model_s: the model's time that it has taken."""

    priority: int
    number: int
    wanted: Pass = field(compare=False)
    future: "Future[PassResult]" = field(compare=False, default_factory=Future)
    since: float = field(compare=False, default_factory=time.monotonic)
    queue_s: float = field(compare=False, default=0.0)
    model_s: float = field(compare=False, default=0.0)

    @property
    def is_late(self) -> bool:
        """Whether it should have started by now."""
        return self.wanted.start_by is not None and time.monotonic() > self.wanted.start_by

    def refuse(self, error: ServiceError) -> None:
        """Fail it after it was taken out of the queue, unless it was cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass
class Lane:
    """The passes of one kind, in order. share: of the model's time; spent_s: what it has had of it.

    tag_s: when, in virtual time, its next pass starts: the time it has had, divided by its share.
    """

    share: float
    passes: list[Waiting] = field(default_factory=list)
    spent_s: float = 0.0
    tag_s: float = 0.0


class PassQueue:
    """The passes of live sessions and of files. Not thread-safe."""

    def __init__(self) -> None:
        self.live, self.files = Lane(LIVE_SHARE), Lane(1 - LIVE_SHARE)
        # The tag of the pass that was taken last.
        self._virtual_s = 0.0

    def __len__(self) -> int:
        return len(self.live.passes) + len(self.files.passes)

    def add(self, request: Waiting) -> None:
        lane = self._lane(request)
        if not lane.passes:
            # Time that a lane did not ask for is not made up for later.
            lane.tag_s = max(lane.tag_s, self._virtual_s)
        bisect.insort(lane.passes, request)

    def remove(self, request: Waiting) -> bool:
        """Whether it was in the queue."""
        passes = self._lane(request).passes
        if request not in passes:
            return False
        passes.remove(request)
        return True

    def clear(self) -> list[Waiting]:
        """Take out all passes."""
        passes = self.live.passes + self.files.passes
        self.live.passes, self.files.passes = [], []
        return passes

    def next(self, live_runs: bool = False) -> Waiting | None:
        """The pass that is to join next. live_runs: a live pass is in the batch, so files wait for their turn."""
        if live_runs and not self.live.passes and self.live.tag_s <= self.files.tag_s:
            return None
        waiting = [lane for lane in (self.live, self.files) if lane.passes]
        # Live first if the tags are equal.
        return min(waiting, key=lambda lane: lane.tag_s).passes[0] if waiting else None

    def take(self, request: Waiting) -> None:
        """Take out the pass that is next."""
        lane = self._lane(request)
        lane.passes.remove(request)
        self._virtual_s = lane.tag_s

    def charge(self, request: Waiting, seconds: float) -> None:
        """The model has worked on this pass for so long."""
        lane = self._lane(request)
        request.model_s += seconds
        lane.spent_s += seconds
        lane.tag_s += seconds / lane.share

    def level(self) -> None:
        """Nothing waits or runs: who had how much before does not matter any more."""
        self.live.tag_s = self.files.tag_s = self._virtual_s = 0.0

    def _lane(self, request: Waiting) -> Lane:
        return self.live if request.priority == LIVE else self.files


class Meter:
    """Charges the model's time to the passes that it is spent on.

    lock: guards the queue; clock: in seconds.
    """

    def __init__(self, queue: PassQueue, lock: AbstractContextManager[Any], clock: Callable[[], float]):
        self._queue, self._lock, self._clock = queue, lock, clock
        self._requests: Sequence[Waiting] = []
        self._sizes: Sequence[int] = []
        self._since = 0.0

    def begin(self, requests: Sequence[Waiting], sizes: Sequence[int]) -> None:
        """From now on, time is spent on these passes, divided by size."""
        self._requests, self._sizes, self._since = requests, sizes, self._clock()

    def charge(self) -> None:
        """Charge the time since `begin`, and let go of the passes."""
        spent_s = self._clock() - self._since
        with self._lock:
            for request, size in zip(self._requests, self._sizes, strict=True):
                self._queue.charge(request, spent_s * size / sum(self._sizes))
        self._requests, self._sizes = [], []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile, time is spent on other passes."""
        requests, sizes = self._requests, self._sizes
        self.charge()
        yield
        self.begin(requests, sizes)
