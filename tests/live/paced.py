"""A Canary in a published shape, with random weights, that writes at the pace of speech.

A random model writes at random and never ends a text, so none of its words would ever be certain. Made up are:

- The words. A text has two for each second of its audio, of two tokens each, and then ends. The n-th word is the same
  in every text, whatever is heard, so text settles as a real model's does. The first begins after 0.6 s, so that none
  is written from the silence with which audio of less than a second is padded.
- The times that tokens attend to: those of their words.
- The times of words in a text that has them. A third each are as the service guesses them from attention, one encoder
  step earlier, and one later. So two of three are wrong in a draft.

Everything is computed as in `canary serve`: features, encoder, prefill, drafts, steps, attention, and the scores of all
tokens. The next step reads a word that is made up as it would read one that the model chose. In three ways the work is
not a real model's: words are written for silences too, a tail is never revised, so that its draft always holds, and
after a wrong time in a draft the model still finds the next times.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from model.arrays import Array
from model.canary import model as canary
from model.canary.generate import RunningBatch
from model.canary.model import CanaryModel
from model.canary.prompt import END
from model.canary.reading import Reading
from model.canary.rows import Greedy, Searched, Utterance
from model.decoding import DecodingOptions, Encoded, Generated
from model.task import Task
from model.tokenizer import PAD, Tokenizer
from server.live.decoder import STARTS_BEFORE

WORD_S, TOKENS = 0.5, 2
"""How long a word lasts, and its tokens."""
LEAD_S = 0.6
"""The time before the first word."""
# How long an encoder step lasts, in every Canary.
STEP_S = 0.08
# Added to the log-probability of all tokens but the one to write.
UNLIKELY = -1e4


@cache
def words_of(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of the words that all texts begin with: a piece that begins a word, then one that goes on."""
    pieces = {i: tokenizer.piece(i) for i in range(tokenizer.vocab_size)}
    begins = [i for i, piece in pieces.items() if piece.startswith("▁") and piece[1:].isalpha()]
    goes_on = [i for i, piece in pieces.items() if piece.isalpha()]
    drawn = random.Random(0)
    return [(drawn.choice(begins), *drawn.choices(goes_on, k=TOKENS - 1)) for _ in range(200)]


def said(tokenizer: Tokenizer, heard_s: float, with_times: bool = False) -> list[tuple[int, float]]:
    """The tokens of a text of so much audio, each with the time that it was said at.

    with_times: each word stands between two time tokens, as flash models write them.
    """
    tokens: list[tuple[int, float]] = []
    drawn = random.Random(0)
    for number in range(int((heard_s - LEAD_S) / WORD_S + 1e-6)):
        start = LEAD_S + number * WORD_S
        places = [start + (i + 0.5) / TOKENS * WORD_S for i in range(TOKENS)]
        word = list(zip(words_of(tokenizer)[number], places, strict=True))
        if with_times:
            guessed = (int(at / STEP_S) - STARTS_BEFORE for at in (places[0], places[0] + WORD_S))
            first, last = (tokenizer.special_id(f"<|{step + drawn.choice((-1, 0, 1))}|>") for step in guessed)
            word = [(first, places[0]), *word, (last, places[-1])]
        tokens += word
    return tokens


@dataclass(frozen=True)
class PacedUtterance(Utterance):
    """script: the tokens to write after the prompt, and the end; steps: the encoder step that each was said at."""

    script: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def token(self, number: int) -> int:
        """The one to write after so many."""
        return self.script[min(number, len(self.script) - 1)]


class PacedBatch(RunningBatch):
    """Computes everything, then writes what the utterances' scripts say."""

    def _write(self, text: Reading, scores: np.ndarray) -> Greedy | Searched:
        assert isinstance(text.utterance, PacedUtterance)
        written = len(text.owner.tokens) if isinstance(text.owner, Greedy) else 0
        scripted = [text.utterance.token(written + number) for number in range(len(scores))]
        return super()._write(text, scores + _against_others(scores.shape, scripted))

    def _log_probs(self, tokens: Array, ahead: int = 0) -> tuple[Array, dict[int, Array]]:
        scores, seen = super()._log_probs(tokens, ahead)
        scripted = []
        for owner in self._owners:
            assert isinstance(owner, Greedy)
            assert isinstance(owner.utterance, PacedUtterance)
            scripted.append(owner.utterance.token(len(owner.tokens) + ahead))
        return scores + self._xp.asarray(_against_others(scores.shape, scripted)), seen

    def _result(self, owner: Greedy | Searched) -> Generated | None:
        result = super()._result(owner)
        if result is None or result.attention is None:
            return result
        assert isinstance(owner.utterance, PacedUtterance)
        attention = np.zeros_like(result.attention)
        attention[np.arange(len(attention)), list(owner.utterance.steps[: len(attention)])] = 1
        return replace(result, attention=attention)


def _against_others(shape: tuple[int, ...], tokens: Sequence[int]) -> np.ndarray:
    """What makes a token the best of its row of scores (R, V), and leaves its own score as it is."""
    added = np.full(shape, UNLIKELY, np.float32)
    added[np.arange(len(tokens)), list(tokens)] = 0
    return added


class PacedCanary(CanaryModel):
    """Writes greedily, whatever is asked for."""

    def utterance(
        self,
        key: int,
        encoded: Encoded,
        task: Task,
        options: DecodingOptions,
        prefix: tuple[int, ...] = (),
        attention: bool = False,
        before: Any = None,
        draft: tuple[int, ...] = (),
    ) -> PacedUtterance:
        greedy = replace(options, beam_size=1)
        own = super().utterance(key, encoded, task, greedy, prefix, attention, before, draft)
        steps = encoded.vectors.shape[0]
        with_times = task.timestamps != "none" and self.config.writes_times
        text = said(self.tokenizer, steps * STEP_S, with_times)[len(prefix) :]
        script = (*(token for token, _ in text), self.tokenizer.special_id(END))
        return PacedUtterance(**vars(own), script=script, steps=tuple(int(at / STEP_S) for _, at in text))

    def running_batch(self) -> RunningBatch:
        end_id, pad_id = (self.tokenizer.special_id(token) for token in (END, PAD))
        return PacedBatch(
            self.decoder, self.head, end_id, pad_id, self._no_speech_id, time_ids=self.tokenizer.time_steps
        )


def take_over() -> None:
    """Pace every Canary that this process loads from now on."""
    canary.CanaryModel = PacedCanary  # type: ignore[misc]
