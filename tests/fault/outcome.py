"""What became of a load: counts, times and use of resources, as a table and as a picture."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

PATHS = {
    "wav": "/transcribe?language=de",
    "flac": "/transcribe?language=de",
    "stream": "/transcribe?language=de&stream=true",
    "translation": "/translate?language=de&target_language=en",
}
KINDS = tuple(PATHS)


@dataclass(frozen=True)
class Service:
    """A server. speed: seconds of audio that it can transcribe in a second; files: what it is sent, `file_s` long."""

    url: str
    process: psutil.Process
    speed: float
    files: dict[str, bytes]
    file_s: float
    texts: dict[str, str]
    """The right answer to each kind of request: the one it gave while it was otherwise idle."""


@dataclass
class Outcome:
    """What became of the load. Times in seconds; health: how long each answer of /health took."""

    service: Service
    factor: float
    seconds: float
    sent: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    """Of the requests that count: "right", "503 queue_full", or what else became of them."""
    good_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

    @property
    def offered(self) -> float:
        """The load that was really sent; less than `factor` if this machine is too busy for more."""
        return sum(self.sent[kind] for kind in KINDS) * self.service.file_s / self.service.speed / self.seconds

    @property
    def goodput(self) -> float:
        """Seconds of audio transcribed correctly in a second."""
        return self.good_s / self.seconds

    @property
    def health_p99_ms(self) -> float:
        return 1000 * statistics.quantiles(self.health, n=100)[98]

    @property
    def lost(self) -> Counter[str]:
        """The answers that are neither right nor a refusal."""
        return Counter({how: n for how, n in self.answers.items() if how not in ("right", "503 queue_full")})


def table(outcomes: list[Outcome]) -> str:
    """In Markdown, with the use of resources before and after each run."""
    rows = [
        "| load | requests | right | refused | lost | goodput, audio s/s | latency, median, 95 % | retry-after | "
        "/health 99 % | MB | descriptors | threads | children |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        slow = statistics.quantiles(outcome.latencies, n=20)
        retry = f"{statistics.median(outcome.retry_after):.0f} s" if outcome.retry_after else ""
        used = (f"{outcome.before[name]:.0f} → {outcome.after[name]:.0f}" for name in outcome.before)
        cells = [
            f"{outcome.factor:g}×",
            str(outcome.sent.total()),
            str(outcome.answers["right"]),
            str(outcome.answers["503 queue_full"]),
            str(outcome.lost.total()),
            f"{outcome.goodput:.1f} of {outcome.service.speed:.0f}",
            f"{slow[9]:.2f}, {slow[18]:.2f} s",
            retry,
            f"{outcome.health_p99_ms:.0f} ms",
            *used,
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(outcomes: list[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    names = [f"{outcome.factor:g}×" for outcome in outcomes]
    left.bar(names, [outcome.goodput for outcome in outcomes], color="#3b6ea5")
    left.axhline(outcomes[0].service.speed, color="black", linewidth=1, linestyle="--")
    left.set(title="Goodput", xlabel="load, of capacity", ylabel="seconds of audio per second")
    for outcome, name in zip(outcomes, names, strict=True):
        times = np.sort(outcome.health) * 1000
        right.plot(times, np.linspace(0, 100, len(times)), label=name)
    right.axvline(100, color="black", linewidth=1, linestyle="--")
    right.set(title="/health", xlabel="ms", ylabel="% answered within", xscale="log")
    right.legend(title="load")
    figure.savefig(path)
