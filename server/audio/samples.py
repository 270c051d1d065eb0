"""Samples that a caller already has in memory, as blocks for the model."""

from collections.abc import Iterator

import numpy as np

from server.audio.decode import AudioLimits, capped, within_full_scale
from server.audio.resampling import BLOCK_FRAMES, mono_blocks
from server.errors import AudioError


def sample_blocks(samples: np.ndarray, rate: float, limits: AudioLimits = AudioLimits()) -> Iterator[np.ndarray]:
    """Blocks (n,) float32 at 16 kHz, mono, of floating-point samples (N,) or (N, channels) at `rate` Hz.

    Raises AudioError for other types or shapes, and beyond the limits, which are those for files.
    """
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim not in (1, 2):
        raise AudioError(
            f"Unsupported samples: {samples.dtype} of shape {samples.shape}. "
            "Supported: floating point of shape (N,) or (N, channels)."
        )
    channels = samples.shape[1] if samples.ndim == 2 else 1
    if not 1 <= channels <= limits.max_channels:
        raise AudioError(
            f"The samples have {channels} channels (the shape is (N, channels)); supported: 1 to {limits.max_channels}."
        )
    if not limits.min_rate <= rate <= limits.max_rate:
        raise AudioError(f"The sample rate is {rate:g} Hz; supported: {limits.min_rate} to {limits.max_rate} Hz.")
    if not len(samples):
        raise AudioError("There are no samples.")
    for block in capped(mono_blocks(_blocks(samples), rate), limits):
        yield within_full_scale(block)


def _blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(samples), BLOCK_FRAMES):
        yield samples[first : first + BLOCK_FRAMES].astype(np.float32)
