"""Audio files to 16 kHz mono float32.

16-bit and float WAV is read here; everything else is decoded by the processes of `workers.py`, which may crash or hang.
All limits are checked while decoding, since a small file can decode to gigabytes and a header can lie. Nothing but the
given bytes is opened.
"""

import io
import os
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np

from model.config import SAMPLE_RATE
from server.audio.containers import FileType, declared_extent, find_type, unreadable
from server.audio.lengths import declared_length_s
from server.audio.raw_wav import RawWav, raw_wav
from server.audio.resampling import mono_blocks
from server.audio.workers import POOL, Damaged, decoded_blocks
from server.errors import AudioError, AudioTooLong, ServiceError
from server.settings import Settings

# Samples by which resampling may change a length.
_ROUNDING = 16


@dataclass(frozen=True)
class AudioLimits:
    """Limits on what is decoded. `max_s` counts seconds of audio, after resampling; rates are in Hz."""

    max_s: float = 14_400.0
    max_rate: int = 192_000
    max_channels: int = 8
    min_rate: int = 1_000

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.max_audio_s, settings.max_sample_rate, settings.max_channels)


def decode(source: bytes | Path | BinaryIO, limits: AudioLimits = AudioLimits()) -> np.ndarray:
    """All the audio of a file: (n,) float32 at 16 kHz, mono (the mean of the channels), within [-1, 1].

    Raises AudioTooLong above `limits.max_s`, AudioError for any other file that cannot be decoded, and Unavailable if
    the machine is too busy to tell.
    """
    return np.concatenate(list(decode_blocks(source, limits)))


def decode_blocks(
    source: bytes | Path | BinaryIO, limits: AudioLimits = AudioLimits()
) -> Generator[np.ndarray, None, bool]:
    """`decode` in blocks of a few seconds, decoded as they are read: memory does not grow with the length.

    Returns whether the file was cut off; `Blocks` has this as `truncated`. An open file must stay open until the end.
    """
    with _opened(source) as file:
        if not file.read(1):
            raise AudioError("The file is empty (0 bytes).")
        file_type = find_type(file)
        if file_type is None:
            raise unreadable()
        extent = declared_extent(file, file_type.demuxer, file_type.offset)
        if extent.missing_index:
            raise AudioError(
                f"The file is cut off: {extent.missing_index} is missing, and without it no audio can be decoded."
            )
        file.seek(0)
        samples, truncated = 0, extent.is_cut_off
        try:
            for block in capped(_file_blocks(file, file_type, limits), limits):
                samples += len(block)
                yield within_full_scale(block)
        except Damaged:
            if not samples and not truncated:
                raise unreadable() from None
            truncated = True
        if not samples and truncated:
            raise AudioError("The file is cut off, and no audio can be decoded from what is left.")
        if not samples:
            raise AudioError("The audio is empty: the file has a header but no samples.")
        return truncated or samples + _ROUNDING < extent.min_s * SAMPLE_RATE


def capped(blocks: Iterable[np.ndarray], limits: AudioLimits) -> Iterator[np.ndarray]:
    """The blocks, up to the limit on seconds. Raises AudioTooLong."""
    samples = 0
    for block in blocks:
        samples += len(block)
        if samples > limits.max_s * SAMPLE_RATE + 1:
            raise AudioTooLong(f"The audio is longer than the limit of {limits.max_s:g} s.")
        yield block


class Blocks:
    """The blocks of `decode_blocks`, counted. One thread may read them and another close them."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks = blocks
        self._reading = threading.Lock()
        self._closed = False
        self.decode_s = 0.0
        self.samples = 0
        self.truncated = False
        """Known at the end of the iteration: the file was cut off, and these were the blocks before the cut."""

    def __iter__(self) -> "Blocks":
        return self

    def __next__(self) -> np.ndarray:
        with self._reading:
            if self._closed:
                raise StopIteration
            began = time.monotonic()
            try:
                block = next(self._blocks)
            except StopIteration as end:
                self.truncated = self.truncated or bool(end.value)
                raise
            finally:
                self.decode_s += time.monotonic() - began
            self.samples += len(block)
            return block

    def close(self) -> None:
        """Wait for the block that is being read; no more follow."""
        with self._reading:
            self._closed = True
            cast(Any, self._blocks).close()


def within_full_scale(block: np.ndarray) -> np.ndarray:
    """Clipped to [-1, 1]. Raises AudioError for NaN and infinity."""
    if not np.isfinite(block).all():
        raise AudioError("The audio has samples that are NaN or infinite.")
    return np.clip(block, -1.0, 1.0)


@contextmanager
def _opened(source: bytes | Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, os.PathLike):
        with open(source, "rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


def _file_blocks(file: BinaryIO, file_type: FileType, limits: AudioLimits) -> Iterator[np.ndarray]:
    """Mono blocks (n,) float32 at 16 kHz. Raises Damaged."""
    wav = raw_wav(file, file_type.offset) if file_type.demuxer == "wav" else None
    if wav:
        _check_header(wav, limits)
        return mono_blocks(wav.blocks(file), wav.rate)
    return decoded_blocks(file, decoder_job(file_type.demuxer, limits, libsndfile=file_type.for_libsndfile))


def prepare_decoding(path: Path) -> None:
    """Start what will decode this file, so that it is ready sooner. An error is left for when the file is decoded."""
    with suppress(OSError, ServiceError), path.open("rb") as file:
        file_type = find_type(file)
        if file_type and not (file_type.demuxer == "wav" and raw_wav(file, file_type.offset)):
            POOL.prepare()


def decoder_job(demuxer: str, limits: AudioLimits, *, libsndfile: bool = False, live: bool = False) -> dict[str, Any]:
    """A job for `decoder_process.py`, which describes it."""
    return {"demuxer": demuxer, "libsndfile": libsndfile, "live": live, **asdict(limits)}


def _check_header(wav: RawWav, limits: AudioLimits) -> None:
    if not limits.min_rate <= wav.rate <= limits.max_rate:
        raise AudioError(f"The sample rate is {wav.rate} Hz; supported: {limits.min_rate} to {limits.max_rate} Hz.")
    if wav.channels > limits.max_channels:
        raise AudioError(f"The file has {wav.channels} channels; supported: 1 to {limits.max_channels}.")
    if wav.frames / wav.rate > limits.max_s:
        raise AudioTooLong(f"The audio is {wav.frames / wav.rate:.1f} s long; the limit is {limits.max_s:g} s.")


def header_length_s(source: bytes | Path | BinaryIO) -> float | None:
    """Seconds of audio that the file's header tells of; None if it tells nothing."""
    with _opened(source) as file:
        file_type = find_type(file)
        return declared_length_s(file, file_type) if file_type else None
