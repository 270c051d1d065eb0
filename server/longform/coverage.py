"""A piece's text held against its speech: words that nobody said, and speech that nobody wrote."""

import math
from collections.abc import Sequence

import numpy as np

from model.transcript import Segment, Word
from server.longform.cutting import LONG_PAUSE_S, SAMPLE_RATE, Piece
from server.longform.joining import kept_words, overlap_words

Spans = tuple[tuple[float, float], ...]
# Speech without a word for so long was passed over; and is said to be without text if nothing helps and it is longer.
MISSED_S, UNCOVERED_S = 0.7, 2.0
# How far off a word's time may be. A translation's words are hardly where their sense was said.
NEAR_S, NEAR_TRANSLATED_S = 0.15, 1.0
# A word whose time goes through a long silence must be this probable.
SURE_IN_SILENCE = 0.8
# What is found in such speech by itself must be this probable, a token: a cough is no word.
LEAST_LOG_PROB = math.log(0.5)


def without_invented_words(piece: Piece, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The segments without words that were made up in a long silence: they are all in it, or unsure and largely so."""
    if piece.speech is None:
        return tuple(segments)
    edges = [piece.start_s, *(at for span in piece.speech for at in span), piece.end_s]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    silences = [(begin, end) for begin, end in gaps if end - begin >= LONG_PAUSE_S]

    def is_said(word: Word) -> bool:
        is_sure = word.probability is None or word.probability >= SURE_IN_SILENCE
        for begin, end in silences:
            silent_s = min(word.end, end) - max(word.start, begin)
            if (begin <= word.start and word.end <= end) or (silent_s >= LONG_PAUSE_S and not is_sure):
                return False
        return True

    kept = [is_said(word) for segment in segments for word in segment.words]
    return tuple(segments) if all(kept) else tuple(kept_words([s for s in segments if s.words], kept))


def written_at(piece: Piece, segments: Sequence[Segment], attention: np.ndarray | None) -> Spans:
    """What of the audio was written from: its words' times; without those, where each token's attention is highest.

    attention: (tokens, steps); without it a segment stands for all of its time.
    """
    words = [(word.start, word.end) for segment in segments for word in segment.words]
    if words or attention is None or not segments:
        return tuple(words or ((segment.start, segment.end) for segment in segments))
    step_s = len(piece.waveform) / SAMPLE_RATE / attention.shape[1]
    starts = piece.start_s + step_s * attention.argmax(axis=1)
    return tuple((start, start + step_s) for start in starts.tolist())


def passed_over(speech: Spans, written: Spans, near_s: float, shortest_s: float) -> Spans:
    """The stretches of speech, at least so long, that nothing was written from."""
    found: list[tuple[float, float]] = []
    for start, end in speech:
        at = start
        for begin, stop in [*sorted(written), (end + near_s, end + near_s)]:
            if stop + near_s <= at:
                continue
            if min(begin - near_s, end) - at >= shortest_s:
                found.append((at, min(begin - near_s, end)))
            at = max(at, stop + near_s)
            if at >= end:
                break
    return tuple(found)


def put_in(segments: Sequence[Segment], found: Sequence[Segment], start: float, end: float) -> tuple[Segment, ...]:
    """The segments with those found words in their place that were said between start and end; if they are probable."""
    new = kept_words(found, [start <= bit.at_s <= end for bit in overlap_words(found)])
    known = [p for segment in new for word in segment.words for p in word.log_probs]
    if known and sum(known) / len(known) < LEAST_LOG_PROB:
        return tuple(segments)
    middle, added = (start + end) / 2, overlap_words(new)
    # A word before or after may be a found one's, with a time that was off.
    stays = [
        not any(bit.key == other.key and bit.overlaps(other) for other in added) for bit in overlap_words(segments)
    ]
    earlier = [bit.at_s < middle for bit in overlap_words(segments)]
    return (
        *kept_words(segments, [a and b for a, b in zip(stays, earlier, strict=True)]),
        *new,
        *kept_words(segments, [a and not b for a, b in zip(stays, earlier, strict=True)]),
    )
