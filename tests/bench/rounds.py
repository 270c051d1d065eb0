"""The rounds of a comparison: what each side is asked, how often, and what is made of its answers."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from server.cli.bench.load import MIXED_LENGTHS
from server.cli.bench.stages import TOKENS_PER_S
from server.cli.doctor import sounds

STAGES = ("features", "encode", "decode")
ROUNDS = 3
# That a side works on a case, in all rounds together.
ENOUGH_S = 20.0

Answer = dict[str, Any]


class Asked(Protocol):
    """A side of the comparison."""

    name: str

    def asked(self, job: dict[str, Any]) -> Answer: ...


@dataclass(frozen=True)
class Case:
    """Audios that are given together, by their seconds."""

    name: str
    lengths: tuple[float, ...]

    @property
    def tokens(self) -> list[int]:
        """How many a Canary writes for each."""
        return [round(TOKENS_PER_S * seconds) for seconds in self.lengths]

    def waveforms(self) -> list[np.ndarray]:
        """Speech-like sounds, each (N,) float32 at 16 kHz, no two the same."""
        speech = sounds.sound("12s")
        sizes = [round(seconds * sounds.SAMPLE_RATE) for seconds in self.lengths]
        # Over and over, each from another place.
        return [np.resize(np.roll(speech, -11_003 * number), size) for number, size in enumerate(sizes)]


def case_of(text: str) -> Case:
    """`10`: one audio of 10 s; `16x10`: sixteen of them; `4xmixed`: four of mixed lengths."""
    rows, _, seconds = text.partition("x") if "x" in text else ("", "", text)
    count = int(rows or 1)
    if seconds == "mixed":
        lengths = tuple(MIXED_LENGTHS[i % len(MIXED_LENGTHS)] for i in range(count))
        return Case(f"{count} of {min(lengths):g} to {max(lengths):g} s", lengths)
    name = f"{count} of {float(seconds):g} s" if rows else f"{float(seconds):g} s"
    return Case(name, (float(seconds),) * count)


def measured(sides: Sequence[Asked], job: dict[str, Any], rounds: int, enough_s: float) -> dict[str, list[Answer]]:
    """The answers of each side to the same job, the first one not counted: it warms up exactly what is measured.

    In each round the sides take turns, so that whatever else the machine does falls on all of them. In its turn a side
    does the job once, and again until it has worked for its share of `enough_s`. One that fails is not asked again.
    """
    answers: dict[str, list[Answer]] = {}
    for side in sides:
        warm_up = side.asked(job)
        answers[side.name] = [warm_up] if "error" in warm_up else []
    for _ in range(rounds):
        for side in sides:
            spent = 0.0
            while spent == 0.0 or spent < enough_s / rounds:
                if answers[side.name] and "error" in answers[side.name][-1]:
                    break
                answers[side.name].append(side.asked(job))
                spent += answers[side.name][-1].get("total", 0.0)
    return answers


def figures(answers: list[Answer], ours: Answer, audio_s: float, wanted: list[int]) -> dict[str, Any]:
    """What a side's answers say: [min, median, max] of the clock's and the CPU's seconds, medians of the stages.

    ours: an answer of our side in float32; wanted: see `wrong_counts`.
    """
    if error := next((answer["error"] for answer in answers if "error" in answer), None):
        return {"error": error}
    counts = [len(row) for row in answers[0]["tokens"]]
    if error := wrong_counts(counts, [len(row) for row in ours["tokens"]], wanted):
        return {"error": error}
    result: dict[str, Any] = {stage: statistics.median(answer[stage] for answer in answers) for stage in STAGES}
    for clock in ("total", "cpu"):
        seconds = [answer[clock] for answer in answers]
        result[clock] = [min(seconds), statistics.median(seconds), max(seconds)]
    result["rtfx"] = [audio_s / seconds for seconds in reversed(result["total"])]
    result["tokens"] = sum(counts)
    rows = zip(ours["tokens"], answers[0]["tokens"], strict=True)
    # A row that was written on to the longest one's end is compared as far as ours goes.
    pairs = [pair for a, b in rows for pair in zip(a, b)]  # noqa: B905
    result["same_tokens"] = sum(a == b for a, b in pairs) / max(len(pairs), 1)
    result["rounds"] = len(answers)
    return result


def wrong_counts(counts: list[int], ours: list[int], wanted: list[int]) -> str | None:
    """What is wrong with the numbers of tokens that a side has written; None if nothing is.

    wanted: how many it was asked to write for each audio, or for all of them as many as for the longest. Empty if the
    model ends its texts by itself: then each must be ours, give or take the one of a last step that some leave out.
    """
    if wanted:
        if counts in (wanted, [max(wanted)] * len(wanted)):
            return None
        return f"wrote {_listed(counts)} tokens instead of {_listed(wanted)}"
    if len(counts) == len(ours) and all(abs(n - m) <= 1 for n, m in zip(counts, ours, strict=True)):
        return None
    return f"wrote {_listed(counts)} tokens where canary-server writes {_listed(ours)}"


def _listed(counts: list[int]) -> str:
    return ", ".join(str(n) for n in counts)
