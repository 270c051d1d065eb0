"""Audio of any length through passes of a length that the model is good for, and back into one transcript.

Pieces are cut while the audio is being decoded and run side by side in the engine, a bounded number of them, so memory
does not grow with the length.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from model.decoding import DecodingOptions, Detection
from model.task import AUTO, Task
from model.transcript import Segment, Transcript
from server.audio.vad import SpeechDetector
from server.engine.batching import Pass, PassResult, Timing
from server.engine.thread import INTERACTIVE, ModelInfo
from server.errors import QueueFull
from server.longform.coverage import (
    MISSED_S,
    NEAR_S,
    NEAR_TRANSLATED_S,
    UNCOVERED_S,
    Spans,
    covered_spans,
    insert_words,
    missed_speech,
    without_invented_words,
)
from server.longform.cutting import MARGIN_S, SAMPLE_RATE, Cutting, Piece, cut, is_silent, speech_spans
from server.longform.joining import Joiner
from server.longform.loops import is_loop

log = logging.getLogger(__name__)

# Pieces of one audio that are in the engine together.
AT_ONCE = 4
# The search that a loop is tried again with.
LOOP_BEAM = 4
NO_TIME = Timing()
DETECT_EACH = Cutting(5.0, 10.0, 2.0)
"""Short pieces, so that a language seldom changes within one."""


class Runner(Protocol):
    """What is needed of an Engine."""

    @property
    def info(self) -> ModelInfo | None: ...

    async def run(self, wanted: Pass, priority: int = ...) -> PassResult: ...


@dataclass(frozen=True)
class Progress:
    """How far a transcription is. total_s: None while the length is not known; segments: the new ones, in order."""

    done_s: float
    total_s: float | None
    segments: tuple[Segment, ...]


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Transcription:
    """timestamps_source: "model", "aligner" or "cross_attention"; None where there are no times but the pieces'.

    detection: of the first piece whose language was asked for; uncovered: (start, end) of speech that got no text.
    """

    transcript: Transcript
    detection: Detection | None
    timestamps_source: str | None
    timing: Timing
    uncovered: tuple[tuple[float, float], ...] = ()


async def transcribe_audio(
    engine: Runner,
    audio: np.ndarray | Iterable[np.ndarray],
    task: Task,
    options: DecodingOptions | None = None,
    *,
    priority: int = INTERACTIVE,
    on_progress: OnProgress | None = None,
    cutting: Cutting | None = None,
    loop_guard: bool = True,
    detect_each: bool = False,
    total_s: float | None = None,
) -> Transcription:
    """The transcript of audio of any length, 16 kHz mono float32: whole, or as blocks that are decoded as needed.

    cutting: by default what the engine's model is good for; loop_guard: decode what repeats itself again, another way;
    detect_each: with the language "auto", find it out in every piece, not only in the first, and cut short ones for
    that; total_s: what is known of the length, for the progress.
    Raises what reading the blocks or a pass raises; what is under way is then cancelled.
    """
    if isinstance(audio, np.ndarray):
        total_s, audio = len(audio) / SAMPLE_RATE, [audio]
    cutting = DETECT_EACH if detect_each and task.language == AUTO else cutting or cutting_for(engine)
    assembly = _Assembly(task, cutting.overlap_s, detect_each)
    work = _Work(engine, assembly, options or DecodingOptions(), priority, loop_guard)
    pieces = cut(_counted(audio, assembly), cutting)
    running: deque[tuple[Piece, asyncio.Task[PieceOutcome]]] = deque()
    is_first = True

    async def take_first() -> None:
        piece, working = running[0]
        outcome = await working
        running.popleft()
        new = assembly.add(piece, outcome)
        if on_progress:
            on_progress(Progress(piece.end_s, total_s, new))

    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            running.append((piece, asyncio.ensure_future(work.outcome(piece, is_first))))
            is_first = False
            # The language that the first piece is in is needed for the next.
            while len(running) >= AT_ONCE or (running and assembly.task.language == AUTO and not detect_each):
                await take_first()
        while running:
            await take_first()
    finally:
        for _, working in running:
            working.cancel()
        await asyncio.gather(*(working for _, working in running), return_exceptions=True)
    last = assembly.finish()
    if on_progress and last:
        on_progress(Progress(assembly.duration_s, total_s, last))
    return assembly.transcription()


def cutting_for(engine: Runner) -> Cutting:
    """Pieces as long as the engine's model is good for."""
    return Cutting.up_to(engine.info.config.longest_s) if engine.info else Cutting()


def joined_transcript(pieces: list[tuple[Piece, Transcript]], task: Task, samples: int, cutting: Cutting) -> Transcript:
    """One transcript of the pieces' own, as they were written; samples: the whole audio's."""
    assembly = _Assembly(task, cutting.overlap_s, samples=samples)
    for piece, transcript in pieces:
        assembly.add(piece, PieceOutcome(placed(piece, transcript), source=transcript.timestamps_source))
    assembly.finish()
    return assembly.transcription().transcript


def task_for(piece: Piece, task: Task) -> Task:
    """The task as a piece is given it: what is merged needs the times of its words, asked for or not."""
    return replace(task, timestamps="word") if piece.within_sound and task.timestamps == "none" else task


def placed(piece: Piece, transcript: Transcript, language: str | None = None) -> tuple[Segment, ...]:
    """A piece's segments at their place in the audio, without words that nobody said there."""
    segments = [replace(moved(segment, piece.start_s), language=language) for segment in transcript.segments]
    return without_invented_words(piece, segments)


@dataclass(frozen=True, eq=False)
class PieceOutcome:
    """A piece's segments at their place in the audio, and what was found out on the way.

    attention: (tokens, steps), if it was asked for.
    """

    segments: tuple[Segment, ...]
    detection: Detection | None = None
    source: str | None = None
    timing: Timing = NO_TIME
    uncovered: Spans = ()
    attention: np.ndarray | None = None


@dataclass
class _Assembly:
    """One audio's transcript, while its pieces come in.

    task: its language is the one found in the first piece, if that was asked for and not detect_each.
    """

    task: Task
    overlap_s: float
    detect_each: bool = False
    samples: int = 0
    segments: list[Segment] = field(default_factory=list)
    uncovered: list[tuple[float, float]] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    detection: Detection | None = None
    source: str | None = None
    timing: Timing = NO_TIME

    def __post_init__(self) -> None:
        self.joiner = Joiner(self.overlap_s)

    @property
    def duration_s(self) -> float:
        return self.samples / SAMPLE_RATE

    def add(self, piece: Piece, outcome: PieceOutcome) -> tuple[Segment, ...]:
        """Take in what a piece has become; returns the segments that are now final."""
        if outcome.detection:
            self.languages[outcome.detection.language] += len(piece.waveform)
            if not self.detection:
                self.detection = outcome.detection
                if not self.detect_each:
                    self.task = replace(self.task, language=outcome.detection.language)
        if self.task.timestamps != "none":
            self.source = self.source or outcome.source
        self.timing = _added(self.timing, outcome.timing)
        self.uncovered += outcome.uncovered
        new = self.joiner.add(outcome.segments, piece.start_s, piece.end_s, piece.overlap_s)
        return self._final(new)

    def finish(self) -> tuple[Segment, ...]:
        """The segments that were held back for what might follow."""
        return self._final(self.joiner.finish())

    def _final(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        if self.task.timestamps == "none":
            # Only the merge needed the words' times.
            segments = tuple(replace(segment, words=()) for segment in segments)
        self.segments += segments
        return segments

    def transcription(self) -> Transcription:
        task = self.task
        if task.language == AUTO and self.languages:
            task = replace(task, language=self.languages.most_common(1)[0][0])
        transcript = Transcript(
            " ".join(segment.text for segment in self.segments),
            task.language,
            task.target,
            self.duration_s,
            tuple(self.segments),
            self.source,
        )
        return Transcription(transcript, self.detection, self.source, self.timing, tuple(self.uncovered))


@dataclass(frozen=True)
class _Work:
    """The passes of one audio."""

    engine: Runner
    assembly: _Assembly
    options: DecodingOptions
    priority: int
    loop_guard: bool

    async def outcome(self, piece: Piece, is_first: bool) -> PieceOutcome:
        """A piece written out; again in another way what says the same over and over, or was passed over."""
        if piece.speech is None and await asyncio.to_thread(is_silent, piece.waveform):
            return PieceOutcome(())
        outcome = await self._pass(piece, self.options, is_first)
        if self.loop_guard and is_loop(_text(outcome)):
            outcome = await self._without_loop(piece, outcome)
        speech = await asyncio.to_thread(_speech, piece, outcome)
        missed = self._missed(piece, outcome, speech)
        if missed and self.loop_guard:
            outcome, missed = await self._filled(piece, outcome, speech, missed)
        uncovered = tuple((start, end) for start, end in missed if end - start >= UNCOVERED_S)
        for start, end in uncovered:
            log.warning("nothing was written for the speech from %.1f to %.1f s", start, end)
        return replace(outcome, uncovered=uncovered)

    def _missed(self, piece: Piece, outcome: PieceOutcome, speech: Spans) -> Spans:
        """The speech that nothing was written from."""
        written = covered_spans(piece, outcome.segments, outcome.attention)
        if self.assembly.task.is_translation:
            return missed_speech(speech, written, NEAR_TRANSLATED_S, UNCOVERED_S)
        return missed_speech(speech, written, NEAR_S, MISSED_S)

    async def _filled(
        self, piece: Piece, outcome: PieceOutcome, speech: Spans, missed: Spans
    ) -> tuple[PieceOutcome, Spans]:
        """The outcome with what was passed over, by passes over nothing else; and what is missing still."""
        if outcome.segments and not any(segment.words for segment in outcome.segments):
            # Only among words with times has it a place; and writing times the model may pass over less.
            timed = await self._pass(replace(piece, within_sound=True), self.options)
            if not any(segment.words for segment in timed.segments):
                return outcome, missed
            outcome = replace(timed, detection=outcome.detection)
            missed = self._missed(piece, outcome, speech)
        segments = outcome.segments
        for start, end in missed:
            first, stop = (round((at - piece.start_s) * SAMPLE_RATE) for at in (start - MARGIN_S, end + MARGIN_S))
            first = max(0, first)
            part = Piece(piece.start_s + first / SAMPLE_RATE, piece.waveform[first:stop], within_sound=True)
            found = await self._pass(part, self.options)
            segments = insert_words(segments, found.segments, start - NEAR_S, end + NEAR_S)
        outcome = replace(outcome, segments=segments, attention=None)
        return outcome, self._missed(piece, outcome, speech)

    async def _without_loop(self, piece: Piece, looped: PieceOutcome) -> PieceOutcome:
        """What a wider search makes of the piece or, if that says the same over and over as well, of its halves."""
        log.warning("a loop from %.1f to %.1f s: decoded again", piece.start_s, piece.end_s)
        if self.options.beam_size in (None, 1):
            wider = replace(self.options, beam_size=LOOP_BEAM)
            again = await self._pass(piece, wider)
            if not is_loop(_text(again)):
                return again
        half_s = (piece.end_s - piece.start_s) / 2
        if half_s < 1:
            return looped
        halves = Cutting(half_s, half_s + 1, min(1.0, half_s / 2))
        joiner, segments, outcome = Joiner(halves.overlap_s), (), looped
        for half in await asyncio.to_thread(lambda: list(cut([piece.waveform], halves))):
            within_sound = half.within_sound or piece.within_sound
            part = Piece(piece.start_s + half.start_s, half.waveform, half.overlap_s, within_sound=within_sound)
            outcome = await self._pass(part, self.options)
            segments += joiner.add(outcome.segments, part.start_s, part.end_s, part.overlap_s)
        return replace(looped, segments=segments + joiner.finish(), attention=None)

    async def _pass(self, piece: Piece, options: DecodingOptions, is_first: bool = False) -> PieceOutcome:
        task = self.assembly.task
        given = task_for(piece, task)
        # What a piece without times was written from is only told by the attention.
        attention = self.loop_guard and piece.speech is not None and given.timestamps == "none"
        wanted = Pass(piece.waveform, (given,), options, attention=attention and not task.is_translation)
        while True:
            try:
                result = await self.engine.run(wanted, self.priority)
                break
            except QueueFull:
                # Who has waited for a turn once is not sent away in the middle.
                if is_first:
                    raise
                await asyncio.sleep(0.5)
        transcript = result.transcripts[0]
        language = transcript.language if task.language == AUTO and self.assembly.detect_each else None
        source, attended = transcript.timestamps_source, result.attention[0] if result.attention else None
        segments = placed(piece, transcript, language)
        return PieceOutcome(segments, result.detection, source, result.timing, attention=attended)


def _counted(blocks: Iterable[np.ndarray], assembly: _Assembly) -> Iterable[np.ndarray]:
    for block in blocks:
        assembly.samples += len(block)
        yield block


def _text(outcome: PieceOutcome) -> str:
    return " ".join(segment.text for segment in outcome.segments)


def _speech(piece: Piece, outcome: PieceOutcome) -> Spans:
    """What is said in a piece. Where nobody has listened, nobody does unless it has no text at all."""
    if piece.speech is not None or outcome.segments:
        return piece.speech or ()
    return speech_spans(np.array(SpeechDetector().feed(piece.waveform)), piece.start_s)


def moved(segment: Segment, by_s: float) -> Segment:
    """The same segment and its words, later."""
    words = tuple(replace(word, start=word.start + by_s, end=word.end + by_s) for word in segment.words)
    return replace(segment, start=segment.start + by_s, end=segment.end + by_s, words=words)


def _added(a: Timing, b: Timing) -> Timing:
    return Timing(a.queue_s + b.queue_s, a.features_s + b.features_s, a.encode_s + b.encode_s, a.decode_s + b.decode_s)
