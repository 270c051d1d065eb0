"""Sound as a browser's recorder writes it."""

import io

import av
import numpy as np

RATE = 48_000


def contained(pcm: bytes, encoding: str) -> bytes:
    """Int16LE at 48 kHz as webm, mp4 or ogg, written as it comes: without a length, the mp4 in fragments."""
    file = io.BytesIO()
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"}
    options = fragments if encoding == "mp4" else {}
    with av.open(_Unseekable(file), "w", format=encoding, options=options) as container:
        stream = container.add_stream("aac" if encoding == "mp4" else "libopus", rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2")[None], format="s16", layout="mono")
        frame.rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


class _Unseekable:
    def __init__(self, file: io.BytesIO):
        self.write = file.write


def tone(seconds: float) -> bytes:
    """Int16LE at 48 kHz."""
    return (np.sin(np.arange(round(seconds * RATE)) / 20) * 10_000).astype("<i2").tobytes()
