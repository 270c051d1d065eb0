"""Bytes → 16 kHz mono float32. What a file is, its content says, never its name.

Everything is capped while decoding, each cap alone: a small file can decode to gigabytes, and a header can lie.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .errors import AudioError, AudioTooLong

SAMPLE_RATE = 16_000
POSSIBLE = "wav, flac, ogg (Vorbis or Opus), mp3"

_LIBSNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "MPEG"}
_BLOCK_FRAMES = 1 << 16


@dataclass(frozen=True)
class AudioLimits:
    """What is decoded at most. `max_s` counts seconds of sound, after resampling."""

    max_s: float = 40.0
    max_rate: int = 192_000
    max_channels: int = 8
    min_rate: int = 1_000


def decode(source: bytes | Path | BinaryIO, limits: AudioLimits = AudioLimits()) -> np.ndarray:
    """The sound in a file: (N,) float32 at 16 kHz, mono (the mean of the channels), within [-1, 1].

    Raises AudioTooLong past `limits.max_s`, and AudioError for anything else that is not sound we can read.
    """
    with _opened(source) as file:
        # Other containers (mp4, webm, aac) are told by their first bytes here, and get their own reader.
        blocks = _libsndfile_blocks(file, limits)
        waveform = joined(blocks, limits)
    if waveform.size == 0:
        raise AudioError("The file holds no sound: 0 samples.")
    if not np.isfinite(waveform).all():
        raise AudioError("The sound has samples that are not numbers (NaN or infinity).")
    peak = float(np.abs(waveform).max())
    return waveform / np.float32(peak) if peak > 1 else waveform


@contextmanager
def _opened(source: bytes | Path | BinaryIO) -> Iterator["_Unnamed"]:
    if isinstance(source, bytes):
        yield _Unnamed(io.BytesIO(source))
    elif isinstance(source, os.PathLike):
        with open(source, "rb") as file:
            yield _Unnamed(file)
    else:
        source.seek(0)
        yield _Unnamed(source)


class _Unnamed:
    """A binary file without its name, from which soundfile would otherwise take a ".raw"."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _libsndfile_blocks(file: _Unnamed, limits: AudioLimits) -> Iterator[np.ndarray]:
    """Mono blocks (n,) float32 at 16 kHz."""
    try:
        with soundfile.SoundFile(file) as sound:  # pyright: ignore[reportArgumentType]
            if sound.format not in _LIBSNDFILE_FORMATS:
                raise AudioError(f"The file is {sound.format}, which is not read; possible: {POSSIBLE}.")
            _check_header(sound, limits)
            # stream: a header's word for the length is not taken, and nothing is held at the file's own rate
            resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            same_rate = sound.samplerate == SAMPLE_RATE
            while len(block := sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                mono = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
                yield mono if same_rate else resampler.resample_chunk(mono)
            if not same_rate:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    except soundfile.LibsndfileError:
        raise AudioError(f"The file is not sound that can be read; possible: {POSSIBLE}.") from None


def _check_header(sound: soundfile.SoundFile, limits: AudioLimits) -> None:
    if not limits.min_rate <= sound.samplerate <= limits.max_rate:
        raise AudioError(
            f"The sample rate is {sound.samplerate} Hz; possible: {limits.min_rate} to {limits.max_rate} Hz."
        )
    if sound.channels > limits.max_channels:
        raise AudioError(f"The file has {sound.channels} channels; possible: 1 to {limits.max_channels}.")
    seconds = sound.frames / sound.samplerate
    if seconds > limits.max_s:
        raise AudioTooLong(f"The audio is {seconds:.1f} s long; possible: up to {limits.max_s:g} s.")


def joined(blocks: Iterator[np.ndarray], limits: AudioLimits) -> np.ndarray:
    """All blocks as one waveform, as long as they stay within the cap."""
    kept, samples = [np.zeros(0, np.float32)], 0
    for block in blocks:
        samples += len(block)
        if samples > limits.max_s * SAMPLE_RATE + 1:
            raise AudioTooLong(f"The audio is longer than {limits.max_s:g} s, the most that is possible.")
        kept.append(block)
    return np.concatenate(kept)
