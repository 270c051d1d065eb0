"""The speech detector and its probabilities."""

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from server.audio.vad import FRAME, SpeechDetector
from server.longform.cutting import speech_spans

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"


def speech(language: str) -> np.ndarray:
    return soundfile.read(SAMPLES / f"{language}.flac", dtype="float32")[0]


ENGLISH = speech("en")


def test_every_whole_frame_gets_a_probability_however_the_audio_is_split():
    whole = SpeechDetector().feed(ENGLISH)
    assert len(whole) == len(ENGLISH) // FRAME
    assert 0 <= min(whole) < 0.1
    assert 0.9 < max(whole) <= 1
    detector = SpeechDetector()
    in_parts = [p for part in np.array_split(ENGLISH, 77) for p in detector.feed(part)]
    assert in_parts == pytest.approx(whole, abs=1e-5)
    detector.reset()
    assert detector.feed(ENGLISH) == whole


def test_less_than_a_frame_waits_for_the_rest_of_it():
    detector = SpeechDetector()
    assert detector.feed(ENGLISH[: FRAME - 1]) == []
    assert detector.feed(ENGLISH[FRAME - 1 : FRAME]) == SpeechDetector().feed(ENGLISH[:FRAME])


@pytest.mark.parametrize(
    ("language", "spans"),
    [
        ("en", [(0.32, 6.05), (6.75, 8.51)]),
        ("de", [(0.38, 6.62)]),
        ("es", [(0.35, 2.85), (3.62, 6.08)]),
        ("fr", [(0.0, 4.19)]),
    ],
)
def test_speech_is_found_where_it_is_in_each_sample(language, spans):
    found = speech_spans(np.array(SpeechDetector().feed(speech(language))))
    assert len(found) == len(spans)
    assert np.array(found) == pytest.approx(np.array(spans), abs=0.04)


def test_silence_noise_and_a_tone_are_not_speech():
    seconds = 10 * 16000
    noise = np.random.default_rng(1).normal(0, 0.05, seconds).astype(np.float32)
    tone = (0.3 * np.sin(np.arange(seconds) / 6)).astype(np.float32)
    for sound in (np.zeros(seconds, np.float32), noise, tone):
        assert max(SpeechDetector().feed(sound)) < 0.1


def test_streams_do_not_hear_each_other_even_from_several_threads():
    expected = SpeechDetector().feed(ENGLISH)
    heard: dict[int, list[float]] = {}

    def hear(stream: int) -> None:
        detector = SpeechDetector()
        heard[stream] = [p for part in np.array_split(ENGLISH, 40) for p in detector.feed(part)]

    threads = [threading.Thread(target=hear, args=(stream,)) for stream in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(heard[stream] == pytest.approx(expected, abs=1e-5) for stream in range(4))
