"""What goes into the heads of a Parakeet, and what comes out: tokens with the encoder frames they belong to."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from model.arrays import Array
from model.decoding import Generated

CTC = "ctc"


def _nothing() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class State:
    """Where greedy decoding stands between two pieces of a recording. It never changes, so it can be used again.

    frames: encoder frames decoded; last: the last token of a transducer, or the label of the last frame in CTC, None
    at the beginning. Of a transducer, jump: frames of the next piece that the last token takes up; text: the projected
    output of the prediction network (J,); memory: outputs and cells of its LSTM layers (2L, P).
    """

    frames: int = 0
    last: int | None = None
    jump: int = 0
    text: np.ndarray = field(default_factory=_nothing)
    memory: np.ndarray = field(default_factory=_nothing)


@dataclass(frozen=True)
class Utterance:
    """One text to write from encoder vectors (T, D), all of them real.

    key: the caller's name for it; head: "ctc", "rnnt" or "tdt"; limit: the most tokens, None for no limit; beam_size:
    hypotheses, 1 for greedy search; state: where greedy decoding of the recording's earlier pieces ended. With one,
    the result has the next.
    """

    key: int
    vectors: Array
    head: str = "tdt"
    limit: int | None = None
    beam_size: int = 1
    state: State | None = None


@dataclass(frozen=True)
class TimedTokens(Generated):
    """Tokens with times in encoder frames.

    frames: the first of each token; durations: how many it takes, predicted by TDT, counted in CTC, and none at all in
    RNN-T, which does not tell; state: after the last frame, if decoding began from a state; rest: in CTC, the end of
    a token that the piece before began.
    """

    durations: list[int] = field(default_factory=list)
    state: State | None = None
    rest: "Rest | None" = None

    def first(self, count: int | None) -> "TimedTokens":
        """The first `count` tokens; all of them if it is None."""
        lists = ("tokens", "log_probs", "confidences", "frames", "durations")
        return replace(self, **{name: getattr(self, name)[:count] for name in lists})

    def followed_by(self, later: Generated) -> Self:
        """The text of two pieces of a recording. A token that lies across them is one."""
        assert isinstance(later, type(self))
        whole = replace(super().followed_by(later), rest=None)
        if later.rest and self.tokens:
            last = len(self.tokens) - 1
            whole.durations[last] += later.rest.duration
            whole.log_probs[last] = max(whole.log_probs[last], later.rest.log_prob)
            whole.confidences[last] = min(whole.confidences[last], later.rest.confidence)
        return whole


@dataclass(frozen=True)
class Rest:
    """The frames of a CTC token that belong to a later piece than its first one; values as in `TimedTokens`."""

    duration: int
    log_prob: float
    confidence: float
