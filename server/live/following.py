"""Live text of a model that carries state: its certain text is never decoded again, and so needs no policy.

Every look encodes only the end of the window: `left_s` of audio whose text is certain, then the audio after it. Steps
with `right_s` of audio after them are decoded for good, from where decoding ended; the text of the last `right_s` is
provisional. At a turn's end, all that is left is decoded for good. At a cut inside a turn, the next window goes on from
the state, with the audio before the cut.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from model.decoding import DecodingOptions, Generated
from model.task import AUTO, Task
from model.transcript import Word
from server.engine.passes import Pass, PassResult, Piece
from server.engine.thread import Engine
from server.live.decoder import run_live, token_texts
from server.live.endpointing import SAMPLE_RATE
from server.live.policy import Token
from server.live.segment import OpenSegment, Written
from server.text.guessing import guessed_language

# Audio before and after the steps that a look decodes for good.
LEFT_S, RIGHT_S = 10.0, 2.0
NO_SOUND = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Followed:
    """What is known of a window's text. Times are seconds from the window's start.

    certain: will not change; tail: may change; settled_s: the audio that the certain text is of; words: the certain
    ones, if the window is complete and its words are timed; text: what the decoder goes on from; lead: audio before the
    window, from the first step that `text` counts; next: what the turn's next window goes on from, after a cut;
    model_s: the model's time that the look took.
    """

    certain: tuple[Token, ...]
    tail: tuple[Token, ...]
    language: str
    settled_s: float
    words: tuple[Word, ...] = ()
    text: Any = None
    lead: np.ndarray = field(default_factory=lambda: NO_SOUND)
    next: "Followed | None" = None
    model_s: float = 0.0


class Follow(Protocol):
    """Goes on with the text of a window (N,) that has grown. before: the last result; `last`: it will not grow.

    cut: the sample where the text ends, if the speaker goes on there; the audio after it is context. right_s: how much
    of that is needed.
    """

    @property
    def right_s(self) -> float: ...

    async def __call__(
        self, window: np.ndarray, task: Task, before: Followed | None, last: bool, cut: int | None
    ) -> Followed: ...


class FollowingTranscriber:
    """A `segment.Transcribe` over a decoder that carries state. It does not translate.

    Where a turn is cut into segments, the decoder hears no cut: a segment is finished once the audio that its last
    steps need has come, and the next one goes on from its state.
    """

    def __init__(self, follow: Follow):
        self._follow = follow
        self.right_s = follow.right_s

    async def __call__(self, window: np.ndarray, segment: OpenSegment, last: bool, cut: int | None) -> Written:
        line = segment.lines[0]
        followed = await self._follow(window, line.task, segment.followed, last, cut)
        line.keep(followed.certain[len(line.certain) :])
        line.tail = list(followed.tail)
        line.task = Task(followed.language)
        segment.followed, segment.carried = followed, followed.next
        segment.settled_s = followed.settled_s
        return Written((), followed.words, followed.model_s)


class Follower:
    """The engine as a `Follow`. word_times: also time the words of a finished window.

    left_s, right_s: see the module. The state stays with the session that it belongs to, and is freed with it.
    """

    def __init__(self, engine: Engine, word_times: bool, left_s: float = LEFT_S, right_s: float = RIGHT_S):
        assert engine.info
        self._engine = engine
        self._tokenizer = engine.info.tokenizer
        self._word_times = word_times
        self._languages = engine.info.config.languages
        self._step_s = engine.info.config.step_s
        self._left = round(left_s / self._step_s)
        self._right = round(right_s / self._step_s)
        self.right_s = right_s

    async def __call__(
        self, window: np.ndarray, task: Task, before: Followed | None, last: bool, cut: int | None = None
    ) -> Followed:
        written: Generated | None = before.text if before else None
        lead = before.lead if before else NO_SOUND
        sound = np.concatenate([lead, window])
        lead_s, begin = len(lead) / SAMPLE_RATE, written.state.frames if written else 0
        end = None if last else int(len(sound) / SAMPLE_RATE / self._step_s) - self._right
        if cut is not None:
            at = int((lead_s + cut / SAMPLE_RATE) / self._step_s)
            end = at if end is None else min(end, at)
        wants_words = last and self._word_times
        asked = replace(task, timestamps="word" if wants_words else "none")
        result = await self._decoded(sound, asked, written, None if end is None else max(begin, end))
        model_s = result.timing.model_s
        while last and (end := self._end_of_word(result)) is not None:
            result = await self._decoded(sound, asked, result.generated[0], end)
            model_s += result.timing.model_s
        so_far, *provisional = result.generated
        certain = before.certain if before else ()
        certain += self._tokens(certain, so_far, lead_s, len(written.tokens) if written else 0)
        tail = self._tokens(certain, provisional[0], lead_s) if provisional and not last else ()
        transcript = result.transcripts[0]
        words = [
            replace(word, start=word.start - lead_s, end=word.end - lead_s)
            for segment in transcript.segments
            for word in segment.words
        ]
        settled_s = min(so_far.state.frames * self._step_s, len(sound) / SAMPLE_RATE) - lead_s
        language = transcript.language
        if last and language == AUTO:
            # In a thread: the first guess takes half a second.
            guess = await asyncio.to_thread(guessed_language, transcript.text, self._languages)
            language = guess.language if guess else AUTO
        after = None if cut is None or not last else self._after(so_far, sound[: len(lead) + cut])
        return Followed(certain, tail, language, settled_s, tuple(words), so_far, lead, after, model_s)

    async def _decoded(self, sound: np.ndarray, task: Task, before: Generated | None, end: int | None) -> PassResult:
        """The text of the sound up to the step `end`, None for all, and of the steps after it, provisionally."""
        begin = before.state.frames if before else 0
        piece = Piece(max(0, begin - self._left), end, before)
        return await run_live(self._engine, Pass(sound, (task,), DecodingOptions(beam_size=1), piece=piece))

    def _end_of_word(self, result: PassResult) -> int | None:
        """The step after a word that the provisional text goes on with; None if it begins with a word of its own."""
        so_far, *provisional = result.generated
        if not so_far.tokens or not provisional:
            return None
        tokens, frames = provisional[0].tokens, provisional[0].frames
        # A text is cut between two steps, so a word that begins at the same step goes with the one before it.
        begins = (
            i
            for i, token in enumerate(tokens)
            if self._tokenizer.starts_word(token) and (i == 0 or frames[i] > frames[i - 1])
        )
        rest = next(begins, len(tokens))
        return frames[rest - 1] + 1 if rest else None

    def _after(self, written: Generated, sound: np.ndarray) -> Followed:
        """What goes on after `sound` (N,), which a text was cut at."""
        steps = written.state.frames
        kept = min(steps, self._left)
        lead = sound[round((steps - kept) * self._step_s * SAMPLE_RATE) :].copy()
        return Followed((), (), AUTO, 0.0, text=written.restarted(kept), lead=lead)

    def _tokens(
        self, before: tuple[Token, ...], generated: Generated, lead_s: float, first: int = 0
    ) -> tuple[Token, ...]:
        """The tokens of `generated` from `first` on, which follow those of `before`."""
        placed = zip(generated.tokens[first:], generated.frames[first:], strict=True)
        new = [
            (token, frame * self._step_s - lead_s) for token, frame in placed if not self._tokenizer.is_special(token)
        ]
        # The last tokens may be the first bytes of a character.
        whole = next((i for i in range(len(before), 0, -1) if before[i - 1].text), 0)
        known, unfinished = ([token.id for token in part] for part in (before[:whole], before[whole:]))
        texts = token_texts(self._tokenizer, known, [*unfinished, *(token for token, _ in new)])[len(unfinished) :]
        return tuple(Token(token, text, at_s) for (token, at_s), text in zip(new, texts, strict=True))
