"""The speech detector's chances, and what they cost."""

import resource
from pathlib import Path

import numpy as np
import soundfile

from server.audio.vad import FRAME, SpeechDetector

SPEECH = soundfile.read(
    Path(__file__).parents[2] / "convert" / "toy" / "samples" / "en.flac", dtype="float32", stop=96000
)[0]


def test_a_frame_has_a_chance_however_the_sound_comes_in():
    whole = SpeechDetector().feed(SPEECH)
    assert len(whole) == len(SPEECH) // FRAME
    assert 0 <= min(whole) < 0.1
    assert 0.9 < max(whole) <= 1
    detector = SpeechDetector()
    assert [chance for part in np.array_split(SPEECH, 77) for chance in detector.feed(part)] == whole
    detector.reset()
    assert detector.feed(SPEECH) == whole


def test_nothing_is_waited_for_within_a_frame():
    detector = SpeechDetector()
    # This thread's waits where the system tells them: what other tests have left running waits as well.
    mine = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    before = resource.getrusage(mine).ru_nvcsw
    frames = len(detector.feed(SPEECH))
    # Four threads that wait for each other make the first of them wait some forty times a frame.
    assert resource.getrusage(mine).ru_nvcsw - before < frames
