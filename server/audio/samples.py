"""Samples that a caller already has in memory, as blocks for the model."""

from collections.abc import Iterator

import numpy as np
import soxr

from server.audio.decode import SAMPLE_RATE, AudioLimits, capped, within_full_scale
from server.errors import AudioError

_BLOCK_FRAMES = 1 << 16


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
    for block in capped(_mono_blocks(samples, rate), limits):
        yield within_full_scale(block)


def _mono_blocks(samples: np.ndarray, rate: float) -> Iterator[np.ndarray]:
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for first in range(0, len(samples), _BLOCK_FRAMES):
        block = samples[first : first + _BLOCK_FRAMES].astype(np.float32)
        mono = block.mean(axis=1) if block.ndim == 2 else block
        yield mono if rate == SAMPLE_RATE else resampler.resample_chunk(mono)
    if rate != SAMPLE_RATE:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
