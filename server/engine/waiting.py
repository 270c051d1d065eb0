"""A pass in the engine's queue."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from server.engine.batching import Pass, PassResult
from server.errors import ServiceError


@dataclass(order=True)
class Waiting:
    """The lowest priority comes first, then the lowest number."""

    priority: int
    number: int
    wanted: Pass = field(compare=False)
    future: "Future[PassResult]" = field(compare=False, default_factory=Future)
    since: float = field(compare=False, default_factory=time.monotonic)
    queue_s: float = field(compare=False, default=0.0)

    @property
    def is_late(self) -> bool:
        """Whether it should have started by now."""
        return self.wanted.start_by is not None and time.monotonic() > self.wanted.start_by

    def refuse(self, error: ServiceError) -> None:
        """Fail it after it was taken out of the queue, unless it was cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
