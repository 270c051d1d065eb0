"""How many live sessions a server keeps up with: what their looks took, and how late their words were.

`tests.live.measure` speaks; this runs the server, notes its looks and makes the table.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from server.cli.bench.command import THREAD_VARIABLES
from server.live.capacity import LookCost, Seat
from tests.serving import Served, serving

# Only Linux lets a program choose its cores.
PROGRAM = """
import os, sys

if sys.platform == "linux":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-{cores}:])

from server.__main__ import main
from tests.live import streams

if {is_paced}:
    from tests.live import paced

    paced.take_over()
streams.note_looks({looks!r})
main()
"""
# A server keeps up if so many looks are done in time, and so many leave the step as it was asked for.
ENOUGH = 0.95


@dataclass(frozen=True)
class Look:
    """One look of any session. took_s: waiting included; model_s: of the model's time; last: of its segment.

    step_s: the session's step after it.
    """

    took_s: float
    model_s: float
    last: bool
    step_s: float


def note_looks(path: str) -> None:
    """Write a line for each look that a session of this process takes."""
    own = Seat.note

    def note(seat: Seat, took_s: float, look: LookCost) -> None:
        own(seat, took_s, look)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Look(took_s, look.model_s, look.last, seat.step_s))) + "\n")

    Seat.note = note  # type: ignore[method-assign]


@dataclass
class Noted:
    """The looks of a stretch of time, and what the server's processor time was of it: in cores, for all its work."""

    looks: list[Look] = field(default_factory=list)
    seconds: float = 0.0
    cores: float = 0.0


@dataclass(frozen=True)
class Watched:
    """A server that notes its looks in a file."""

    served: Served
    file: Path

    def looks(self) -> list[Look]:
        return [Look(**json.loads(line)) for line in self.file.read_text(encoding="utf-8").splitlines()]

    @contextmanager
    def noting(self) -> Iterator[Noted]:
        """What is noted inside the `with` block is complete after it."""
        noted, before, cpu_s, began = Noted(), len(self.looks()), self._cpu_s(), time.monotonic()
        yield noted
        noted.seconds = time.monotonic() - began
        noted.cores = (self._cpu_s() - cpu_s) / noted.seconds
        noted.looks = self.looks()[before:]

    def _cpu_s(self) -> float:
        times = self.served.process.cpu_times()
        return times.user + times.system


@contextmanager
def watched(*options: str, cores: int, is_paced: bool = False, cache: Path | None = None) -> Iterator[Watched]:
    """Runs `canary serve` on so many cores, with as many threads for products.

    is_paced: its Canary writes as `paced` says; cache: for converted models, if not the usual one.
    """
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(cores))}
    if cache:
        environment["CANARY_CACHE"] = str(cache)
    with TemporaryDirectory() as folder:
        file = Path(folder, "looks")
        file.touch()
        program = PROGRAM.format(is_paced=is_paced, cores=cores, looks=str(file))
        with serving(*options, program=("-c", program), environment=environment) as served:
            yield Watched(served, file)


@dataclass(frozen=True)
class Session:
    """What one client saw. appeared, certain: how late each of its words was, from its end; lags: those told.

    All in seconds.
    """

    appeared: Sequence[float]
    certain: Sequence[float]
    lags: Sequence[float] = ()


@dataclass(frozen=True)
class Streams:
    """What became of sessions at one time. step_s: the step asked for; refused: how many sessions were."""

    step_s: float
    sessions: Sequence[Session]
    refused: int
    noted: Noted

    @property
    def count(self) -> int:
        return len(self.sessions) + self.refused

    @property
    def open_looks_s(self) -> list[float]:
        """How long each look took at a segment that went on: another one is due after the step."""
        return [look.took_s for look in self.noted.looks if not look.last]

    @property
    def punctual(self) -> float:
        """The share of them that were done before the next one was due."""
        return float(np.mean([took_s <= self.step_s for took_s in self.open_looks_s] or [False]))

    @property
    def steady(self) -> float:
        """The share of looks after which the step was as asked for."""
        return float(np.mean([look.step_s <= self.step_s for look in self.noted.looks] or [False]))

    @property
    def lags(self) -> list[float]:
        return [lag for session in self.sessions for lag in session.lags]

    @property
    def keeps_up(self) -> bool:
        return not (self.refused or self.lags) and min(self.punctual, self.steady) >= ENOUGH

    def row(self) -> list[str]:
        looks, sessions = self.noted.looks, self.sessions
        slowest = max((float(np.median(session.appeared)) for session in sessions if session.appeared), default=0.0)
        return [
            f"{self.count}" + (f" ({self.refused} refused)" if self.refused else ""),
            f"{len(looks)}",
            _spread(self.open_looks_s),
            f"{self.punctual:.1%}",
            _spread([look.took_s for look in looks if look.last]),
            _spread([look.step_s for look in looks]),
            f"{self.steady:.1%}",
            _spread([delay for session in sessions for delay in session.appeared]),
            _spread([delay for session in sessions for delay in session.certain]),
            f"{slowest:.2f} s",
            f"{max(self.lags, default=0.0):.1f} s",
            f"{sum(look.model_s for look in looks) / self.noted.seconds:.0%}",
            f"{self.noted.cores:.2f}",
            "yes" if self.keeps_up else "no",
        ]


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    return f"{np.median(seconds):.2f}, {np.percentile(seconds, 95):.2f}, {max(seconds):.2f} s"


def table(measured: Sequence[Streams]) -> str:
    """In Markdown. Where three figures stand together, they are the median, the 95 % and the most."""
    step = f"{measured[0].step_s:g} s"
    head = [
        "sessions",
        "looks",
        "a look takes",
        f"within {step}",
        "a last look takes",
        "step",
        f"stays {step}",
        "word appears",
        "is certain",
        "slowest session's median",
        "lag told",
        "model busy",
        "cores busy",
        "keeps up",
    ]
    rows = [head, ["---"] * len(head), *(streams.row() for streams in measured)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def most(measured: Sequence[Streams]) -> int:
    """The most sessions that the server keeps up with, as it does with all smaller numbers that were tried; or 0."""
    kept_up = 0
    for streams in sorted(measured, key=lambda each: each.count):
        if not streams.keeps_up:
            break
        kept_up = streams.count
    return kept_up
