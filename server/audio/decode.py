"""Bytes → 16 kHz mono float32. What a file is, its content says, never its name.

soundfile reads wav, flac, ogg and mp3 here. PyAV reads everything else in a separate process (`decoder_process.py`).
Every limit is enforced while decoding, each on its own: a small file can decode to gigabytes, and a header can lie.
Nothing but the given bytes is ever opened.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np
import soundfile
import soxr

from model.config import SAMPLE_RATE
from server.errors import AudioError, AudioTooLong
from server.settings import Settings

log = logging.getLogger(__name__)

POSSIBLE = "wav, flac, mp3, m4a, mp4, ogg, webm, aac"

_LIBSNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "MPEG"}
_BLOCK_FRAMES = 1 << 16
# A decoder that gives nothing for so long is taken for hung.
_STALL_S = 30.0
_DECODER = Path(__file__).with_name("decoder_process.py")
# Its exit codes; it is not imported, so that PyAV stays out of this process.
_INVALID, _TOO_LONG = 3, 4


@dataclass(frozen=True)
class AudioLimits:
    """What is decoded at most. `max_s` counts seconds of sound, after resampling."""

    max_s: float = 14_400.0
    max_rate: int = 192_000
    max_channels: int = 8
    min_rate: int = 1_000

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.max_audio_s, settings.max_sample_rate, settings.max_channels)


def decode(source: bytes | Path | BinaryIO, limits: AudioLimits = AudioLimits()) -> np.ndarray:
    """All the sound in a file: (N,) float32 at 16 kHz, mono (the mean of the channels), within [-1, 1].

    Raises AudioTooLong past `limits.max_s`, and AudioError for anything else that is not sound we can read.
    """
    return np.concatenate(list(decode_blocks(source, limits)))


def decode_blocks(source: bytes | Path | BinaryIO, limits: AudioLimits = AudioLimits()) -> Iterator[np.ndarray]:
    """The same in blocks of a few seconds, read as they are taken: memory does not grow with the length.

    `source`, if it is an open file, must stay open until the end.
    """
    with _opened(source) as file:
        some = False
        for block in capped(_file_blocks(file, limits), limits):
            some = some or len(block) > 0
            yield within_full_scale(block)
        if not some:
            raise AudioError("The file holds no sound: 0 samples.")


def capped(blocks: Iterable[np.ndarray], limits: AudioLimits) -> Iterator[np.ndarray]:
    """The blocks, as long as they stay within the cap on seconds."""
    samples = 0
    for block in blocks:
        samples += len(block)
        if samples > limits.max_s * SAMPLE_RATE + 1:
            raise AudioTooLong(f"The audio is longer than {limits.max_s:g} s, the most that is possible.")
        yield block


class Blocks:
    """An iterator over another's blocks that one thread may read and another close, and that counts as it goes."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks = blocks
        self._reading = threading.Lock()
        self._closed = False
        self.decode_s = 0.0
        self.samples = 0
        # After the last block: whether the file was cut off there.
        self.truncated = False

    def __iter__(self) -> "Blocks":
        return self

    def __next__(self) -> np.ndarray:
        with self._reading:
            if self._closed:
                raise StopIteration
            began = time.monotonic()
            try:
                block = next(self._blocks)
            finally:
                self.decode_s += time.monotonic() - began
            self.samples += len(block)
            return block

    def close(self) -> None:
        """Waits for the block that is being read; after it there are no more."""
        with self._reading:
            self._closed = True
            cast(Any, self._blocks).close()


def within_full_scale(block: np.ndarray) -> np.ndarray:
    """Clipped to [-1, 1]. Raises AudioError for samples that are no numbers."""
    if not np.isfinite(block).all():
        raise AudioError("The sound has samples that are not numbers (NaN or infinity).")
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


def _file_blocks(file: BinaryIO, limits: AudioLimits) -> Iterator[np.ndarray]:
    demuxer = demuxer_for(file.read(16))
    file.seek(0)
    if demuxer is None:
        raise _unreadable()
    if demuxer in ("wav", "flac", "ogg", "mp3"):
        try:
            sound = soundfile.SoundFile(cast(Any, _Unnamed(file)))
        except soundfile.LibsndfileError:
            file.seek(0)  # a codec that libsndfile does not have
        else:
            with sound:
                yield from _libsndfile_blocks(sound, limits)
            return
    yield from _process_blocks(file, demuxer, limits)


def demuxer_for(head: bytes) -> str | None:
    """ffmpeg's name for the container that begins with these 16 bytes; None for what is not offered."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[4:8] == b"ftyp":
        return "mov"
    known = {b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "matroska", b"ID3": "mp3", b"ADIF": "aac"}
    for magic, demuxer in known.items():
        if head.startswith(magic):
            return demuxer
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # MPEG frames: layer 0 is AAC in ADTS
        return "aac" if head[1] & 0xF6 == 0xF0 else "mp3"
    return None


class _Unnamed:
    """A binary file without its name, from which soundfile would otherwise take a ".raw"."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _libsndfile_blocks(sound: soundfile.SoundFile, limits: AudioLimits) -> Iterator[np.ndarray]:
    """Mono blocks (n,) float32 at 16 kHz."""
    if sound.format not in _LIBSNDFILE_FORMATS:
        raise _unreadable()
    _check_header(sound, limits)
    # stream: a header's word for the length is not taken, and nothing is held at the file's own rate
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    same_rate = sound.samplerate == SAMPLE_RATE
    try:
        while len(block := sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
            mono = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
            yield mono if same_rate else resampler.resample_chunk(mono)
    except soundfile.LibsndfileError:
        raise _unreadable() from None
    if not same_rate:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _check_header(sound: soundfile.SoundFile, limits: AudioLimits) -> None:
    if not limits.min_rate <= sound.samplerate <= limits.max_rate:
        raise AudioError(
            f"The sample rate is {sound.samplerate} Hz; possible: {limits.min_rate} to {limits.max_rate} Hz."
        )
    if sound.channels > limits.max_channels:
        raise AudioError(f"The file has {sound.channels} channels; possible: 1 to {limits.max_channels}.")
    seconds = sound.frames / sound.samplerate
    # A container whose length is not known is told by an absurd one; what decodes is counted in any case.
    if limits.max_s < seconds < 1e9:
        raise AudioTooLong(f"The audio is {seconds:.1f} s long; possible: up to {limits.max_s:g} s.")


def _process_blocks(file: BinaryIO, demuxer: str, limits: AudioLimits) -> Iterator[np.ndarray]:
    """Mono blocks (n,) float32 at 16 kHz from `decoder_process.py`, which is ended with the iterator."""
    command = decoder_command(demuxer, limits)
    with _on_disk(file) as descriptor, tempfile.TemporaryFile() as said:
        decoder = subprocess.Popen(
            command, stdin=descriptor, stdout=subprocess.PIPE, stderr=said, cwd="/", env=decoder_environment()
        )
        try:
            yield from _samples(decoder)
            code = decoder.wait(_STALL_S)
        finally:
            decoder.kill()
            decoder.wait()
            cast(BinaryIO, decoder.stdout).close()
        if code:
            said.seek(0)
            _raise_refusal(code, said.read().decode(errors="replace"), demuxer)


def _samples(decoder: subprocess.Popen[bytes]) -> Iterator[np.ndarray]:
    pipe = cast(BinaryIO, decoder.stdout).fileno()
    rest = b""
    while True:
        if not select.select([pipe], [], [], _STALL_S)[0]:
            log.warning("the decoder gave nothing for %.0f s and was ended", _STALL_S)
            raise AudioError(f"The file could not be decoded: nothing came of it for {_STALL_S:.0f} s.")
        read = os.read(pipe, _BLOCK_FRAMES * 4)
        if not read:
            return
        rest += read
        whole = len(rest) // 4 * 4
        yield np.frombuffer(rest[:whole], np.float32)
        rest = rest[whole:]


def _raise_refusal(code: int, said: str, demuxer: str) -> None:
    refusal = decoder_refusal(code, said, demuxer) or _unreadable()
    if isinstance(refusal, AudioTooLong) or "possible" in str(refusal):
        raise refusal
    raise AudioError(f"{str(refusal).removesuffix('.')}; possible: {POSSIBLE}.")


def decoder_command(demuxer: str, limits: AudioLimits, live: bool = False) -> list[str]:
    """Starts `decoder_process.py`, which says what goes in and what comes out."""
    numbers = (limits.max_s, limits.min_rate, limits.max_rate, limits.max_channels)
    return [sys.executable, "-I", str(_DECODER), demuxer, *map(str, numbers), *(["live"] if live else [])]


def decoder_environment() -> dict[str, str]:
    """numpy's threads, for which there is no use, would each take of the memory that it may have."""
    return os.environ | {"OPENBLAS_NUM_THREADS": "1"}


def decoder_refusal(code: int, said: str, demuxer: str) -> AudioError | None:
    """What a decoder that ended with `code` has to say to the caller; None where that is for the log."""
    last = said.strip().rpartition("\n")[2]
    if code in (_INVALID, _TOO_LONG):
        return AudioTooLong(last) if code == _TOO_LONG else AudioError(last)
    log.info("the decoder of %s ended with %d: %s", demuxer, code, last[:200])
    return None


def header_length_s(source: bytes | Path | BinaryIO) -> float | None:
    """Seconds of sound, as a file's header has it; None where libsndfile does not read the file."""
    with _opened(source) as file:
        try:
            seconds = soundfile.info(cast(Any, _Unnamed(file))).duration
        except soundfile.LibsndfileError:
            return None
    # An absurd length stands for one that was not known when the header was written.
    return seconds if 0 < seconds < 1e9 else None


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[int]:
    """A descriptor of the file at its beginning, for another process; bytes in memory are written out first."""
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
    return AudioError(f"The file is not sound that can be read; possible: {POSSIBLE}.")
