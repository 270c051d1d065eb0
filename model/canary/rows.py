"""The texts of a running batch: what is asked for, and what is written so far."""

from dataclasses import dataclass, field

import numpy as np

from model.arrays import Array
from model.canary.beam import Beam
from model.canary.decoder import TextMemory, of_row


@dataclass(frozen=True)
class Utterance:
    """One text to write from an encoded audio.

    key: the caller's name for it; encoded: (T, M), all of it real; prompt: token ids; limit: the most new tokens;
    memory: cross-attention's keys and values of `encoded` (1, 2H, T, d) by layer, if they are known.
    For greedy search only, attention: also return which encoder steps each token was written from; before: the text as
    it was written last time, or a guess; remember: also return what the next text of this audio takes as `before`.

    Where `before` begins like the prompt, its keys and values are used instead of computing them. What it has after the
    prompt is a draft: a guess at the text. It saves steps where it is right, and changes no token: see `Reading`.
    """

    key: int
    encoded: Array
    prompt: list[int]
    limit: int
    beam_size: int = 1
    length_penalty: float = 0.0
    memory: list[Array] | None = None
    attention: bool = False
    before: TextMemory | None = None
    remember: bool = False

    @property
    def asks_for_attention(self) -> bool:
        return self.attention and self.beam_size == 1

    def known(self) -> list[Array]:
        """Keys and values (1, 2H, n, d) by layer of the first tokens, from last time; [] if there are none."""
        if self.before is None or not self.before.layers:
            return []
        # The last one is read again: what follows it is to be found out.
        known = min(self.before.shared(self.prompt), self.before.layers[0].shape[2], len(self.prompt) - 1)
        return of_row(self.before.layers, 0, 0, known) if known else []

    def draft(self) -> list[int]:
        """A guess at what follows the prompt."""
        if self.before is None or self.beam_size > 1 or self.before.shared(self.prompt) < len(self.prompt):
            return []
        return self.before.tokens[len(self.prompt) :]


@dataclass
class Greedy:
    """A text that is decoded greedily.

    nothing: see `Generated`; attention: arrays (n, T), each of the next n tokens, if the utterance asks for it.
    """

    utterance: Utterance
    nothing: float
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    attention: list[Array] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    width = 1

    @property
    def position(self) -> int:
        """That of the last token, which is read next."""
        return len(self.utterance.prompt) + len(self.tokens) - 1

    def last_tokens(self) -> list[int]:
        return self.tokens[-1:]

    def write(self, token: int, log_prob: float) -> None:
        self.tokens.append(token)
        self.log_probs.append(log_prob)

    def write_best(self, scores: np.ndarray) -> None:
        """The most probable token of log-probabilities (V,)."""
        token = int(scores.argmax())
        self.write(token, float(scores[token]))


@dataclass
class Searched:
    """The rows of a beam, in the order of its hypotheses."""

    utterance: Utterance
    nothing: float
    beam: Beam
    rows: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """That of the last tokens, which are read next."""
        return len(self.utterance.prompt) + self.beam.tokens.shape[1] - 1

    @property
    def width(self) -> int:
        return self.beam.width

    def last_tokens(self) -> list[int]:
        return self.beam.tokens[:, -1].tolist()
