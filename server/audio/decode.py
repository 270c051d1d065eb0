"""Audio files to 16 kHz mono float32.

libsndfile reads wav, aiff, flac and ogg in this process. PyAV reads the rest in a separate one (`decoder_process.py`):
its demuxers may crash or hang, and mpg123, which libsndfile uses for mp3, writes to standard error. All limits are
checked while decoding, since a small file can decode to gigabytes and a header can lie. Nothing but the given bytes is
opened.
"""

import io
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np
import soundfile
import soxr

from model.config import SAMPLE_RATE
from server.audio.containers import SUPPORTED, FileType, declared_extent, find_type
from server.errors import AudioError, AudioTooLong
from server.settings import Settings

log = logging.getLogger(__name__)

_LIBSNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "AIFF", "FLAC", "OGG"}
_BLOCK_FRAMES = 1 << 16
# Samples by which resampling may change a length.
_ROUNDING = 16
# A decoder without output for this long has hung.
_STALL_S = 30.0
_DECODER = Path(__file__).with_name("decoder_process.py")
# The exit codes of that script, which is not imported, so that PyAV stays out of this process.
_UNSUPPORTED, _TOO_LONG, _DAMAGED = 3, 4, 5


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

    Raises AudioTooLong above `limits.max_s`, and AudioError for any other file that cannot be decoded.
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
            raise _unreadable()
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
        except _Damaged:
            if not samples and not truncated:
                raise _unreadable() from None
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


class _Damaged(Exception):
    """The decoder cannot read the file, from its start or after some blocks."""


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
    """Mono blocks (n,) float32 at 16 kHz. Raises _Damaged."""
    if file_type.for_libsndfile:
        try:
            sound = soundfile.SoundFile(cast(Any, _Unnamed(file)))
        except soundfile.LibsndfileError:
            # libsndfile does not have the codec.
            file.seek(0)
        else:
            with sound:
                if sound.format not in _LIBSNDFILE_FORMATS:
                    raise _Damaged
                yield from _libsndfile_blocks(sound, limits)
            return
    yield from _process_blocks(file, file_type.demuxer, limits)


class _Unnamed:
    """A binary file without its name: soundfile would take a ".raw" for samples without a header."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _libsndfile_blocks(sound: soundfile.SoundFile, limits: AudioLimits) -> Iterator[np.ndarray]:
    _check_header(sound, limits)
    # A stream resampler holds no more than a block at the file's own rate, whatever length the header declares.
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    same_rate = sound.samplerate == SAMPLE_RATE
    damaged = False
    while not damaged:
        frames, damaged = _read(sound)
        if not len(frames):
            break
        mono = frames.mean(axis=1) if frames.shape[1] > 1 else frames[:, 0]
        yield mono if same_rate else resampler.resample_chunk(mono)
    if not same_rate:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    if damaged:
        raise _Damaged


def _read(sound: soundfile.SoundFile) -> tuple[np.ndarray, bool]:
    """(n, channels) float32 at the file's own rate, and whether the decoder failed after them."""
    # soundfile raises without saying how many frames were decoded before: those are no longer NaN.
    buffer = np.full((_BLOCK_FRAMES, sound.channels), np.nan, np.float32)
    try:
        return sound.read(out=buffer), False
    except soundfile.LibsndfileError:
        missing = np.isnan(buffer[:, 0])
        return buffer[: missing.argmax() if missing.any() else len(buffer)], True


def _check_header(sound: soundfile.SoundFile, limits: AudioLimits) -> None:
    if not limits.min_rate <= sound.samplerate <= limits.max_rate:
        raise AudioError(
            f"The sample rate is {sound.samplerate} Hz; supported: {limits.min_rate} to {limits.max_rate} Hz."
        )
    if sound.channels > limits.max_channels:
        raise AudioError(f"The file has {sound.channels} channels; supported: 1 to {limits.max_channels}.")
    seconds = sound.frames / sound.samplerate
    # An unknown length is declared as an absurd one; decoded samples are counted in any case.
    if limits.max_s < seconds < 1e9:
        raise AudioTooLong(f"The audio is {seconds:.1f} s long; the limit is {limits.max_s:g} s.")


def _process_blocks(file: BinaryIO, demuxer: str, limits: AudioLimits) -> Iterator[np.ndarray]:
    """Mono blocks (n,) float32 at 16 kHz from `decoder_process.py`, which ends with the iterator. Raises _Damaged."""
    command = decoder_command(demuxer, limits)
    with _on_disk(file) as descriptor, tempfile.TemporaryFile() as errors:
        decoder = subprocess.Popen(
            command, stdin=descriptor, stdout=subprocess.PIPE, stderr=errors, cwd="/", env=decoder_environment()
        )
        try:
            yield from _samples(decoder)
            code = decoder.wait(_STALL_S)
        finally:
            decoder.kill()
            decoder.wait()
            cast(BinaryIO, decoder.stdout).close()
        if code:
            errors.seek(0)
            error = decoder_error(code, errors.read().decode(errors="replace"), demuxer)
            if code == _DAMAGED:
                raise _Damaged
            raise error or _unreadable()


def _samples(decoder: subprocess.Popen[bytes]) -> Iterator[np.ndarray]:
    pipe = cast(BinaryIO, decoder.stdout).fileno()
    rest = b""
    while True:
        if not select.select([pipe], [], [], _STALL_S)[0]:
            log.warning("the decoder gave no output for %g s and was stopped", _STALL_S)
            raise AudioError(f"Decoding the file was stopped: no progress in {_STALL_S:g} s.")
        read = os.read(pipe, _BLOCK_FRAMES * 4)
        if not read:
            return
        rest += read
        whole = len(rest) // 4 * 4
        yield np.frombuffer(rest[:whole], np.float32)
        rest = rest[whole:]


def decoder_command(demuxer: str, limits: AudioLimits, live: bool = False) -> list[str]:
    """The command that runs `decoder_process.py`, which describes its input and output."""
    numbers = (limits.max_s, limits.min_rate, limits.max_rate, limits.max_channels)
    return [sys.executable, "-I", str(_DECODER), demuxer, *map(str, numbers), *(["live"] if live else [])]


def decoder_environment() -> dict[str, str]:
    """One thread for numpy: more would be idle, and each counts towards the process's memory limit."""
    return os.environ | {"OPENBLAS_NUM_THREADS": "1"}


def decoder_error(code: int, stderr: str, demuxer: str) -> AudioError | None:
    """The error to show when a decoder exits with `code`. None, after logging, if it has no message for callers."""
    last = stderr.strip().rpartition("\n")[2]
    if code in (_UNSUPPORTED, _TOO_LONG):
        return AudioTooLong(last) if code == _TOO_LONG else AudioError(last)
    log.info("the decoder for %s exited with %d: %s", demuxer, code, last[:200])
    return None


def header_length_s(source: bytes | Path | BinaryIO) -> float | None:
    """Seconds of audio according to the file's header; None where libsndfile does not read the file."""
    with _opened(source) as file:
        try:
            seconds = soundfile.info(cast(Any, _Unnamed(file))).duration
        except soundfile.LibsndfileError:
            return None
    # An absurd length means that it was not known when the header was written.
    return seconds if 0 < seconds < 1e9 else None


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[int]:
    """A descriptor of the file at its beginning, for another process; bytes in memory are written to disk."""
    try:
        descriptor = file.fileno()
    except io.UnsupportedOperation:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            copy.seek(0)
            yield copy.fileno()
    else:
        file.flush()
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor


def _unreadable() -> AudioError:
    return AudioError(f"Unsupported or damaged audio file. Supported: {SUPPORTED}.")
