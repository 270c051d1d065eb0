"""Whose fault a wrong word near the seam of two pieces is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.transcript import Segment
from server.longform.joining import Joiner
from tests.long.talk import Pairs, Talk, normal

# A word is heard whole with all that is said so long before and after it, or up to a pause, and so much of the pause
# as there is around a sentence by itself. What is further from a seam is none of its.
AROUND_S, PAUSE_S = 1.0, 0.3
# How far a written word's time may be from when it was said.
NEAR_S = 0.6


@dataclass(frozen=True)
class Written:
    """What a piece of the audio was written as, before any merge. times_s: by word; None where there are none."""

    start_s: float
    end_s: float
    words: list[str]
    times_s: list[float] | None


class Noting(Joiner):
    """A joiner that notes what it is given in `pieces`."""

    def __init__(self, pieces: list[Written], overlap_s: float):
        super().__init__(overlap_s)
        self._pieces = pieces

    def add(self, segments: Sequence[Segment], start_s: float, end_s: float, overlap_s: float) -> tuple[Segment, ...]:
        words = normal(" ".join(segment.text for segment in segments).split())
        times_s = [word.start for segment in segments for word in segment.words]
        # A piece that was decoded again in halves: those were put together by a joiner of their own.
        while self._pieces and self._pieces[-1].start_s >= start_s:
            self._pieces.pop()
        self._pieces.append(Written(start_s, end_s, words, times_s if len(times_s) == len(words) else None))
        return super().add(segments, start_s, end_s, overlap_s)


@dataclass
class Faults:
    """Words near seams that are too many or missing, and which of them are the seams' fault.

    lost: said, and not in the text, though a piece wrote it (the merge dropped it) or because no piece heard it whole:
    each that has its sound lacks something that is said within a second of it and not beyond a pause.
    doubled: in the text, and not said, unless one piece alone wrote it between the same two words and not within a
    second of its own ends.
    by_model: the other ones, near a seam, but missing or made up in a piece that heard all that is said around.
    """

    doubled: int = 0
    lost: int = 0
    by_model: int = 0

    def __str__(self) -> str:
        return f"at their seams {self.doubled} words doubled, {self.lost} lost ({self.by_model} near them by the model)"


def at_seams(said: Talk, found: list[str], aligned: Pairs, pieces: list[Written]) -> Faults:
    """Faults in the text `found`, aligned to what was said; every word within a second of a seam is looked at."""
    seams = [(min(left.end_s, right.start_s), max(left.end_s, right.start_s)) for left, right in pairwise(pieces)]
    faults, words, at_s = Faults(), normal(said.words), 0.0
    for i, j in aligned:
        at_s = said.spoken[i][1] if i is not None else at_s
        if (i is not None and j is not None) or not any(a - AROUND_S < at_s < b + AROUND_S for a, b in seams):
            continue
        if i is None:
            is_own = any(_wrote_by_itself(piece, found[max(0, j - 1) : j + 2]) for piece in pieces)  # type: ignore[operator]
            faults.doubled += not is_own
        else:
            is_written = any(_wrote(piece, words[i], at_s) for piece in pieces)
            first_s, last_s = _around(said, i)
            is_own = not is_written and any(p.start_s <= first_s and last_s <= p.end_s for p in pieces)
            faults.lost += not is_own
        faults.by_model += is_own
    return faults


def _wrote(piece: Written, word: str, said_s: float) -> bool:
    """Whether a piece has a word where it was said. One without times is not merged: no word of it can be dropped."""
    times_s = piece.times_s or []
    return any(w == word and abs(t - said_s) <= NEAR_S for w, t in zip(piece.words, times_s, strict=False))


def _around(said: Talk, i: int) -> tuple[float, float]:
    """From when to when a piece must last to have heard a word whole."""
    _, start_s, end_s = said.spoken[i]
    first_s, last_s = start_s, end_s
    for _, begin, stop in reversed(said.spoken[:i]):
        if first_s - stop >= PAUSE_S:
            first_s -= PAUSE_S
            break
        if start_s - stop >= AROUND_S:
            break
        first_s = begin
    for _, begin, stop in said.spoken[i + 1 :]:
        if begin - last_s >= PAUSE_S:
            last_s += PAUSE_S
            break
        if begin - end_s >= AROUND_S:
            break
        last_s = stop
    return first_s, last_s


def _wrote_by_itself(piece: Written, words: list[str]) -> bool:
    """Whether a piece wrote these words one after the other, a second from its ends."""
    if piece.times_s is None:
        return False
    size = len(words)
    return any(
        piece.words[k : k + size] == words and piece.start_s + AROUND_S <= piece.times_s[k] <= piece.end_s - AROUND_S
        for k in range(len(piece.words) - size + 1)
    )
