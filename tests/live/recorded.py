"""Sound as a browser's recorder writes it."""

import av
import numpy as np

from tests.muxing import muxed

RATE = 48_000


def contained(pcm: bytes, encoding: str) -> bytes:
    """Int16LE at 48 kHz as webm, mp4 or ogg, written as it comes: without a length, the mp4 in fragments."""
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"}
    frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2")[None], format="s16", layout="mono")
    frame.sample_rate = RATE
    codec, options = ("aac", fragments) if encoding == "mp4" else ("libopus", {})
    return muxed(frame, encoding, codec, RATE, "mono", seekable=False, options=options)


def tone(seconds: float) -> bytes:
    """Int16LE at 48 kHz."""
    return (np.sin(np.arange(round(seconds * RATE)) / 20) * 10_000).astype("<i2").tobytes()
