"""Live text from a model that transcribes whole windows.

Each look rewrites what follows the certain text, and a policy decides which new words are certain. The language is
detected here, too. A translation is a line of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from model.task import AUTO, Task, TaskError
from model.transcript import Word
from server.live.endpointing import SAMPLE_RATE
from server.live.events import Event, Problem
from server.live.policy import Token
from server.live.segment import Line, LiveOptions, OpenSegment, Written

# A detected language is kept if it is this probable in at least so much audio.
SURE_LANGUAGE = 0.7
LANGUAGE_NEEDS_S = 2.0


@dataclass(frozen=True)
class Heard:
    """A decoder's result for a window: for each task, the tokens that follow the given ones.

    words: of the first task, in seconds from the window's start, if the decoder times them; probability: of the
    language, 1 if it was not detected; look: what the next call for this segment continues from, which only the decoder
    understands; model_s: how long the model took.
    """

    tokens: tuple[tuple[Token, ...], ...]
    language: str
    probability: float = 1.0
    words: tuple[Word, ...] = ()
    look: Any = None
    model_s: float = 0.0


class Decode(Protocol):
    """Decodes a window (N,) for each task, continuing the `given` tokens.

    last: the window will not grow; look: from the last call for this segment, None at first; tails: for each task, the
    tokens that the last call found after the given ones. Most will be found again.
    """

    async def __call__(
        self,
        window: np.ndarray,
        tasks: tuple[Task, ...],
        given: tuple[tuple[Token, ...], ...],
        last: bool,
        look: Any = None,
        tails: tuple[tuple[Token, ...], ...] = (),
    ) -> Heard: ...


class WindowTranscriber:
    """A `segment.Transcribe` over a decoder of whole windows. check: raises TaskError for an unsupported task."""

    # A text is decoded from its window alone.
    right_s = 0.0

    def __init__(self, decode: Decode, options: LiveOptions, check: Callable[[Task], None] = lambda task: None):
        self._decode = decode
        self._options = options
        self._check = check
        # The last language that was detected with certainty.
        self._language: str | None = None

    async def __call__(self, window: np.ndarray, segment: OpenSegment, last: bool, cut: int | None) -> Written:
        events: list[Event] = []
        words: tuple[Word, ...] = ()
        model_s = 0.0
        lines, window_s = segment.lines, len(window) / SAMPLE_RATE
        if segment.language is None and self._options.language != AUTO:
            events += self._settle_language(segment, self._options.language)
        if segment.language is None:
            heard, sure = await self._hear_language(window, last)
            model_s = heard.model_s
            lines[0].task = Task(heard.language)
            lines[0].hear(heard.tokens[0], window_s, self._options, last, may_stay=sure)
            if sure:
                self._language = heard.language
                events += self._settle_language(segment, heard.language)
            if not last:
                return Written(events, (), model_s)
            words, lines = heard.words, lines[1:]
        if lines:
            tasks = tuple(line.task for line in lines)
            given, tails = tuple(tuple(line.certain) for line in lines), tuple(tuple(line.tail) for line in lines)
            heard = await self._decode(window, tasks, given, last, segment.look, tails)
            segment.look = heard.look
            model_s += heard.model_s
            for line, tokens in zip(lines, heard.tokens, strict=True):
                line.hear(tokens, window_s, self._options, last, may_stay=True)
            words = words or heard.words
        return Written(events, words, model_s)

    async def _hear_language(self, window: np.ndarray, last: bool) -> tuple[Heard, bool]:
        """A first hypothesis in the most probable language, and whether that language can be kept.

        A finished segment whose language is uncertain is taken to be in the language spoken before.
        """
        heard = await self._decode(window, (Task(AUTO),), ((),), last)
        certain = heard.probability >= SURE_LANGUAGE
        if last and not certain and self._language not in (None, heard.language):
            again = await self._decode(window, (Task(self._language),), ((),), last)
            heard = replace(again, model_s=heard.model_s + again.model_s)
        return heard, last or (certain and len(window) >= LANGUAGE_NEEDS_S * SAMPLE_RATE)

    def _settle_language(self, segment: OpenSegment, language: str) -> list[Event]:
        """Keep the language, and add the translation, whose task depends on it."""
        segment.language = language
        target = self._options.target_language
        if target in (None, language):
            return []
        task = Task(language, target)
        try:
            self._check(task)
        except TaskError as error:
            return [Problem("unsupported_task", f"{error}.")]
        segment.lines.append(Line(task))
        return []
