"""The audio of an utterance: a whole file, or a part of one."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from server.audio.containers import find_type
from server.audio.decode import SAMPLE_RATE, AudioLimits, decode_blocks
from server.audio.raw_wav import raw_wav
from server.audio.samples import sample_blocks
from server.cli.evaluate.manifests import Utterance
from server.errors import AudioError


def utterance_blocks(utterance: Utterance, limits: AudioLimits, content: bytes | None = None) -> Iterator[np.ndarray]:
    """Blocks (n,) float32 at 16 kHz. content: of the whole file, if it is not at the utterance's path.

    Raises what `decode_blocks` does, and AudioError for a part beyond the end.
    """
    if content is not None:
        return decode_blocks(content, limits)
    if utterance.offset_s is None:
        return decode_blocks(utterance.path, limits)
    return _part(utterance.path, utterance.offset_s, utterance.duration_s, limits)


def _part(path: Path, offset_s: float, duration_s: float | None, limits: AudioLimits) -> Iterator[np.ndarray]:
    found = False
    for block in _sought(path, offset_s, duration_s, limits) or _skipped(path, offset_s, duration_s, limits):
        found = found or len(block) > 0
        yield block
    if not found:
        raise AudioError(f"The offset, {offset_s:g} s, is beyond the end of the audio.")


def _sought(path: Path, offset_s: float, duration_s: float | None, limits: AudioLimits) -> Iterator[np.ndarray] | None:
    """The part, read by itself; None for files in which its place is not known without decoding."""
    with path.open("rb") as file:
        file_type = find_type(file)
        wav = raw_wav(file, file_type.offset) if file_type and file_type.demuxer == "wav" else None
        if wav is None:
            return None
        first = min(round(offset_s * wav.rate), wav.frames)
        length_s = limits.max_s + 1 if duration_s is None else duration_s
        frames = min(round(length_s * wav.rate), wav.frames - first)
        start = wav.start + first * wav.type.itemsize * wav.channels
        blocks = list(replace(wav, start=start, frames=frames).blocks(file))
    return sample_blocks(np.concatenate(blocks), wav.rate, limits) if blocks else iter(())


def _skipped(path: Path, offset_s: float, duration_s: float | None, limits: AudioLimits) -> Iterator[np.ndarray]:
    """The part, found by decoding all that is before it."""
    first = round(offset_s * SAMPLE_RATE)
    last = None if duration_s is None else first + round(duration_s * SAMPLE_RATE)
    at, blocks = 0, decode_blocks(path, limits)
    try:
        for block in blocks:
            yield block[max(0, first - at) : None if last is None else max(0, last - at)]
            at += len(block)
            if last is not None and at >= last:
                return
    finally:
        blocks.close()


def beginning(blocks: Iterator[np.ndarray], seconds: float) -> Generator[np.ndarray, None, None]:
    """The first `seconds` of the blocks."""
    left = round(seconds * SAMPLE_RATE)
    for block in blocks:
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return
