"""Comparing a piece's text with its speech."""

import numpy as np
import pytest

from model.transcript import Segment, Word
from server.longform.cutting import SAMPLE_RATE, Piece
from server.longform.pieces import covered_spans, insert_words, missed_speech, without_invented_words

SPEECH = ((10.0, 14.0), (17.0, 19.0))
PIECE = Piece(10.0, np.zeros(10 * SAMPLE_RATE, np.float32), speech=SPEECH)


def segment(*words: tuple[str, float, float], log_prob: float = -0.1) -> Segment:
    placed = tuple(Word(text, start, end, None, (1,), (log_prob,)) for text, start, end in words)
    return Segment(words[0][1], words[-1][2], " ".join(text for text, _, _ in words), (1,) * len(words), placed)


def test_only_words_inside_a_long_silence_are_removed():
    segments = [segment(("The", 13.6, 14.1), ("dog", 14.1, 14.4), ("runs.", 15.0, 15.4), ("Now", 16.8, 17.2))]
    (kept,) = without_invented_words(PIECE, segments)
    assert (kept.text, kept.start, kept.end) == ("The Now", 13.6, 17.2)
    assert without_invented_words(Piece(10.0, PIECE.waveform), segments) == tuple(segments)
    short_pause = Piece(10.0, PIECE.waveform, speech=((10.0, 14.0), (15.4, 19.0)))
    assert without_invented_words(short_pause, segments) == tuple(segments)


def test_a_word_across_a_long_silence_is_kept_only_if_it_is_probable():
    def segments(probability: float | None) -> list[Segment]:
        words = (Word("One", 10.1, 10.5, 0.3), Word("dog", 13.8, 17.3, probability), Word("runs.", 17.4, 17.8, 0.3))
        return [Segment(10.1, 17.8, "One dog runs.", (), words)]

    for probability, text in ((0.7, "One runs."), (0.95, "One dog runs."), (None, "One dog runs.")):
        assert [segment.text for segment in without_invented_words(PIECE, segments(probability))] == [text]


def test_text_covers_its_words_times_or_else_its_tokens_peaks_of_attention():
    timed = segment(("a", 10.5, 11.0), ("b", 12.0, 12.5))
    assert covered_spans(PIECE, [timed], None) == ((10.5, 11.0), (12.0, 12.5))
    untimed = Segment(10.0, 20.0, "a b", (1, 2))
    attention = np.eye(100)[[5, 40]]
    assert np.array(covered_spans(PIECE, [untimed], attention)) == pytest.approx(np.array([[10.5, 10.6], [14.0, 14.1]]))
    assert covered_spans(PIECE, [untimed], None) == ((10.0, 20.0),)
    assert covered_spans(PIECE, [], attention) == ()


def test_speech_far_from_any_word_is_missed():
    def missed(*covered: tuple[float, float]) -> list[tuple[float, float]]:
        return [(round(a, 2), round(b, 2)) for a, b in missed_speech(SPEECH, covered, 0.15, 0.7)]

    assert missed() == [(10.0, 14.0), (17.0, 19.0)]
    assert missed((10.2, 14.0), (17.3, 18.5)) == []
    assert missed((10.0, 11.0), (12.5, 14.2)) == [(11.15, 12.35), (17.0, 19.0)]
    assert missed((10.0, 11.0), (11.9, 18.0)) == [(18.15, 19.0)]


def test_found_words_are_inserted_at_their_times():
    segments = [segment(("One", 10.0, 10.4), ("four.", 12.6, 13.0)), segment(("Five.", 13.2, 13.6))]
    found = [segment(("One", 10.0, 10.4), ("two", 11.0, 11.4), ("three", 11.8, 12.2), ("four.", 12.6, 13.0))]
    assert [s.text for s in insert_words(segments, found, 10.5, 12.5)] == ["One", "two three", "four.", "Five."]
    assert insert_words((), found, 10.5, 12.5)[0].text == "two three"


def test_a_word_with_a_wrong_time_that_is_found_again_is_not_duplicated():
    found = [segment(("Where", 11.0, 11.4), ("is", 11.5, 11.8), ("it?", 11.9, 12.2))]
    for misplaced in (("Where", 11.1, 11.1), ("where", 7.0, 11.2)):
        segments = [segment(("One", 6.0, 6.4), misplaced, ("four.", 12.6, 13.0))]
        assert [s.text for s in insert_words(segments, found, 11.05, 12.5)] == ["One", "Where is it?", "four."]
    segments = [segment(("Where?", 10.5, 11.0), ("four.", 12.6, 13.0))]
    assert [s.text for s in insert_words(segments, found, 11.05, 12.5)] == ["Where?", "Where is it?", "four."]


def test_found_words_that_are_improbable_are_left_out():
    segments = [segment(("One", 10.0, 10.4), ("four.", 12.6, 13.0))]
    cough = [segment(("Thank", 11.0, 11.4), ("you.", 11.8, 12.2), log_prob=-1.2)]
    assert insert_words(segments, cough, 10.5, 12.5) == tuple(segments)
