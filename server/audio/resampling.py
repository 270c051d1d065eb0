"""Samples at any rate → 16 kHz mono, block by block."""

from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from model.config import SAMPLE_RATE

BLOCK_FRAMES = 1 << 16
"""Frames that are read at a time: 4 s at 16 kHz."""


def mono_blocks(blocks: Iterable[np.ndarray], rate: float) -> Iterator[np.ndarray]:
    """(n,) float32 at 16 kHz, the mean of the channels, of blocks (n,) or (n, channels) float32 at `rate` Hz."""
    resampler = (
        None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    )
    for block in blocks:
        mono = block.mean(axis=1) if block.ndim == 2 else block
        yield resampler.resample_chunk(mono) if resampler else mono
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
