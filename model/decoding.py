"""What passes between the stages of a model, for every family: search options, encodings, tokens, languages."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

    from model.arrays import Array
    from model.growing import EncoderPast

MAX_BEAM = 32


@dataclass(frozen=True)
class DecodingOptions:
    """How to search. None means the model's own setting.

    head: of a model with several, such as "ctc" or "tdt" of a hybrid Parakeet; one_pass: the audio may be longer than a
    pass is good for, and is encoded with local attention.
    """

    beam_size: int | None = None
    length_penalty: float | None = None
    max_new_tokens: int | None = None
    head: str | None = None
    one_pass: bool = False

    def __post_init__(self) -> None:
        if self.beam_size is not None and not 1 <= self.beam_size <= MAX_BEAM:
            raise ValueError(f"beam_size {self.beam_size} is not between 1 and {MAX_BEAM}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {self.max_new_tokens} is less than 1")


@dataclass(frozen=True)
class Encoded:
    """An encoded audio: vectors (T, M), and the number of encoder steps that NeMo's length limit counts.

    features_s, encode_s: seconds that each stage took for the whole batch.
    Of audio that goes on growing, past: what the encoder goes on from; reused: how many of the vectors are those of the
    encoding before; memory: the decoder's cross-attention keys and values of all steps (1, 2H, T, d), in each layer.
    """

    vectors: "Array"
    total_steps: int
    features_s: float = 0.0
    encode_s: float = 0.0
    past: "EncoderPast | None" = None
    reused: int = 0
    memory: "list[Array] | None" = None


@dataclass(frozen=True)
class Generated:
    """The new tokens of one text without the end token, and the log-probability of each.

    key: the caller's id for the text; nothing: the probability, before the first token, that there is no speech;
    confidences: from 0 to 1, one for each token, if the model tells them; frames: the encoder step of each token,
    counted from the recording's beginning, if the model tells it; state: where decoding ended, for the next piece of
    the recording, see `family.Model.piece`; attention: the encoder steps that each token was written from,
    (len(tokens), T), rows summing to 1, if they were asked for and the search was greedy; memory: what a later text of
    the same audio goes on from, if it was asked for.
    """

    key: int
    tokens: list[int]
    log_probs: list[float]
    nothing: float | None = None
    confidences: list[float] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    state: Any = None
    attention: "np.ndarray | None" = None
    memory: Any = None

    def followed_by(self, later: Self) -> Self:
        """The text of two pieces of a recording, from the texts of each."""
        lists = {name: mine + getattr(later, name) for name, mine in vars(self).items() if isinstance(mine, list)}
        return replace(later, **lists)

    def restarted(self, kept: int) -> Self:
        """An empty text that goes on where this one ended. Its steps count from `kept` steps before that."""
        lists = {name: [] for name, mine in vars(self).items() if isinstance(mine, list)}
        return replace(self, **lists, state=replace(self.state, frames=kept))


@dataclass(frozen=True)
class Detection:
    """The most probable spoken language. `probabilities` covers the model's languages and sums to 1."""

    language: str
    probability: float
    runner_up: str | None
    probabilities: dict[str, float]


def detection_from(probabilities: dict[str, float]) -> Detection:
    """The winner and the runner-up of `probabilities`, which sum to 1."""
    ranked = sorted(probabilities, key=lambda language: -probabilities[language])
    return Detection(ranked[0], probabilities[ranked[0]], ranked[1] if len(ranked) > 1 else None, probabilities)
