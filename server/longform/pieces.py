"""One piece of a recording through the engine: decoded again where its text loops or leaves speech out."""

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from model.decoding import DecodingOptions, Detection
from model.task import AUTO, Task
from model.transcript import Segment, Transcript
from server.audio.vad import SpeechDetector
from server.engine.batching import Pass, PassResult, Timing
from server.engine.thread import ModelInfo
from server.errors import QueueFull
from server.longform.checks import (
    MISSED_S,
    NEAR_S,
    NEAR_TRANSLATED_S,
    UNCOVERED_S,
    Spans,
    covered_spans,
    insert_words,
    is_loop,
    missed_speech,
    without_invented_words,
)
from server.longform.cutting import MARGIN_S, SAMPLE_RATE, Cutting, Piece, cut, is_silent, speech_spans
from server.longform.joining import Joiner

log = logging.getLogger(__name__)

# The beam size with which a looping piece is decoded again.
LOOP_BEAM = 4
NO_TIME = Timing()


class Runner(Protocol):
    """What long audio needs of an Engine."""

    @property
    def info(self) -> ModelInfo | None: ...

    async def run(self, wanted: Pass, priority: int = ...) -> PassResult: ...


@dataclass(frozen=True, eq=False)
class PieceOutcome:
    """A piece's segments, with times in the whole recording, and what else its passes found out.

    attention: (tokens, steps), if it was asked for.
    """

    segments: tuple[Segment, ...]
    detection: Detection | None = None
    source: str | None = None
    timing: Timing = NO_TIME
    uncovered: Spans = ()
    attention: np.ndarray | None = None

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class PieceTranscriber:
    """Transcribes the pieces of one recording, each by itself.

    loop_guard: decode a piece again, in another way, if its text loops or misses speech; detect_each: with the language
    "auto", note each piece's own language in its segments.
    """

    engine: Runner
    options: DecodingOptions
    priority: int
    loop_guard: bool
    detect_each: bool

    async def outcome(self, piece: Piece, task: Task, is_first: bool, check_language: bool) -> PieceOutcome:
        """The piece's final segments.

        is_first: raise QueueFull if the engine's queue is full; later pieces wait instead. check_language: detect the
        spoken language even if the task names one.
        """
        if piece.speech is None and await asyncio.to_thread(is_silent, piece.waveform):
            return PieceOutcome(())
        outcome = await self._pass(piece, task, self.options, is_first, check_language)
        if self.loop_guard and is_loop(outcome.text):
            outcome = await self._without_loop(piece, task, outcome)
        speech = await asyncio.to_thread(_speech, piece, outcome)
        missed = _missed(piece, task, outcome, speech)
        if missed and self.loop_guard:
            outcome, missed = await self._filled(piece, task, outcome, speech, missed)
        uncovered = tuple((start, end) for start, end in missed if end - start >= UNCOVERED_S)
        for start, end in uncovered:
            log.warning("no text for the speech from %.1f to %.1f s", start, end)
        return replace(outcome, uncovered=uncovered)

    async def _filled(
        self, piece: Piece, task: Task, outcome: PieceOutcome, speech: Spans, missed: Spans
    ) -> tuple[PieceOutcome, Spans]:
        """The outcome with text for the missed speech, from passes over that alone; and the speech still missed."""
        if outcome.segments and not any(segment.words for segment in outcome.segments):
            # New words can only be placed among words with times. Writing times, the model may also miss less.
            timed = await self._pass(replace(piece, within_sound=True), task, self.options)
            if not any(segment.words for segment in timed.segments):
                return outcome, missed
            outcome = replace(timed, detection=outcome.detection)
            missed = _missed(piece, task, outcome, speech)
        segments = outcome.segments
        for start, end in missed:
            first, stop = (round((at - piece.start_s) * SAMPLE_RATE) for at in (start - MARGIN_S, end + MARGIN_S))
            first = max(0, first)
            part = Piece(piece.start_s + first / SAMPLE_RATE, piece.waveform[first:stop], within_sound=True)
            found = await self._pass(part, task, self.options)
            segments = insert_words(segments, found.segments, start - NEAR_S, end + NEAR_S)
        outcome = replace(outcome, segments=segments, attention=None)
        return outcome, _missed(piece, task, outcome, speech)

    async def _without_loop(self, piece: Piece, task: Task, looped: PieceOutcome) -> PieceOutcome:
        """The piece decoded again with a wider beam or, if that loops as well, in two halves."""
        log.warning("the text from %.1f to %.1f s loops: decoding it again", piece.start_s, piece.end_s)
        if self.options.beam_size in (None, 1):
            wider = replace(self.options, beam_size=LOOP_BEAM)
            again = await self._pass(piece, task, wider)
            if not is_loop(again.text):
                return replace(again, detection=looped.detection)
        half_s = (piece.end_s - piece.start_s) / 2
        if half_s < 1:
            return looped
        halves = Cutting(half_s, half_s + 1, min(1.0, half_s / 2))
        joiner, segments = Joiner(halves.overlap_s), ()
        for half in await asyncio.to_thread(lambda: list(cut([piece.waveform], halves))):
            within_sound = half.within_sound or piece.within_sound
            part = Piece(piece.start_s + half.start_s, half.waveform, half.overlap_s, within_sound=within_sound)
            outcome = await self._pass(part, task, self.options)
            segments += joiner.add(outcome.segments, part.start_s, part.end_s, part.overlap_s)
        return replace(looped, segments=segments + joiner.finish(), attention=None)

    async def _pass(
        self,
        piece: Piece,
        task: Task,
        options: DecodingOptions,
        is_first: bool = False,
        check_language: bool = False,
    ) -> PieceOutcome:
        given = task_for(piece, task)
        # Without word times, only attention shows which audio the text was written from.
        attention = self.loop_guard and piece.speech is not None and given.timestamps == "none"
        wanted = Pass(
            piece.waveform,
            (given,),
            options,
            attention=attention and not task.is_translation,
            detect_language=check_language,
        )
        while True:
            try:
                result = await self.engine.run(wanted, self.priority)
                break
            except QueueFull:
                # A recording that has been let in once is not turned away halfway through.
                if is_first:
                    raise
                await asyncio.sleep(0.5)
        transcript = result.transcripts[0]
        language = transcript.language if task.language == AUTO and self.detect_each else None
        source, attended = transcript.timestamps_source, result.attention[0] if result.attention else None
        segments = placed(piece, transcript, language)
        return PieceOutcome(segments, result.detection, source, result.timing, attention=attended)


def task_for(piece: Piece, task: Task) -> Task:
    """The task as the engine gets it: joining pieces that share sound needs word times, asked for or not."""
    return replace(task, timestamps="word") if piece.within_sound and task.timestamps == "none" else task


def placed(piece: Piece, transcript: Transcript, language: str | None = None) -> tuple[Segment, ...]:
    """A piece's segments with times in the whole recording, without words that the model invented in silence."""
    segments = [replace(moved(segment, piece.start_s), language=language) for segment in transcript.segments]
    return without_invented_words(piece, segments)


def moved(segment: Segment, by_s: float) -> Segment:
    """The segment and its words, `by_s` later."""
    words = tuple(replace(word, start=word.start + by_s, end=word.end + by_s) for word in segment.words)
    return replace(segment, start=segment.start + by_s, end=segment.end + by_s, words=words)


def _missed(piece: Piece, task: Task, outcome: PieceOutcome, speech: Spans) -> Spans:
    """The speech that got no text."""
    covered = covered_spans(piece, outcome.segments, outcome.attention)
    if task.is_translation:
        return missed_speech(speech, covered, NEAR_TRANSLATED_S, UNCOVERED_S)
    return missed_speech(speech, covered, NEAR_S, MISSED_S)


def _speech(piece: Piece, outcome: PieceOutcome) -> Spans:
    """Where there is speech in a piece. Run the VAD now only if it has not run before and the piece has no text."""
    if piece.speech is not None or outcome.segments:
        return piece.speech or ()
    return speech_spans(np.array(SpeechDetector().feed(piece.waveform)), piece.start_s)
