"""What the goldens' writer and the tests agree on."""

from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"


def kept_frames(count: int) -> np.ndarray:
    """The feature frames that are stored of `count`: all of a short sound's, of a longer one some and its end."""
    if count <= 64:
        return np.arange(count)
    return np.unique(np.r_[np.linspace(0, count - 1, 32).astype(int), count - 3 : count])


# Frames of made-up features that the encoder is tried on by itself.
DRAWN = (9, 37, 100, 237, 1200)


def drawn_features(frames: int, bands: int) -> np.ndarray:
    """(frames + 1, bands) float32 for the encoder alone: wandering noise, the last frame zero as in real features."""
    noise = np.random.default_rng(frames).standard_normal((frames + 1, bands)).astype(np.float32)
    noise[1:] = (noise[1:] + noise[:-1]) * np.float32(0.75)
    noise[-1] = 0
    return noise
