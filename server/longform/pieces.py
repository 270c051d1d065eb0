"""One piece of a recording: its passes through the engine, and the checks of its text.

A text that repeats itself is decoded in another way, words that nobody said are dropped, and speech without text is
transcribed once more.
"""

import asyncio
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from model.decoding import DecodingOptions, Detection
from model.family import ModelConfig
from model.task import AUTO, Task, TaskError
from model.transcript import Segment, Transcript, Word
from server.audio.vad import SpeechDetector
from server.engine.info import ModelInfo
from server.engine.passes import Pass, PassResult, Timing
from server.errors import QueueFull
from server.longform.cutting import LONG_PAUSE_S, MARGIN_S, SAMPLE_RATE, Cutting, Piece, cut, is_silent, speech_spans
from server.longform.joining import Joiner, kept_words, overlap_words
from server.longform.spoken import guessed

log = logging.getLogger(__name__)

# The beam size with which a looping piece is decoded again.
LOOP_BEAM = 4
NO_TIME = Timing()
Spans = tuple[tuple[float, float], ...]
# Speech of this length without a word is transcribed again. If that fails, longer speech is reported as uncovered.
MISSED_S, UNCOVERED_S = 0.7, 2.0
# How far off a word's time may be. Words of a translation are often not at the time of what they translate.
NEAR_S, NEAR_TRANSLATED_S = 0.15, 1.0
# A word that extends across a long silence must be this probable to be kept.
SURE_IN_SILENCE = 0.8
# Text of speech that was transcribed again must have this mean log probability per token: a cough is not a word.
MIN_LOG_PROB = math.log(0.5)


class Runner(Protocol):
    """The part of an Engine that long audio needs."""

    @property
    def info(self) -> ModelInfo | None: ...

    async def run(self, wanted: Pass, priority: int = ...) -> PassResult: ...


@dataclass(frozen=True, eq=False)
class PieceOutcome:
    """A piece's segments, with times in the whole recording, and what else its passes found.

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
    "auto", note each piece's own language in its segments; start_by: see `Pass`, for the first pass.
    """

    engine: Runner
    options: DecodingOptions
    priority: int
    loop_guard: bool
    detect_each: bool
    start_by: float | None = None

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
        wider = replace(self.options, beam_size=LOOP_BEAM)
        if self.options.beam_size in (None, 1) and self._takes(wider):
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

    def _takes(self, options: DecodingOptions) -> bool:
        """Whether the model can decode as `options` ask."""
        try:
            if self.engine.info:
                self.engine.info.config.check_options(options)
        except TaskError:
            return False
        return True

    async def _pass(
        self,
        piece: Piece,
        task: Task,
        options: DecodingOptions,
        is_first: bool = False,
        check_language: bool = False,
    ) -> PieceOutcome:
        config = self.engine.info.config if self.engine.info else None
        has_attention = config is None or config.has_attention
        given = task_for(piece, task, words_are_free=not has_attention)
        # Without word times, only attention shows which audio the text was written from.
        attention = has_attention and self.loop_guard and piece.speech is not None and given.timestamps == "none"
        wanted = Pass(
            piece.waveform,
            (given,),
            options,
            attention=attention and not task.is_translation,
            detect_language=check_language,
            start_by=self.start_by if is_first else None,
        )
        while True:
            try:
                result = await self.engine.run(wanted, self.priority)
                break
            except QueueFull:
                # Once a recording is accepted, it is not refused halfway through.
                if is_first:
                    raise
                await asyncio.sleep(0.5)
        transcript = result.transcripts[0]
        detection, each = result.detection, task.language == AUTO and self.detect_each
        segments = placed(piece, transcript, detection.language if detection and each else None)
        if each and not detection:
            detection = await asyncio.to_thread(guessed, transcript.text, config)
            segments = tuple(replace(segment, language=_language_of(segment, config)) for segment in segments)
        source, attended = transcript.timestamps_source, result.attention[0] if result.attention else None
        return PieceOutcome(segments, detection, source, result.timing, attention=attended)


def task_for(piece: Piece, task: Task, words_are_free: bool = False) -> Task:
    """The task as the engine gets it: with word times, asked for or not, where joining pieces needs them.

    words_are_free: the model has them anyway, and they show which speech has text.
    """
    needs_words = piece.within_sound or (words_are_free and piece.speech is not None)
    return replace(task, timestamps="word") if needs_words and task.timestamps == "none" else task


def placed(piece: Piece, transcript: Transcript, language: str | None = None) -> tuple[Segment, ...]:
    """A piece's segments with times in the whole recording, without words that the model invented in silence."""
    segments = [replace(moved(segment, piece.start_s), language=language) for segment in transcript.segments]
    return without_invented_words(piece, segments)


def _language_of(segment: Segment, config: ModelConfig | None) -> str | None:
    found = guessed(segment.text, config)
    return found.language if found else None


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


def without_invented_words(piece: Piece, segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The segments without words that the model invented in a long silence.

    These lie within the silence, or extend across much of it and are not probable.
    """
    if piece.speech is None:
        return tuple(segments)
    edges = [piece.start_s, *(at for span in piece.speech for at in span), piece.end_s]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    silences = [(begin, end) for begin, end in gaps if end - begin >= LONG_PAUSE_S]

    def is_spoken(word: Word) -> bool:
        is_sure = word.probability is None or word.probability >= SURE_IN_SILENCE
        for begin, end in silences:
            silent_s = min(word.end, end) - max(word.start, begin)
            if (begin <= word.start and word.end <= end) or (silent_s >= LONG_PAUSE_S and not is_sure):
                return False
        return True

    keep = [is_spoken(word) for segment in segments for word in segment.words]
    return tuple(segments) if all(keep) else tuple(kept_words([s for s in segments if s.words], keep))


def covered_spans(piece: Piece, segments: Sequence[Segment], attention: np.ndarray | None) -> Spans:
    """The stretches of audio that have text: the words' times or, without those, each token's peak of attention.

    attention: (tokens, steps); without it, a segment covers all of its time.
    """
    words = [(word.start, word.end) for segment in segments for word in segment.words]
    if words or attention is None or not segments:
        return tuple(words or ((segment.start, segment.end) for segment in segments))
    step_s = len(piece.waveform) / SAMPLE_RATE / attention.shape[1]
    starts = piece.start_s + step_s * attention.argmax(axis=1)
    return tuple((start, start + step_s) for start in starts.tolist())


def missed_speech(speech: Spans, covered: Spans, near_s: float, shortest_s: float) -> Spans:
    """The stretches of speech without text that are at least shortest_s long. near_s: how far off covered may be."""
    missed: list[tuple[float, float]] = []
    for start, end in speech:
        at = start
        for begin, stop in [*sorted(covered), (end + near_s, end + near_s)]:
            if stop + near_s <= at:
                continue
            if min(begin - near_s, end) - at >= shortest_s:
                missed.append((at, min(begin - near_s, end)))
            at = max(at, stop + near_s)
            if at >= end:
                break
    return tuple(missed)


def insert_words(
    segments: Sequence[Segment], found: Sequence[Segment], start: float, end: float
) -> tuple[Segment, ...]:
    """The segments with the found words between start and end inserted, unless these are improbable."""
    new = kept_words(found, [start <= word.at_s <= end for word in overlap_words(found)])
    log_probs = [p for segment in new for word in segment.words for p in word.log_probs]
    if log_probs and sum(log_probs) / len(log_probs) < MIN_LOG_PROB:
        return tuple(segments)
    middle, new_words, old_words = (start + end) / 2, overlap_words(new), overlap_words(segments)
    # An old word that overlaps an equal new one is the same word with a wrong time.
    keep = [not any(old.key == word.key and old.overlaps(word) for word in new_words) for old in old_words]
    earlier = [old.at_s < middle for old in old_words]
    return (
        *kept_words(segments, [a and b for a, b in zip(keep, earlier, strict=True)]),
        *new,
        *kept_words(segments, [a and not b for a, b in zip(keep, earlier, strict=True)]),
    )


# {words in a phrase: how often in a row make it a loop}. Nobody speaks like that.
_REPEATS = {1: 6, 2: 4, 3: 4, 4: 3, 5: 3, 6: 3, 7: 3, 8: 3, 9: 3, 10: 3}
# One to eight letters, eight times or more in a row: "tatatatatatatata".
_WITHIN_WORD = re.compile(r"(\w{1,8}?)\1{7,}")


def is_loop(text: str) -> bool:
    """Whether a phrase, a word or part of a word is repeated over and over: "a a a a a a", "abababab…"."""
    words = text.casefold().split()
    return bool(_WITHIN_WORD.search(text)) or any(
        _longest_run(words, length) >= times for length, times in _REPEATS.items()
    )


def _longest_run(words: Sequence[str], length: int) -> int:
    """How often in a row, at most, a phrase of `length` words occurs."""
    longest = same = 0
    for i in range(length, len(words)):
        same = same + 1 if words[i] == words[i - length] else 0
        longest = max(longest, same)
    return longest // length + 1 if words else 0
