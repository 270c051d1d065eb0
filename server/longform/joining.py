"""Joins the segments of pieces: merges the text of overlaps, and rejoins sentences that were cut in two."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from model.timestamps import SENTENCE_END
from model.transcript import Segment

# How far apart equal words of two pieces may be to count as the same word, with times and with estimated times.
SAME_S, SAME_UNTIMED_S = 0.6, 4.0
# A word this close to where its piece was cut may be only part of a word.
EDGE_S = 0.2
# A word this close to another one may have been written from the same sound.
BESIDE_S = 0.1
# One side is preferred if the odds of its words are this many times those of the other's. Probabilities above SURE
# count as equal.
SURER, SURE = 4.0, 0.99
# An overlap may be longer than requested because it begins at a quiet place, and its words' times may be off.
# Together at most this much.
LONGER_S = 1.5
# A sentence that continues in the next piece is rejoined up to this length, and over a gap of at most this length.
LONGEST_SENTENCE_S, GAP_S = 30.0, 1.5


@dataclass(frozen=True)
class OverlapWord:
    """A word, normalised for comparison, with its time and probability.

    is_timed: its time is known, not estimated; is_edge: it is where its piece was cut and may be only part of a word;
    is_part: it is taken to be only part of a word.
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
        """Whether their times overlap."""
        return self.start_s < other.end_s and other.start_s < self.end_s

    @property
    def is_likely(self) -> bool:
        return self.probability is None or self.probability >= 0.5


class Joiner:
    """Takes the segments of one piece after another and returns those that later pieces can no longer change.

    overlap_s: the overlap of the Cutting. Actual overlaps may be longer by up to LONGER_S.
    """

    def __init__(self, overlap_s: float):
        self._overlap_s = overlap_s
        self._pending: list[Segment] = []

    def add(self, segments: Sequence[Segment], start_s: float, end_s: float, overlap_s: float) -> tuple[Segment, ...]:
        """Add the piece from start_s to end_s, of which overlap_s repeat the previous one. Returns final segments."""
        new = list(segments)
        pending = self._pending
        if overlap_s and pending:
            pending, new = merged(pending, new, start_s, start_s + overlap_s)
        if pending and new and continues(pending[-1], new[0]):
            new[0] = joined(pending.pop(), new[0])
        all_segments = [*pending, *new]
        # The next piece may change what is within its overlap, and may continue the last sentence.
        open_from = end_s - self._overlap_s - LONGER_S
        final = next((i for i, s in enumerate(all_segments) if s.end > open_from), max(0, len(all_segments) - 1))
        self._pending = all_segments[final:]
        return tuple(all_segments[:final])

    def finish(self) -> tuple[Segment, ...]:
        """The remaining segments, after the last piece."""
        final, self._pending = tuple(self._pending), []
        return final


def continues(left: Segment, right: Segment) -> bool:
    """Whether a sentence was cut in two. Needs the words' times: segments without them are never rejoined."""
    return (
        bool(left.words and right.words)
        and not left.text.endswith(SENTENCE_END)
        and left.language == right.language
        and right.start - left.end <= GAP_S
        and right.end - left.start <= LONGEST_SENTENCE_S
    )


def joined(left: Segment, right: Segment) -> Segment:
    """Two segments as one, with the mean log probability weighted by tokens."""
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
    """The two sides of an overlap without duplicate words: the left side up to a seam, the right side from there."""
    left_words, right_words = overlap_words(left), overlap_words(right)
    keep, skip = best_seam(left_words, right_words, start_s, end_s)
    return (
        kept_words(left, [i < keep for i in range(len(left_words))]),
        kept_words(right, [j >= skip for j in range(len(right_words))]),
    )


def best_seam(
    left: Sequence[OverlapWord], right: Sequence[OverlapWord], start_s: float, end_s: float
) -> tuple[int, int]:
    """How many words of the left side to keep, and how many of the right side to skip.

    The overlap is from start_s, where the right piece begins, to end_s, where the left piece ends.
    """
    pairs = common_words(left, right, start_s, end_s)
    if not pairs and not all(any(start_s <= word.at_s <= end_s for word in side) for side in (left, right)):
        # Only one side has words in the overlap, so there are no duplicates.
        return len(left), 0
    agreed, centre = set(pairs), (start_s + end_s) / 2
    left, right = _with_edges(left, right, pairs, start_s, end_s)
    # A seam can be after a pair of common words, before all of the right side's words or after all of the left side's,
    # apart from a partial word that the other side has in full.
    first, last = _near(right, start_s, end_s)[0], _near(left, start_s, end_s)[-1]
    first += right[first].is_part and len(right) > 1
    last -= left[last].is_part and len(left) > 1
    begin, stop = right[first].start_s, left[last].end_s
    before = min([i for i, _ in pairs[:1]] + [sum(word.at_s < begin for word in left)]), first
    after = last + 1, max([j + 1 for _, j in pairs[-1:]] + [sum(word.at_s <= stop for word in right)])
    seams = [(before[0] - 1, before[1] - 1), *pairs, after]
    gaps = [(left[i + 1 : k], right[j + 1 : m]) for (i, j), (k, m) in pairwise(seams)]

    def lost(at: int) -> int:
        """How many words of the sides not taken would be missing from the text."""
        choices = [*gaps[:at], *((right_gap, left_gap) for left_gap, right_gap in gaps[at:])]
        return sum(_lost(kept, dropped) for kept, dropped in choices)

    def doubt(at: int) -> float:
        """How close a seam is to the pieces' ends, where words may be cut. Agreeing neighbours make it safer."""
        i, j = seams[at]
        if (i, j) not in agreed:
            return (end_s - start_s) / 2 + 4.0
        neighbours = ((i + d, j + d) in agreed for d in (-1, 1))
        return abs((left[i].at_s + right[j].at_s) / 2 - centre) + 2.0 * (2 - sum(neighbours))

    if not pairs and lost(0) == lost(1):
        return sum(word.at_s < centre for word in left), sum(word.at_s < centre for word in right)
    at = min(range(len(seams)), key=lambda at: (lost(at), doubt(at)))
    i, j = seams[at]
    return (i, j) if at == len(seams) - 1 else (i + 1, j + 1)


def _with_edges(
    left: Sequence[OverlapWord],
    right: Sequence[OverlapWord],
    pairs: Sequence[tuple[int, int]],
    start_s: float,
    end_s: float,
) -> tuple[list[OverlapWord], list[OverlapWord]]:
    """Both sides, with is_edge and is_part set for the words where their pieces were cut.

    Common words are never marked, nor is a timed word if the other side has nothing at its time.
    """
    left_common, right_common = {i for i, _ in pairs}, {j for _, j in pairs}
    left_only = [word for i, word in enumerate(left) if i not in left_common]
    right_only = [word for j, word in enumerate(right) if j not in right_common]

    def marked(word: OverlapWord, is_cut: bool, others: Sequence[OverlapWord]) -> OverlapWord:
        beside = [other for other in others if _is_beside(word, other)]
        if not is_cut or (word.is_timed and not beside):
            return word
        return replace(word, is_edge=True, is_part=bool(beside) and _odds([word]) < SURER * _odds(beside))

    def ends_at_cut(i: int, word: OverlapWord) -> bool:
        return i not in left_common and (word.end_s > end_s - EDGE_S if word.is_timed else i == len(left) - 1)

    def starts_at_cut(j: int, word: OverlapWord) -> bool:
        return j not in right_common and (word.start_s < start_s + EDGE_S if word.is_timed else j == 0)

    return (
        [marked(word, ends_at_cut(i, word), right_only) for i, word in enumerate(left)],
        [marked(word, starts_at_cut(j, word), left_only) for j, word in enumerate(right)],
    )


def _is_beside(word: OverlapWord, other: OverlapWord) -> bool:
    """Whether the other side's word is at the time of this one."""
    slack = BESIDE_S if other.is_timed else SAME_S
    return other.start_s - slack <= word.at_s <= other.end_s + slack


def _lost(kept: Sequence[OverlapWord], dropped: Sequence[OverlapWord]) -> int:
    """How many words are lost if, between two common words, one side is kept and the other dropped."""
    # A word at its piece's edge may be partial and does not count.
    lacking = max(0, sum(word.is_likely and not word.is_edge for word in dropped) - len(kept))
    if kept and dropped:
        kept_odds, dropped_odds = _odds(kept), _odds(dropped)
        if kept_odds >= SURER * dropped_odds:
            return 0
        if dropped_odds >= SURER * kept_odds:
            return max(1, lacking)
    return lacking


def _odds(words: Sequence[OverlapWord]) -> float:
    """The odds of the least probable word."""
    least = min(SURE if word.probability is None else min(word.probability, SURE) for word in words)
    return least / (1 - least)


def overlap_words(segments: Sequence[Segment]) -> list[OverlapWord]:
    """All words of the segments. A word without a time gets one estimated from its place in its segment's text."""
    words = []
    for segment in segments:
        if segment.words:
            words += [OverlapWord(_key(w.word), w.start, w.end, w.end > w.start, w.probability) for w in segment.words]
            continue
        at, length = 0, max(1, len(segment.text))
        for text in segment.text.split():
            first, last = (
                segment.start + place / length * (segment.end - segment.start) for place in (at, at + len(text))
            )
            words.append(OverlapWord(_key(text), first, last, False))
            at += len(text) + 1
    return words


def _near(words: Sequence[OverlapWord], start_s: float, end_s: float) -> list[int]:
    """The indices of the words in or near an overlap."""
    slack = [SAME_S if word.is_timed else SAME_UNTIMED_S for word in words]
    return [i for i, word in enumerate(words) if start_s - slack[i] <= word.end_s and word.start_s <= end_s + slack[i]]


def common_words(
    left: Sequence[OverlapWord], right: Sequence[OverlapWord], start_s: float, end_s: float
) -> list[tuple[int, int]]:
    """The longest common subsequence of two sides' words around an overlap, as pairs of indices.

    Of several equally long ones, the one whose words are closest in time.
    """
    rows, columns = _near(left, start_s, end_s), _near(right, start_s, end_s)
    best = [[0.0] * (len(columns) + 1) for _ in range(len(rows) + 1)]

    def score(row: int, column: int) -> float:
        return 1 - abs(left[rows[row]].at_s - right[columns[column]].at_s) / 1000

    for r in range(len(rows) - 1, -1, -1):
        for c in range(len(columns) - 1, -1, -1):
            best[r][c] = max(best[r + 1][c], best[r][c + 1])
            if _same(left[rows[r]], right[columns[c]]):
                best[r][c] = max(best[r][c], best[r + 1][c + 1] + score(r, c))
    pairs = []
    r = c = 0
    while r < len(rows) and c < len(columns):
        if _same(left[rows[r]], right[columns[c]]) and best[r][c] == best[r + 1][c + 1] + score(r, c):
            pairs.append((rows[r], columns[c]))
            r, c = r + 1, c + 1
        elif best[r + 1][c] >= best[r][c + 1]:
            r += 1
        else:
            c += 1
    return pairs


def _same(a: OverlapWord, b: OverlapWord) -> bool:
    """Whether two words of an overlap have the same text and are close enough in time to be the same word."""
    if a.key != b.key:
        return False
    return a.overlaps(b) or abs(a.at_s - b.at_s) <= (SAME_S if a.is_timed and b.is_timed else SAME_UNTIMED_S)


def _key(word: str) -> str:
    """A word without capitals and punctuation, for comparison."""
    return "".join(c for c in word.casefold() if c.isalnum()) or word


def kept_words(segments: Sequence[Segment], keep: Sequence[bool]) -> list[Segment]:
    """The segments with only some of their words. keep: for each word of all segments, whether to keep it."""
    result, at = [], 0
    for segment in segments:
        words = [word.word for word in segment.words] or segment.text.split()
        indices = [i for i in range(len(words)) if keep[at + i]]
        at += len(words)
        if len(indices) == len(words):
            result.append(segment)
        elif indices:
            result.append(_with_words(segment, words, indices))
    return result


def _with_words(segment: Segment, words: list[str], indices: list[int]) -> Segment:
    """A segment with only some of its words. Without word times it has no tokens: which belong to them is unknown."""
    timed = tuple(segment.words[i] for i in indices) if segment.words else ()
    tokens = tuple(token for word in timed for token in word.tokens)
    log_probs = [p for word in timed for p in word.log_probs]
    length = (segment.end - segment.start) / len(words)
    return replace(
        segment,
        start=timed[0].start if timed else segment.start + indices[0] * length,
        end=timed[-1].end if timed else segment.start + (indices[-1] + 1) * length,
        text=" ".join(words[i] for i in indices),
        tokens=tokens,
        words=timed,
        avg_logprob=sum(log_probs) / len(log_probs) if log_probs else segment.avg_logprob,
    )
