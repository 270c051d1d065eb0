"""Audio of any length through passes of a length that the model is good for, and back into one transcript.

Pieces are cut while the audio is being decoded and run side by side in the engine, a bounded number of them, so memory
does not grow with the length.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from model.generate import DecodingOptions
from model.language import Detection
from model.prompt import AUTO, Task
from model.transcript import Segment, Transcript

from .batching import Pass, PassResult, Timing
from .engine import INTERACTIVE
from .vad import FRAME, SpeechDetector

SAMPLE_RATE = 16_000
# Pieces of one audio that are in the engine together.
AT_ONCE = 4
SPEECH = 0.5


class Runner(Protocol):
    """What is needed of an Engine."""

    async def run(self, wanted: Pass, priority: int = ...) -> PassResult: ...


@dataclass(frozen=True)
class Cutting:
    """Lengths of pieces, in seconds: cut near `target_s`, where it is silent, and never over `longest_s`."""

    target_s: float = 30.0
    longest_s: float = 40.0


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of the audio, `start_s` from its beginning."""

    start_s: float
    waveform: np.ndarray

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.waveform) / SAMPLE_RATE


@dataclass(frozen=True)
class Progress:
    """How far a transcription is. total_s: None while the audio is still being decoded; segments: the new ones."""

    done_s: float
    total_s: float | None
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Transcription:
    """timestamps_source: "model", "aligner" or "cross_attention"; None where there are no times but the pieces'."""

    transcript: Transcript
    detection: Detection | None
    timestamps_source: str | None
    timing: Timing


async def transcribe_audio(
    engine: Runner,
    audio: np.ndarray | Iterable[np.ndarray],
    task: Task,
    options: DecodingOptions | None = None,
    *,
    priority: int = INTERACTIVE,
    on_progress: Callable[[Progress], None] | None = None,
    cutting: Cutting = Cutting(),
) -> Transcription:
    """The transcript of audio of any length, 16 kHz mono float32: whole, or as blocks that are decoded as needed.

    Raises what reading the blocks or a pass raises; what is under way is then cancelled.
    """
    whole = isinstance(audio, np.ndarray)
    total_s = len(audio) / SAMPLE_RATE if whole else None
    pieces = cut([audio] if whole else audio, cutting)
    running: deque[tuple[Piece, asyncio.Task[PassResult]]] = deque()
    segments: list[Segment] = []
    timing = Timing()
    detection: Detection | None = None
    end_s = 0.0

    async def take_first() -> None:
        nonlocal detection, task, timing
        piece, work = running[0]
        result = await work
        running.popleft()
        if result.detection and not detection:
            detection = result.detection
            task = replace(task, language=detection.language)
        timing = _added(timing, result.timing)
        new = tuple(moved(segment, piece.start_s) for segment in result.transcripts[0].segments)
        segments.extend(new)
        if on_progress:
            on_progress(Progress(piece.end_s, total_s, new))

    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            end_s = piece.end_s
            wanted = Pass(piece.waveform, (task,), options or DecodingOptions())
            running.append((piece, asyncio.ensure_future(engine.run(wanted, priority))))
            # The language that the first piece is in is needed for the next.
            while len(running) >= AT_ONCE or (running and task.language == AUTO):
                await take_first()
        while running:
            await take_first()
    finally:
        for _, work in running:
            work.cancel()
        await asyncio.gather(*(work for _, work in running), return_exceptions=True)
    text = " ".join(segment.text for segment in segments)
    transcript = Transcript(text, task.language, task.target, end_s, tuple(segments))
    return Transcription(transcript, detection, "model" if any(s.words for s in segments) else None, timing)


def cut(blocks: Iterable[np.ndarray], cutting: Cutting) -> Iterator[Piece]:
    """Pieces in order. Audio that fits into one is one."""
    detector = SpeechDetector()
    longest = int(cutting.longest_s * SAMPLE_RATE)
    held, chances, start = np.zeros(0, np.float32), [], 0
    for block in blocks:
        held = np.concatenate([held, block])
        chances += detector.feed(block)
        while len(held) > longest:
            at = _silence_near(chances, cutting) * FRAME
            yield Piece(start / SAMPLE_RATE, held[:at])
            held, chances, start = held[at:], chances[at // FRAME :], start + at
    if len(held) or not start:
        yield Piece(start / SAMPLE_RATE, held)


def _silence_near(chances: list[float], cutting: Cutting) -> int:
    """The frame in the middle of the silence that is nearest to the target; the longest length where there is none."""
    per_s = SAMPLE_RATE / FRAME
    target, longest = cutting.target_s * per_s, int(cutting.longest_s * per_s)
    silent = [i for i in range(int(target / 2), min(longest, len(chances))) if chances[i] < SPEECH]
    return min(silent, key=lambda i: abs(i - target), default=longest)


def moved(segment: Segment, by_s: float) -> Segment:
    """The same segment and its words, later."""
    words = tuple(replace(word, start=word.start + by_s, end=word.end + by_s) for word in segment.words)
    return replace(segment, start=segment.start + by_s, end=segment.end + by_s, words=words)


def _added(a: Timing, b: Timing) -> Timing:
    return Timing(a.queue_s + b.queue_s, a.features_s + b.features_s, a.encode_s + b.encode_s, a.decode_s + b.decode_s)
