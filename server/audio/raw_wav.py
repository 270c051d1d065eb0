"""16-bit and float WAV, the only files that are decoded in this process: a header, and samples as numpy has them."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from server.audio.containers import iff_chunks
from server.audio.resampling import BLOCK_FRAMES

# The numpy type for (format tag, bits per sample).
_TYPES = {(1, 16): np.dtype("<i2"), (3, 32): np.dtype("<f4")}
_EXTENSIBLE = 0xFFFE


@dataclass(frozen=True)
class RawWav:
    """Where a file's samples are. frames: those that the file really has, however many its header declares."""

    type: np.dtype
    rate: int
    channels: int
    start: int
    frames: int

    def blocks(self, file: BinaryIO) -> Iterator[np.ndarray]:
        """(n, channels) float32, or (n,) of a single channel, at the file's own rate."""
        file.seek(self.start)
        left = self.frames
        frame_bytes = self.type.itemsize * self.channels
        while left > 0:
            data = file.read(min(left, BLOCK_FRAMES) * frame_bytes)
            count = len(data) // frame_bytes
            if not count:
                return
            left -= count
            samples = np.frombuffer(data, self.type, count * self.channels)
            block = samples.astype(np.float32) / 32_768 if self.type.kind == "i" else samples.astype(np.float32)
            yield block.reshape(-1, self.channels) if self.channels > 1 else block


def raw_wav(file: BinaryIO, offset: int) -> RawWav | None:
    """The samples of a WAV file that begins at `offset`; None if it is of another kind. Leaves the file anywhere."""
    length = file.seek(0, io.SEEK_END)
    file.seek(offset)
    if file.read(4) != b"RIFF":
        return None
    format = None
    for chunk in iff_chunks(file, offset, "<"):
        if chunk.name == b"fmt " and chunk.size and chunk.size >= 16:
            file.seek(chunk.start)
            format = _format(file.read(40))
        if chunk.name == b"data":
            file.seek(chunk.start - 4)
            # libsndfile decides what a data chunk of no size means: a stream, or nothing.
            if format is None or file.read(4) == bytes(4):
                return None
            type, rate, channels = format
            stop = length if chunk.size is None else min(length, chunk.start + chunk.size)
            return RawWav(type, rate, channels, chunk.start, (stop - chunk.start) // (type.itemsize * channels))
    return None


def _format(data: bytes) -> tuple[np.dtype, int, int] | None:
    """The type, the rate in Hz and the channels, from a "fmt " chunk."""
    if len(data) < 16:
        return None
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", data)
    if tag == _EXTENSIBLE and len(data) >= 26:
        tag = struct.unpack_from("<H", data, 24)[0]
    type = _TYPES.get((tag, bits))
    return (type, rate, channels) if type and channels and frame_bytes == type.itemsize * channels else None
