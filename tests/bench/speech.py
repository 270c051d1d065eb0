"""Speech-like sounds of any length. Depends on numpy alone, so that every environment can make them."""

import numpy as np

from server.cli.doctor import sounds


def speech(seconds: float, number: int = 0) -> np.ndarray:
    """(N,) float32 at 16 kHz: the doctor's 12 s over and over, from another place for each number."""
    return np.resize(np.roll(sounds.sound("12s"), -11_003 * number), round(seconds * sounds.SAMPLE_RATE))
