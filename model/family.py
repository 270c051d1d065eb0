"""What every family of models offers the rest of the program.

A family is a package beside this file (`model.canary`). `server` knows these protocols, never a family by name;
`model.loading` picks the family of a converted folder.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from model.decoding import DecodingOptions, Detection, Encoded, Generated
from model.task import Task
from model.tokenizer import Tokenizer
from model.transcript import Transcript

if TYPE_CHECKING:
    from model.arrays import Array


class ModelConfig(Protocol):
    """What a model is and supports. Unlike the model itself, it may be used in any thread."""

    @property
    def name(self) -> str: ...

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-1; empty if the model does not say them, and so takes any."""
        ...

    @property
    def step_s(self) -> float:
        """Seconds of audio in one encoder step."""
        ...

    @property
    def longest_s(self) -> float:
        """The longest audio, in seconds, that one pass transcribes well."""
        ...

    @property
    def context_tokens(self) -> int:
        """The most tokens that a task's context may have; 0 if the model takes no context."""
        ...

    @property
    def detects_language(self) -> bool:
        """Whether the model can tell the spoken language."""
        ...

    @property
    def carries_state(self) -> bool:
        """Whether a recording can be decoded in pieces, each going on where the last one ended: see `Model.piece`."""
        ...

    @property
    def has_attention(self) -> bool:
        """Whether texts can tell what they were written from. If not, the times of words cost nothing: they are the
        model's own."""
        ...

    @property
    def writes_times(self) -> bool:
        """Whether a text with times has them as tokens, `<|12|> word<|17|>`: see `timestamps.timed_segments`."""
        ...

    @property
    def translates(self) -> bool:
        """Whether the model can write another language than the spoken one."""
        ...

    def check(self, task: Task) -> None:
        """Raise TaskError, naming the value and what is supported, if the model cannot do `task`."""
        ...

    def check_options(self, options: DecodingOptions) -> None:
        """Raise TaskError, naming the value and what is supported, if the model cannot decode as `options` ask."""
        ...


class RunningBatch(Protocol):
    """Texts that are decoded side by side, one step at a time. A text's tokens do not depend on the others."""

    @property
    def rows(self) -> int:
        """Rows in use: one for each text, or for each hypothesis of a beam."""
        ...

    def join(self, utterances: list[Any]) -> Sequence[Generated]:
        """Add texts, made by `Model.utterance`; returns those that are finished already."""
        ...

    def step(self) -> Sequence[Generated]:
        """One step for every row; returns the texts that it finished."""
        ...

    def drop(self, key: int) -> None:
        """Free the rows of the text `key`, if it has any."""
        ...


class Model(Protocol):
    """A loaded model. It belongs to the thread that loaded it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> Tokenizer:
        """May be used in any thread."""
        ...

    @property
    def dtype(self) -> str:
        """What it computes in: "float32", "bfloat16" or "float16"."""
        ...

    @property
    def encodes_together(self) -> bool:
        """Whether `encodings` pads audios to one length and encodes them in one batch, or one after the other."""
        ...

    def encodings(self, waveforms: list[np.ndarray], between_layers: Callable[[], None] | None = None) -> list[Encoded]:
        """The encoding of each waveform, (N,) float32 at 16 kHz.

        between_layers: called after every few of the encoder's layers, so that short work need not wait until a long
        encoding ends. It may compute with the model.
        """
        ...

    def growing_encodings(self, waveforms: list[np.ndarray], before: list[Encoded | None]) -> list[Encoded]:
        """The encodings of audios (N,) that go on growing. before: that of a shorter part of each, None at first.

        Texts written from it have a `Generated.memory`. Only for a model that carries no state, see
        `ModelConfig.carries_state`.
        """
        ...

    def long_encoding(self, waveform: np.ndarray, between_layers: Callable[[], None] | None = None) -> Encoded:
        """The encoding of a long waveform (N,), by attention to what is near: memory grows with N, not with its square.

        between_layers: see `encodings`. Only for a model that takes `DecodingOptions.one_pass`.
        """
        ...

    def detect_language(self, encoded: Encoded) -> Detection:
        """The spoken language. Only for a model that can tell: see `ModelConfig.detects_language`."""
        ...

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
    ) -> Any:
        """One text, for `RunningBatch.join`. Raises TaskError.

        prefix: tokens that the text is known to begin with; attention: also tell what each token was written from;
        before: the `Generated.memory` of a text of a shorter part of the audio. What is the same costs little again;
        draft: without `before`, a guess at the tokens after the prefix. Where it is right, they cost little, too.
        """
        ...

    def piece(self, key: int, vectors: "Array", state: Any, head: str | None = None) -> Any:
        """A piece (T, M) of an encoded recording, for `RunningBatch.join`. Its `Generated` has the next state.

        state: of the piece before it, None for the first; head: as in `DecodingOptions`. Only for a model that carries
        state: see `ModelConfig.carries_state`. Raises TaskError.
        """
        ...

    def running_batch(self) -> RunningBatch:
        """An empty batch."""
        ...

    def transcript(self, generated: Generated, waveform: np.ndarray, task: Task, encoded: Encoded) -> Transcript:
        """Tokens, prefix included, as text with the times that `task` asks for."""
        ...

    def attention(self, encoded: Encoded, task: Task, tokens: list[int]) -> np.ndarray:
        """Which encoder steps each of `tokens` was written from: (len(tokens), T), rows summing to 1.

        Only for a model with attention: see `ModelConfig.has_attention`.
        """
        ...
