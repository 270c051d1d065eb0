"""How often each live session looks, and how many sessions the model has time for: both from measured times.

A look is one pass over the audio of an open segment. Used by one event loop.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from server.engine.waiting import LIVE_SHARE
from server.errors import TooManySessions
from server.settings import Settings

# The weight of the newest look in the mean times of a session.
NEWEST = 0.3
# The half-life of what a session has used. It spans several turns, so that pauses count.
HALF_LIFE_S = 20.0
# What a session needs while somebody speaks is the mean of so many looks of all sessions. The first ones do not count:
# they warm the model up.
LOOKS, WARM_UP = 50, 5


@dataclass(frozen=True)
class LookCost:
    """What one look cost. model_s: of the model's time; new_s: audio that no look before had; last: of its segment."""

    model_s: float
    new_s: float
    last: bool


class LiveCapacity:
    """The live sessions of this server. All models together have one device, so their sessions are counted together.

    max_sessions: the most, whatever is measured; step_s: new audio between two looks, as asked for; widest_step_s: at
    most, while other work makes looks wait.
    """

    def __init__(
        self,
        max_sessions: int = 32,
        step_s: float = 0.4,
        widest_step_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_sessions = max_sessions
        self.step_s = step_s
        self.widest_step_s = max(step_s, widest_step_s)
        self.clock = clock
        # Of the last looks: what they cost at the widest step, and their new audio, in seconds.
        self._looks: deque[tuple[float, float]] = deque(maxlen=LOOKS)
        self._noted = 0
        self._seats: set[Seat] = set()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.max_live_sessions, settings.live_step_s, settings.max_live_step_s)

    @property
    def load(self) -> float:
        """The share of the model's time that the open sessions need if each looks at the widest step only."""
        return sum(seat.load for seat in self._seats)

    @property
    def load_of_one(self) -> float:
        """The load of one session while somebody speaks; 0 until looks were measured."""
        costs_s, new_s = (sum(times) for times in zip(*self._looks, strict=True)) if self._looks else (0.0, 0.0)
        return costs_s / new_s if new_s else 0.0

    def take(self) -> "Seat":
        """A seat for one more session. Raises TooManySessions."""
        if len(self._seats) >= self.max_sessions:
            raise TooManySessions(f"Session limit ({self.max_sessions}) reached; try again shortly.")
        # One session is always possible, however slow the model is.
        if self._seats and self.load + self.load_of_one > LIVE_SHARE:
            raise TooManySessions(
                f"The model is too busy for another live session ({len(self._seats)} sessions need {self.load:.0%} of "
                f"its time, limit {LIVE_SHARE:.0%}); try again shortly."
            )
        seat = Seat(self)
        self._seats.add(seat)
        return seat

    def give_back(self, seat: "Seat") -> None:
        self._seats.remove(seat)

    def note(self, look: LookCost) -> float:
        """A session has looked. Returns what this audio would have cost at the widest step, in seconds."""
        looks = look.new_s / self.widest_step_s
        # However wide the step is, each segment has its last look.
        cost_s = look.model_s * (max(1.0, looks) if look.last else looks)
        self._noted += 1
        if self._noted > WARM_UP:
            self._looks.append((cost_s, look.new_s))
        return cost_s


class Seat:
    """One session's place. Tells how often the session looks, and what that needs of the model.

    step_s: new audio between two looks now.
    """

    def __init__(self, capacity: LiveCapacity):
        self._capacity = capacity
        self.step_s = capacity.step_s
        self._took_s = self._waited_s = 0.0
        # What its looks cost, which halves in each half-life; so do the seconds since it was taken.
        self._used_s = self._age_s = 0.0
        self._taken_at = self._noted_at = capacity.clock()

    @property
    def load(self) -> float:
        """The share of the model's time that it needs at the widest step, a mean over the last half-minute or so.

        A new session is taken to need what one does while somebody speaks.
        """
        capacity = self._capacity
        if capacity.clock() - self._taken_at < HALF_LIFE_S:
            return capacity.load_of_one
        used_s, age_s = self._faded(capacity.clock() - self._noted_at)
        return used_s / age_s

    def note(self, took_s: float, look: LookCost) -> None:
        """A look took `took_s`, waiting included. The next step leaves other work as much time once more.

        A segment's last look takes far longer than others, and tells nothing about the next one.
        """
        capacity = self._capacity
        if not look.last:
            self._took_s += NEWEST * (took_s - self._took_s)
            self._waited_s += NEWEST * (max(0.0, took_s - look.model_s) - self._waited_s)
            self.step_s = min(capacity.widest_step_s, max(capacity.step_s, self._took_s + self._waited_s))
        # Audio that comes faster than it is spoken needs no more than if it came at its own pace.
        since_s = max(capacity.clock() - self._noted_at, look.new_s)
        self._used_s, self._age_s = self._faded(since_s)
        self._used_s += capacity.note(look)
        self._noted_at = capacity.clock()

    def _faded(self, after_s: float) -> tuple[float, float]:
        """What was used and how long that took, both as they count `after_s` seconds later."""
        left = 0.5 ** (after_s / HALF_LIFE_S)
        return self._used_s * left, self._age_s * left + (1 - left) * HALF_LIFE_S / math.log(2)
