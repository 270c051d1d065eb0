"""The engine as a live session's decoder: one pass over the window for all tasks, ahead of other passes."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from model.decoding import DecodingOptions
from model.task import AUTO, Task
from model.tokenizer import Tokenizer
from server.engine.passes import Look, Pass, PassResult
from server.engine.thread import Engine
from server.engine.waiting import LIVE
from server.errors import QueueFull
from server.live.endpointing import SAMPLE_RATE
from server.live.policy import Token, words
from server.live.windows import Heard

# Time between two attempts to enter a full queue.
RETRY_S = 0.1
# The most new tokens in one pass over a growing window; the next pass goes on from there.
STEP_TOKENS = 40
# Attention falls on the first steps when it has no target; they are VAD padding, so ignore them.
IGNORED_STEPS = 3
MIN_SAMPLES = SAMPLE_RATE
# Guesses, in encoder steps: how long before its tokens' attention a word begins, and how long after it a word ends at
# the latest.
STARTS_BEFORE = 2
ENDS_AFTER = 4


class EngineDecoder:
    """A `windows.Decode`. word_times: also time the words of a finished segment, at the cost of one more row."""

    def __init__(self, engine: Engine, word_times: bool):
        assert engine.info
        self._engine = engine
        self._tokenizer = engine.info.tokenizer
        self._word_times = word_times
        self._step_s = engine.info.config.step_s
        self._writes_times = engine.info.config.writes_times

    async def __call__(
        self,
        window: np.ndarray,
        tasks: tuple[Task, ...],
        given: tuple[tuple[Token, ...], ...],
        last: bool,
        look: Look | None = None,
        tails: tuple[tuple[Token, ...], ...] = (),
    ) -> Heard:
        # Pad on the right here: the engine would pad short audio on both sides, which would shift all times.
        padding = max(0, MIN_SAMPLES - len(window))
        window = np.pad(window, (0, padding))
        prefixes = tuple(tuple(token.id for token in tokens) for tokens in given)
        asked, drafts = tasks, ()
        wants_words = last and self._word_times and not tasks[0].is_translation
        if wants_words:
            asked, prefixes = (*tasks, replace(tasks[0], timestamps="word")), (*prefixes, ())
            drafts = (*[()] * len(tasks), self._draft([*given[0], *(tails[0] if tails else ())]))
        options = DecodingOptions(beam_size=1, max_new_tokens=None if last else STEP_TOKENS)
        grows = not last and all(task.language != AUTO for task in tasks)
        wanted = Pass(window, asked, options, prefixes, attention=True, grows=grows, look=look, drafts=drafts)
        result = await run_live(self._engine, wanted)
        tokens = tuple(
            self._tokens(before, generated.tokens, attention)
            for before, generated, attention in zip(
                prefixes[: len(tasks)], result.generated, result.attention, strict=False
            )
        )
        segments = result.transcripts[-1].segments if wants_words else ()
        detection = result.detection
        return Heard(
            tokens,
            result.transcripts[0].language,
            detection.probability if detection else 1.0,
            tuple(word for segment in segments for word in segment.words),
            # The next window has audio where this one was padded.
            None if padding else result.look,
            result.timing.model_s,
        )

    def _draft(self, tokens: Sequence[Token]) -> tuple[int, ...]:
        """A guess at the text that times these tokens: with times from a flash model, without from others."""
        if not self._writes_times:
            return tuple(token.id for token in tokens)
        return timed_draft(tokens, self._tokenizer, self._step_s)

    def _tokens(self, before: Sequence[int], generated: Sequence[int], attention: np.ndarray) -> tuple[Token, ...]:
        kept = [(i, row) for i, row in zip(generated, attention, strict=True) if not self._tokenizer.is_special(i)]
        texts = token_texts(self._tokenizer, before, [i for i, _ in kept])
        ignored = min(IGNORED_STEPS, attention.shape[1] - 1) if len(attention) else 0
        places = [(int(row[ignored:].argmax()) + ignored) * self._step_s for _, row in kept]
        return tuple(Token(i, text, at) for (i, _), text, at in zip(kept, texts, places, strict=True))


async def run_live(engine: Engine, wanted: Pass) -> PassResult:
    """A pass ahead of all others. A full queue only delays it."""
    while True:
        try:
            return await engine.run(wanted, LIVE)
        except QueueFull:
            await asyncio.sleep(RETRY_S)


def timed_draft(tokens: Sequence[Token], tokenizer: Tokenizer, step_s: float) -> tuple[int, ...]:
    """A guess at how a flash model writes this text with times, `<|12|> word<|17|>`, from where its tokens attend.

    A word begins before its first token attends, and ends when the next one begins, or soon after its last.
    """
    times = {step: token for token, step in tokenizer.time_steps.items()}
    spoken = words(tokens)
    places = [[round(token.at_s / step_s) for token in word] for word in spoken]
    starts = list(accumulate((max(0, min(place) - STARTS_BEFORE) for place in places), max))
    draft: list[int] = []
    for word, place, start, following in zip(spoken, places, starts, [*starts[1:], max(times)], strict=False):
        end = max(min(max(place) + ENDS_AFTER, following), start)
        if end not in times:
            break
        draft += [times[start], *(token.id for token in word), times[end]]
    return tuple(draft)


def token_texts(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text; "" for a token whose character only the next one completes."""
    ids, texts = list(before), []
    text = tokenizer.text(ids)
    for token in tokens:
        ids.append(token)
        longer = tokenizer.text(ids)
        whole = not longer.endswith("�") and longer.startswith(text)
        texts.append(longer[len(text) :] if whole else "")
        text = longer if whole else text
    return texts
