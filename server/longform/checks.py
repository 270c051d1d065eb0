"""Checks a piece's text: finds text that repeats itself, words that nobody said, and speech without text."""

import math
import re
from collections.abc import Sequence

import numpy as np

from model.transcript import Segment, Word
from server.longform.cutting import LONG_PAUSE_S, SAMPLE_RATE, Piece
from server.longform.joining import kept_words, overlap_words

Spans = tuple[tuple[float, float], ...]
# Speech of this length without a word is transcribed again. If that fails, longer speech is reported as uncovered.
MISSED_S, UNCOVERED_S = 0.7, 2.0
# How far off a word's time may be. Words of a translation are often not at the time of what they translate.
NEAR_S, NEAR_TRANSLATED_S = 0.15, 1.0
# A word that extends across a long silence must be this probable to be kept.
SURE_IN_SILENCE = 0.8
# Text of speech that was transcribed again must have this mean log probability per token: a cough is not a word.
MIN_LOG_PROB = math.log(0.5)


def without_invented_words(piece: Piece, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The segments without words that the model invented in a long silence.

    These lie within the silence, or extend across much of it and are not probable.
    """
    if piece.speech is None:
        return tuple(segments)
    edges = [piece.start_s, *(at for span in piece.speech for at in span), piece.end_s]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    silences = [(begin, end) for begin, end in gaps if end - begin >= LONG_PAUSE_S]

    def is_spoken(word: Word) -> bool:
        is_sure = word.probability is None or word.probability >= SURE_IN_SILENCE
        for begin, end in silences:
            silent_s = min(word.end, end) - max(word.start, begin)
            if (begin <= word.start and word.end <= end) or (silent_s >= LONG_PAUSE_S and not is_sure):
                return False
        return True

    keep = [is_spoken(word) for segment in segments for word in segment.words]
    return tuple(segments) if all(keep) else tuple(kept_words([s for s in segments if s.words], keep))


def covered_spans(piece: Piece, segments: Sequence[Segment], attention: np.ndarray | None) -> Spans:
    """The stretches of audio that have text: the words' times or, without those, each token's peak of attention.

    attention: (tokens, steps); without it, a segment covers all of its time.
    """
    words = [(word.start, word.end) for segment in segments for word in segment.words]
    if words or attention is None or not segments:
        return tuple(words or ((segment.start, segment.end) for segment in segments))
    step_s = len(piece.waveform) / SAMPLE_RATE / attention.shape[1]
    starts = piece.start_s + step_s * attention.argmax(axis=1)
    return tuple((start, start + step_s) for start in starts.tolist())


def missed_speech(speech: Spans, covered: Spans, near_s: float, shortest_s: float) -> Spans:
    """The stretches of speech without text that are at least shortest_s long. near_s: how far off covered may be."""
    missed: list[tuple[float, float]] = []
    for start, end in speech:
        at = start
        for begin, stop in [*sorted(covered), (end + near_s, end + near_s)]:
            if stop + near_s <= at:
                continue
            if min(begin - near_s, end) - at >= shortest_s:
                missed.append((at, min(begin - near_s, end)))
            at = max(at, stop + near_s)
            if at >= end:
                break
    return tuple(missed)


def insert_words(
    segments: Sequence[Segment], found: Sequence[Segment], start: float, end: float
) -> tuple[Segment, ...]:
    """The segments with the found words between start and end inserted, unless these are improbable."""
    new = kept_words(found, [start <= word.at_s <= end for word in overlap_words(found)])
    log_probs = [p for segment in new for word in segment.words for p in word.log_probs]
    if log_probs and sum(log_probs) / len(log_probs) < MIN_LOG_PROB:
        return tuple(segments)
    middle, new_words, old_words = (start + end) / 2, overlap_words(new), overlap_words(segments)
    # An old word that overlaps an equal new one is the same word with a wrong time.
    keep = [not any(old.key == word.key and old.overlaps(word) for word in new_words) for old in old_words]
    earlier = [old.at_s < middle for old in old_words]
    return (
        *kept_words(segments, [a and b for a, b in zip(keep, earlier, strict=True)]),
        *new,
        *kept_words(segments, [a and not b for a, b in zip(keep, earlier, strict=True)]),
    )


# {words in a phrase: how often in a row make it a loop}. Nobody speaks like that.
_REPEATS = {1: 6, 2: 4, 3: 4, 4: 3, 5: 3, 6: 3, 7: 3, 8: 3, 9: 3, 10: 3}
# One to eight letters, eight times or more in a row: "tatatatatatatata".
_WITHIN_WORD = re.compile(r"(\w{1,8}?)\1{7,}")


def is_loop(text: str) -> bool:
    """Whether a phrase, a word or part of a word is repeated over and over: "a a a a a a", "abababab…"."""
    words = text.casefold().split()
    return bool(_WITHIN_WORD.search(text)) or any(
        _longest_run(words, length) >= times for length, times in _REPEATS.items()
    )


def _longest_run(words: Sequence[str], length: int) -> int:
    """How often in a row, at most, a phrase of `length` words occurs."""
    longest = same = 0
    for i in range(length, len(words)):
        same = same + 1 if words[i] == words[i - length] else 0
        longest = max(longest, same)
    return longest // length + 1 if words else 0
