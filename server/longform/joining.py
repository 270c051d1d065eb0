"""Pieces' segments into one row of segments: overlaps are merged, and sentences that a cut went through joined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from model.timestamps import SENTENCE_END
from model.transcript import Segment

# Words of the two sides are taken for the same no further apart than this; a word without a time is only guessed at.
SAME_S, SAME_UNTIMED_S = 0.6, 4.0
# A word that is no further from where its piece was cut may be part of one.
EDGE_S = 0.2
# A word that is no further from another's time than this may be the same sound.
BESIDE_S = 0.1
# How many times the odds of one side's words must be those of the other's to be believed over them; and the
# probability above which differences mean nothing.
SURER, SURE = 4.0, 0.99
# How much longer than asked for an overlap may be, which begins at a quiet place, and how far off its words' times.
LONGER_S = 1.5
# A sentence that goes on in the next piece is joined up to this length, over no longer a gap.
LONGEST_SENTENCE_S, GAP_S = 30.0, 1.5


@dataclass(frozen=True)
class OverlapWord:
    """A word and where it is from.

    is_timed: its time is its own; is_edge: it is where its piece was cut, and may be part of a word; is_part: it is.
    """

    key: str
    start_s: float
    end_s: float
    is_timed: bool
    probability: float | None = None
    is_edge: bool = False
    is_part: bool = False

    @property
    def at_s(self) -> float:
        return (self.start_s + self.end_s) / 2

    def overlaps(self, other: "OverlapWord") -> bool:
        """Whether they share some time."""
        return self.start_s < other.end_s and other.start_s < self.end_s

    @property
    def is_likely(self) -> bool:
        return self.probability is None or self.probability >= 0.5


class Joiner:
    """Takes the segments of piece after piece; gives back those that what follows cannot change any more.

    overlap_s: what pieces are to share; the overlap of two may be longer by what a Cutting looks for a quiet place in.
    """

    def __init__(self, overlap_s: float):
        self._overlap_s = overlap_s
        self._pending: list[Segment] = []

    def add(self, segments: Sequence[Segment], start_s: float, end_s: float, overlap_s: float) -> tuple[Segment, ...]:
        """The segments of the piece from start_s to end_s, which shares its first overlap_s with the one before."""
        new = list(segments)
        left = self._pending
        if overlap_s and left:
            left, new = merged(left, new, start_s, start_s + overlap_s)
        if left and new and goes_on(left[-1], new[0]):
            new[0] = joined(left.pop(), new[0])
        final = [*left, *new]
        open_from = end_s - self._overlap_s - LONGER_S
        held = next((i for i, s in enumerate(final) if s.end > open_from), max(0, len(final) - 1))
        self._pending = final[held:]
        return tuple(final[:held])

    def finish(self) -> tuple[Segment, ...]:
        """What was still held back."""
        final, self._pending = tuple(self._pending), []
        return final


def goes_on(left: Segment, right: Segment) -> bool:
    """Whether a sentence was cut in two. Told by its words' times: untimed segments are left as they are."""
    return (
        bool(left.words and right.words)
        and not left.text.endswith(SENTENCE_END)
        and left.language == right.language
        and right.start - left.end <= GAP_S
        and right.end - left.start <= LONGEST_SENTENCE_S
    )


def joined(left: Segment, right: Segment) -> Segment:
    """Two segments as one."""
    counts = len(left.tokens), len(right.tokens)
    known = [(s.avg_logprob, n) for s, n in zip((left, right), counts, strict=True) if s.avg_logprob is not None and n]
    return replace(
        left,
        end=right.end,
        text=f"{left.text} {right.text}",
        tokens=left.tokens + right.tokens,
        words=left.words + right.words,
        avg_logprob=sum(p * n for p, n in known) / sum(n for _, n in known) if known else None,
    )


def merged(
    left: Sequence[Segment], right: Sequence[Segment], start_s: float, end_s: float
) -> tuple[list[Segment], list[Segment]]:
    """Both sides of an overlap without what is said twice: each side up to, and from, a word that they agree on."""
    ours, theirs = overlap_words(left), overlap_words(right)
    keep, skip = best_seam(ours, theirs, start_s, end_s)
    return (
        kept_words(left, [place < keep for place in range(len(ours))]),
        kept_words(right, [place >= skip for place in range(len(theirs))]),
    )


def best_seam(
    ours: Sequence[OverlapWord], theirs: Sequence[OverlapWord], start_s: float, end_s: float
) -> tuple[int, int]:
    """How many words of the left side are kept, and how many of the right side are left out.

    The left side's piece was cut at end_s, the right side's at start_s.
    """
    pairs = common(ours, theirs, start_s, end_s)
    if not pairs and not all(any(start_s <= bit.at_s <= end_s for bit in side) for side in (ours, theirs)):
        # What one side alone wrote, the other one passed over.
        return len(ours), 0
    agreed, centre = set(pairs), (start_s + end_s) / 2
    ours, theirs = _with_edges(ours, theirs, pairs, start_s, end_s)
    # A seam may be after a pair, before all that the right side has, or after all that the left one has; but for part
    # of a word which the other side has otherwise.
    first, last = _near(theirs, start_s, end_s)[0], _near(ours, start_s, end_s)[-1]
    first += theirs[first].is_part and len(theirs) > 1
    last -= ours[last].is_part and len(ours) > 1
    begin, stop = theirs[first].start_s, ours[last].end_s
    before = min([i for i, _ in pairs[:1]] + [sum(bit.at_s < begin for bit in ours)]), first
    after = last + 1, max([j + 1 for _, j in pairs[-1:]] + [sum(bit.at_s <= stop for bit in theirs)])
    seams = [(before[0] - 1, before[1] - 1), *pairs, after]
    gaps = [(ours[i + 1 : k], theirs[j + 1 : m]) for (i, j), (k, m) in pairwise(seams)]

    def lost(at: int) -> int:
        """Words of the side that is not taken which should be had."""
        taken = [(own, other) for own, other in gaps[:at]] + [(own, other) for other, own in gaps[at:]]
        return sum(_lost(own, other) for own, other in taken)

    def doubt(at: int) -> float:
        """How near a seam is to the pieces' edges, where words may be cut; neighbours that agree make it safer."""
        i, j = seams[at]
        if (i, j) not in agreed:
            return (end_s - start_s) / 2 + 4.0
        neighbours = ((i + d, j + d) in agreed for d in (-1, 1))
        return abs((ours[i].at_s + theirs[j].at_s) / 2 - centre) + 2.0 * (2 - sum(neighbours))

    if not pairs and lost(0) == lost(1):
        return sum(bit.at_s < centre for bit in ours), sum(bit.at_s < centre for bit in theirs)
    at = min(range(len(seams)), key=lambda at: (lost(at), doubt(at)))
    i, j = seams[at]
    return (i, j) if at == len(seams) - 1 else (i + 1, j + 1)


def _with_edges(
    ours: Sequence[OverlapWord],
    theirs: Sequence[OverlapWord],
    pairs: Sequence[tuple[int, int]],
    start_s: float,
    end_s: float,
) -> tuple[list[OverlapWord], list[OverlapWord]]:
    """Both sides, with the words marked that are where their pieces were cut and may be part of one that the other side
    has there; one that both agree on is neither."""
    left, right = {i for i, _ in pairs}, {j for _, j in pairs}
    mine = [bit for i, bit in enumerate(ours) if i not in left]
    yours = [bit for j, bit in enumerate(theirs) if j not in right]

    def marked(bit: OverlapWord, is_cut: bool, others: Sequence[OverlapWord]) -> OverlapWord:
        beside = [other for other in others if _is_beside(bit, other)]
        if not is_cut or (bit.is_timed and not beside):
            return bit
        return replace(bit, is_edge=True, is_part=bool(beside) and _odds([bit]) < SURER * _odds(beside))

    return (
        [
            marked(bit, i not in left and (bit.end_s > end_s - EDGE_S if bit.is_timed else i == len(ours) - 1), yours)
            for i, bit in enumerate(ours)
        ],
        [
            marked(bit, j not in right and (bit.start_s < start_s + EDGE_S if bit.is_timed else j == 0), mine)
            for j, bit in enumerate(theirs)
        ],
    )


def _is_beside(bit: OverlapWord, other: OverlapWord) -> bool:
    """Whether another word is at its time."""
    slack = BESIDE_S if other.is_timed else SAME_S
    return other.start_s - slack <= bit.at_s <= other.end_s + slack


def _lost(own: Sequence[OverlapWord], other: Sequence[OverlapWord]) -> int:
    """How many words are lost if, between two that are agreed on, one side is taken and not the other."""
    # What is at a piece's edge may be part of a word and does not count.
    lacking = max(0, sum(bit.is_likely and not bit.is_edge for bit in other) - len(own))
    if own and other:
        ours, theirs = _odds(own), _odds(other)
        if ours >= SURER * theirs:
            return 0
        if theirs >= SURER * ours:
            return max(1, lacking)
    return lacking


def _odds(side: Sequence[OverlapWord]) -> float:
    """Of the least probable word."""
    least = min(SURE if bit.probability is None else min(bit.probability, SURE) for bit in side)
    return least / (1 - least)


def overlap_words(segments: Sequence[Segment]) -> list[OverlapWord]:
    """Every word; one without any time is guessed to be where its letters are in its segment."""
    found = []
    for segment in segments:
        if segment.words:
            found += [OverlapWord(_key(w.word), w.start, w.end, w.end > w.start, w.probability) for w in segment.words]
            continue
        at, length = 0, max(1, len(segment.text))
        for word in segment.text.split():
            first, last = (
                segment.start + place / length * (segment.end - segment.start) for place in (at, at + len(word))
            )
            found.append(OverlapWord(_key(word), first, last, False))
            at += len(word) + 1
    return found


def _near(side: Sequence[OverlapWord], start_s: float, end_s: float) -> list[int]:
    """The places of the words around an overlap."""
    slack = [SAME_S if bit.is_timed else SAME_UNTIMED_S for bit in side]
    return [i for i, bit in enumerate(side) if start_s - slack[i] <= bit.end_s and bit.start_s <= end_s + slack[i]]


def common(
    ours: Sequence[OverlapWord], theirs: Sequence[OverlapWord], start_s: float, end_s: float
) -> list[tuple[int, int]]:
    """The longest common subsequence of two sides' words around an overlap, as pairs of places.

    Of those that are as long, the one whose words are nearest in time.
    """
    rows, columns = _near(ours, start_s, end_s), _near(theirs, start_s, end_s)
    best = [[0.0] * (len(columns) + 1) for _ in range(len(rows) + 1)]

    def worth(row: int, column: int) -> float:
        return 1 - abs(ours[rows[row]].at_s - theirs[columns[column]].at_s) / 1000

    for r in range(len(rows) - 1, -1, -1):
        for c in range(len(columns) - 1, -1, -1):
            best[r][c] = max(best[r + 1][c], best[r][c + 1])
            if _same(ours[rows[r]], theirs[columns[c]]):
                best[r][c] = max(best[r][c], best[r + 1][c + 1] + worth(r, c))
    pairs = []
    r = c = 0
    while r < len(rows) and c < len(columns):
        if _same(ours[rows[r]], theirs[columns[c]]) and best[r][c] == best[r + 1][c + 1] + worth(r, c):
            pairs.append((rows[r], columns[c]))
            r, c = r + 1, c + 1
        elif best[r + 1][c] >= best[r][c + 1]:
            r += 1
        else:
            c += 1
    return pairs


def _same(a: OverlapWord, b: OverlapWord) -> bool:
    if a.key != b.key:
        return False
    return a.overlaps(b) or abs(a.at_s - b.at_s) <= (SAME_S if a.is_timed and b.is_timed else SAME_UNTIMED_S)


def _key(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum()) or word


def kept_words(segments: Sequence[Segment], kept: Sequence[bool]) -> list[Segment]:
    """The segments with those of their words, counted over all of them, that are to be kept."""
    found, at = [], 0
    for segment in segments:
        words = [word.word for word in segment.words] or segment.text.split()
        places = [i for i in range(len(words)) if kept[at + i]]
        at += len(words)
        if len(places) == len(words):
            found.append(segment)
        elif places:
            found.append(_part(segment, words, places))
    return found


def _part(segment: Segment, words: list[str], places: list[int]) -> Segment:
    """Some words of a segment. Without times, which of its tokens wrote them is not told."""
    timed = tuple(segment.words[i] for i in places) if segment.words else ()
    tokens = tuple(token for word in timed for token in word.tokens)
    known = [p for word in timed for p in word.log_probs]
    length = (segment.end - segment.start) / len(words)
    return replace(
        segment,
        start=timed[0].start if timed else segment.start + places[0] * length,
        end=timed[-1].end if timed else segment.start + (places[-1] + 1) * length,
        text=" ".join(words[i] for i in places),
        tokens=tokens,
        words=timed,
        avg_logprob=sum(known) / len(known) if known else segment.avg_logprob,
    )
