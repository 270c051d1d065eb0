"""Tells whether the merge or the model caused a wrong word near the seam of two pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.transcript import Segment
from server.longform.joining import Joiner
from tests.long.talk import Pairs, Talk, normalized

# A piece has a word in full if it has everything spoken this long before and after it, or up to a pause, and this much
# of the pause. Words further from a seam than AROUND_S are not affected by it.
AROUND_S, PAUSE_S = 1.0, 0.3
# How far a transcribed word's time may be from when it was spoken.
NEAR_S = 0.6


@dataclass(frozen=True)
class PieceText:
    """The words of one piece before merging. times_s: the start of each word; None without word times."""

    start_s: float
    end_s: float
    words: list[str]
    times_s: list[float] | None


class RecordingJoiner(Joiner):
    """A joiner that records in `pieces` what it is given."""

    def __init__(self, pieces: list[PieceText], overlap_s: float):
        super().__init__(overlap_s)
        self._pieces = pieces

    def add(self, segments: Sequence[Segment], start_s: float, end_s: float, overlap_s: float) -> tuple[Segment, ...]:
        words = normalized(" ".join(segment.text for segment in segments).split())
        times_s = [word.start for segment in segments for word in segment.words]
        # Drop the halves of a piece that was decoded again in halves; they had their own joiner.
        while self._pieces and self._pieces[-1].start_s >= start_s:
            self._pieces.pop()
        self._pieces.append(PieceText(start_s, end_s, words, times_s if len(times_s) == len(words) else None))
        return super().add(segments, start_s, end_s, overlap_s)


@dataclass
class Faults:
    """Wrong words near seams, counted by cause.

    lost: spoken but not in the text, because the merge dropped it or because no piece had it in full.
    doubled: in the text but not spoken, unless a single piece has it between the same two words, more than a second
    from its own ends.
    by_model: missing or added words that are not the seam's fault, as a piece had the audio around them in full.
    """

    doubled: int = 0
    lost: int = 0
    by_model: int = 0

    def __str__(self) -> str:
        return f"at their seams {self.doubled} words doubled, {self.lost} lost ({self.by_model} near them by the model)"


def at_seams(talk: Talk, text: list[str], alignment: Pairs, pieces: list[PieceText]) -> Faults:
    """The faults within a second of any seam. alignment: of the talk's words with `text`, the transcript's words."""
    seams = [(min(left.end_s, right.start_s), max(left.end_s, right.start_s)) for left, right in pairwise(pieces)]
    faults, words, at_s = Faults(), normalized(talk.words), 0.0
    for i, j in alignment:
        at_s = talk.spoken[i][1] if i is not None else at_s
        if (i is not None and j is not None) or not any(a - AROUND_S < at_s < b + AROUND_S for a, b in seams):
            continue
        if i is None:
            is_by_model = any(_has_alone(piece, text[max(0, j - 1) : j + 2]) for piece in pieces)  # type: ignore[operator]
            faults.doubled += not is_by_model
        else:
            was_dropped = any(_has_at(piece, words[i], at_s) for piece in pieces)
            first_s, last_s = _context(talk, i)
            is_by_model = not was_dropped and any(p.start_s <= first_s and last_s <= p.end_s for p in pieces)
            faults.lost += not is_by_model
        faults.by_model += is_by_model
    return faults


def _has_at(piece: PieceText, word: str, spoken_s: float) -> bool:
    """Whether a piece has a word at its time. Pieces without times are not merged, so they lose no words."""
    times_s = piece.times_s or []
    return any(w == word and abs(t - spoken_s) <= NEAR_S for w, t in zip(piece.words, times_s, strict=False))


def _context(talk: Talk, i: int) -> tuple[float, float]:
    """The stretch of audio that a piece must contain to have a word in full."""
    _, start_s, end_s = talk.spoken[i]
    first_s, last_s = start_s, end_s
    for _, begin, stop in reversed(talk.spoken[:i]):
        if first_s - stop >= PAUSE_S:
            first_s -= PAUSE_S
            break
        if start_s - stop >= AROUND_S:
            break
        first_s = begin
    for _, begin, stop in talk.spoken[i + 1 :]:
        if begin - last_s >= PAUSE_S:
            last_s += PAUSE_S
            break
        if begin - end_s >= AROUND_S:
            break
        last_s = stop
    return first_s, last_s


def _has_alone(piece: PieceText, words: list[str]) -> bool:
    """Whether a piece has these consecutive words at least a second from its ends."""
    if piece.times_s is None:
        return False
    size = len(words)
    return any(
        piece.words[k : k + size] == words and piece.start_s + AROUND_S <= piece.times_s[k] <= piece.end_s - AROUND_S
        for k in range(len(piece.words) - size + 1)
    )
