"""Voice activity detection: Silero's network over 16 kHz audio, in frames of 32 ms."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from model.config import SAMPLE_RATE
from model.cpu.session import session

FRAME = 512
"""Samples in a frame."""
FRAME_S = FRAME / SAMPLE_RATE

# Silero VAD 6.2 in the form that takes many frames in one call: made from the weights of github.com/snakers4/silero-vad
# at 806dcba by its examples/onnx_sequence/export.py, for 16 kHz.
_MODEL = Path(__file__).parent / "silero" / "vad_16k_sequence.onnx"
# Samples of the previous frame that the network also sees.
_CONTEXT = 64
_HIDDEN = 128
# Frames in one call, so that memory stays bounded.
_FRAMES_AT_ONCE = 128


class SpeechDetector:
    """The detector of one audio stream: it remembers what it has heard. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._network = _network()
        self.reset()

    def feed(self, samples: np.ndarray) -> list[float]:
        """The probability of speech in each frame that is now complete; the rest waits for more samples.

        samples: (n,) float32 at 16 kHz, any n.
        """
        pending = np.concatenate([self._pending, samples.astype(np.float32, copy=False)])
        whole = len(pending) - len(pending) % FRAME
        self._pending = pending[whole:]
        frames = pending[:whole].reshape(-1, FRAME)
        probabilities: list[float] = []
        for first in range(0, len(frames), _FRAMES_AT_ONCE):
            probabilities += self._probabilities(frames[first : first + _FRAMES_AT_ONCE])
        return probabilities

    def reset(self) -> None:
        """Start a new stream."""
        self._pending = np.zeros(0, np.float32)
        self._context = np.zeros((1, _CONTEXT), np.float32)
        self._hidden = np.zeros((1, 1, _HIDDEN), np.float32)
        self._cell = np.zeros((1, 1, _HIDDEN), np.float32)

    def _probabilities(self, frames: np.ndarray) -> list[float]:
        """frames: (n, FRAME), n > 0."""
        ends = frames[:, -_CONTEXT:]
        contexts = np.concatenate([self._context, ends[:-1]])
        self._context = ends[-1:].copy()
        inputs = {"input": np.concatenate([contexts, frames], axis=1), "h": self._hidden, "c": self._cell}
        probabilities, self._hidden, self._cell = self._network.run(["speech_probs", "hn", "cn"], inputs)
        return probabilities.tolist()


@functools.cache
def _network() -> Any:
    """Shared by all detectors: it keeps no state between calls, and any thread may call it."""
    # On one thread, the caller's: a frame is too little work to divide.
    return session(_MODEL)
