"""A client's raw samples → 16 kHz mono float32, as they arrive. For recorders' containers see `container`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np
import soxr

from server.errors import AudioError
from server.live.endpointing import SAMPLE_RATE

MIN_RATE, MAX_RATE = 8_000, 192_000

Sink = Callable[[np.ndarray], Awaitable[None]]


class Sound(Protocol):
    """Takes bytes in pieces of any size and passes their samples to a sink. A slow sink makes `write` wait."""

    async def run(self) -> None:
        """Must run while the other methods are used. Raises AudioError for audio that cannot be decoded."""

    async def write(self, data: bytes) -> None: ...

    async def flush(self) -> None:
        """Pass on buffered audio as far as possible before the end; more may be written."""

    async def end(self) -> None:
        """The audio is complete: pass on the rest."""


class RawSound:
    """Samples without a container: pcm_s16le, or ulaw and alaw of G.711."""

    def __init__(self, encoding: str, rate: int, sink: Sink):
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(
                f"sample_rate {rate} is not supported; supported: {MIN_RATE} to {MAX_RATE} Hz", "sample_rate"
            )
        self._decode = {"pcm_s16le": _pcm, "ulaw": _ulaw, "alaw": _alaw}[encoding]
        self._width = 2 if encoding == "pcm_s16le" else 1
        self._sink = sink
        self._rest = b""
        self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def write(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % self._width
        self._rest = data[whole:]
        await self._pass_on(self._decode(data[:whole]), last=False)

    async def flush(self) -> None:
        await self._pass_on(np.zeros(0, np.float32), last=True)
        if self._resampler:
            self._resampler.clear()

    async def end(self) -> None:
        await self.flush()

    def clear(self) -> None:
        """Drop what is buffered; the next samples are treated as the first."""
        self._rest = b""
        if self._resampler:
            self._resampler.clear()

    async def _pass_on(self, samples: np.ndarray, last: bool) -> None:
        if self._resampler:
            samples = self._resampler.resample_chunk(samples, last=last)
        if len(samples):
            await self._sink(samples)


def _pcm(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def _ulaw(data: bytes) -> np.ndarray:
    return _ULAW[np.frombuffer(data, np.uint8)]


def _alaw(data: bytes) -> np.ndarray:
    return _ALAW[np.frombuffer(data, np.uint8)]


def _ulaw_table() -> np.ndarray:
    """ITU-T G.711, table 2a: sign, three bits of exponent, four of mantissa, all inverted; biased by 33."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4).astype(int) & 7, code.astype(int) & 15
    size = ((2 * mantissa + 33) << exponent) - 33
    return (np.where(code & 128, -size, size) / 8192).astype(np.float32)


def _alaw_table() -> np.ndarray:
    """ITU-T G.711, table 1a: as above, every other bit inverted, no bias but a half step."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4).astype(int) & 7, code.astype(int) & 15
    size = np.where(exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0))
    return (np.where(code & 128, size, -size) / 4096).astype(np.float32)


_ULAW, _ALAW = _ulaw_table(), _alaw_table()
