"""What becomes of recordings that end their workers: tried by themselves, and then given up."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# How many workers a recording may end before it has failed.
MOST_ATTEMPTS = 3


class Attempts:
    """An actor, one for all workers: how often each recording was begun and not finished."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def count(self, path: str) -> int:
        return self._begun[path]

    def begin(self, path: str) -> None:
        self._begun[path] += 1

    def end(self, path: str) -> None:
        del self._begun[path]


class Turns:
    """Recordings in one worker: side by side, or one by itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._alone = False

    @contextmanager
    def turn(self, alone: bool) -> Iterator[None]:
        """Wait until nothing runs by itself; with `alone`, until nothing runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not (alone and self._running))
            self._running += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._alone = False
                self._changed.notify_all()
