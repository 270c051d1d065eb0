"""Where long audio is cut, tested on the toy's recordings."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from server.longform.cutting import SAMPLE_RATE, Cutting, cut, is_silent

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"
CUTTING = Cutting(10.0, 15.0, 2.0)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """About 8 s of speech."""
    return soundfile.read(SAMPLES / "en.flac", dtype="float32")[0]


def blocks(audio: np.ndarray, size: int = 30_000):
    return (audio[i : i + size] for i in range(0, len(audio), size))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def test_audio_that_fits_into_one_pass_is_one_unchanged_piece(speech):
    (piece,) = cut(blocks(speech), CUTTING)
    assert (piece.start_s, piece.overlap_s, piece.speech, piece.within_sound) == (0.0, 0.0, None, False)
    assert np.array_equal(piece.waveform, speech)


def test_pieces_end_in_pauses_and_start_at_their_start_time(speech):
    audio = np.concatenate([speech, silence(0.8)] * 6)
    pieces = list(cut(blocks(audio), CUTTING))
    assert len(pieces) >= 4
    for piece in pieces:
        assert 3 < len(piece.waveform) / SAMPLE_RATE <= 15
        first = round(piece.start_s * SAMPLE_RATE)
        assert np.array_equal(piece.waveform, audio[first : first + len(piece.waveform)])
        assert (piece.overlap_s, piece.within_sound) == (0, False)
        # The last 50 ms are quiet.
        assert np.abs(piece.waveform[-800:]).max() < 0.02
    kept = sum(len(piece.waveform) for piece in pieces) / SAMPLE_RATE
    assert kept > 6 * len(speech) / SAMPLE_RATE - 1


def test_silence_gives_no_pieces_and_a_long_silence_ends_a_piece(speech):
    assert list(cut(blocks(silence(100)), CUTTING)) == []
    pieces = list(cut(blocks(np.concatenate([silence(60), speech, silence(30), speech, silence(50)])), CUTTING))
    starts = [piece.start_s for piece in pieces]
    assert starts == pytest.approx([59.8, 59.8 + len(speech) / SAMPLE_RATE + 30], abs=0.8)
    assert all(len(piece.waveform) <= len(speech) + 2 * SAMPLE_RATE for piece in pieces)


def test_without_pauses_pieces_have_about_the_longest_length_and_overlap(speech):
    audio = np.tile(speech[int(0.5 * SAMPLE_RATE) : int(5 * SAMPLE_RATE)], 10)
    pieces = list(cut(blocks(audio), Cutting(10.0, 15.0, 2.0, at_silences=False)))
    assert all(14 <= len(piece.waveform) / SAMPLE_RATE <= 15 for piece in pieces[:-1])
    assert all(piece.within_sound for piece in pieces)
    for left, right in pairwise(pieces):
        assert left.end_s - right.start_s == pytest.approx(right.overlap_s)
        assert 1.4 <= right.overlap_s <= 2.6
        # The cut is not inside a word: the end is much quieter than the speech.
        assert np.sqrt((left.waveform[-512:] ** 2).mean()) < 0.2 * np.sqrt((audio**2).mean())
    assert pieces[-1].end_s == pytest.approx(len(audio) / SAMPLE_RATE)


def test_speech_before_a_long_silence_in_an_overlap_is_left_to_the_previous_piece(speech):
    # The first piece ends in the silence, in its 15th second. The speech in the overlap is complete in it.
    words = speech[int(0.5 * SAMPLE_RATE) : int(6.9 * SAMPLE_RATE)]
    audio = np.concatenate([words, words, silence(5), words])
    first, second = cut(blocks(audio), Cutting(10.0, 15.0, 2.0, at_silences=False))
    assert first.end_s == pytest.approx(12.8 + 0.5, abs=0.2)
    assert (second.start_s, second.overlap_s) == (pytest.approx(17.8 - 0.5, abs=0.2), 0.0)


def test_a_last_word_without_enough_silence_after_it_is_repeated_in_the_next_piece(speech):
    # The quietest place in the 15th second is 0.2 s after the last word.
    words = np.concatenate([np.tile(speech, 2)[: int(9.53 * SAMPLE_RATE)], speech[int(0.5 * SAMPLE_RATE) : 86_720]])
    breath = np.random.default_rng(0).standard_normal(3200).astype(np.float32) * 0.001
    audio = np.concatenate([words, breath, silence(5), speech])
    first, second, *_ = cut(blocks(audio), Cutting(10.0, 15.0, 2.0, at_silences=False))
    assert first.end_s == pytest.approx((len(words) + len(breath)) / SAMPLE_RATE, abs=0.1)
    assert (second.start_s, second.overlap_s) == (pytest.approx(12.5, abs=0.6), pytest.approx(2.0, abs=0.6))


def test_only_about_one_piece_of_audio_is_in_memory(speech):
    samples_read = 0

    def counted():
        nonlocal samples_read
        for _ in range(1000):
            samples_read += len(speech)
            yield speech

    first = next(iter(cut(counted(), CUTTING)))
    assert first.start_s == 0.0
    assert samples_read / SAMPLE_RATE < 40


def test_quiet_audio_without_speech_is_silent_and_quiet_speech_is_not(speech):
    hiss = np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32) * 0.001
    assert is_silent(silence(3))
    assert is_silent(hiss)
    assert not is_silent(0.02 * speech)
    assert not is_silent(hiss * 100)


def test_contradictory_lengths_are_an_error():
    with pytest.raises(ValueError, match="overlap 20 s, target 10 s and longest 30 s"):
        Cutting(10, 30, 20)
