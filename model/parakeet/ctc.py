"""CTC's greedy search: the likeliest label of each frame, without repeats and blanks."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from model.arrays import Array
from model.parakeet.confidence import confidences, power_sums
from model.parakeet.decoding import Rest, State, TimedTokens

# Frames whose log-probabilities are held at once: 32 MB with 8192 tokens.
FRAMES_AT_ONCE = 1024


class CTCSearch:
    """A CTC head, and what its outputs mean: N tokens, the blank last."""

    def __init__(self, head: Callable[[Array], Array], tokens: int, xp: Any):
        """head: a linear layer, packed or not, whose arrays are of the library xp; tokens: N."""
        self._head = head
        self._tokens = tokens
        self._xp = xp

    def log_probs(self, vectors: Array) -> Array:
        """Encoder vectors (…, D) → log-probabilities (…, N) in float32."""
        return self._xp.log_softmax(self._head(self._xp.asarray(vectors, self._xp.float32)))

    def written(self, key: int, vectors: Array, state: State | None = None) -> TimedTokens:
        """The text of encoder vectors (T, D), or of a further piece of a recording.

        Of a token that the piece before began, the result has only the rest, no second token.

        A token has the log-probability of its likeliest frame, and the confidence of its least sure one, as in NeMo.
        """
        before = State() if state is None else state
        labels, log_probs, sums = self._frames(vectors)
        sure = confidences(sums, self._tokens)
        edges = np.flatnonzero(np.diff(labels, prepend=-1, append=-1))
        runs = list(pairwise(edges.tolist()))
        tokens = [run for run in runs if labels[run[0]] != self._tokens - 1]
        rest = None
        if tokens and tokens[0][0] == 0 and int(labels[0]) == before.last:
            (begin, end), *tokens = tokens
            rest = Rest(end - begin, float(log_probs[begin:end].max()), float(sure[begin:end].min()))
        after = None
        if state is not None:
            after = State(before.frames + len(labels), int(labels[-1]) if runs else before.last)
        return TimedTokens(
            key,
            [int(labels[begin]) for begin, _ in tokens],
            [float(log_probs[begin:end].max()) for begin, end in tokens],
            confidences=[float(sure[begin:end].min()) for begin, end in tokens],
            frames=[before.frames + begin for begin, _ in tokens],
            durations=[end - begin for begin, end in tokens],
            state=after,
            rest=rest,
        )

    def _frames(self, vectors: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The likeliest label of each frame (T,), its log-probability, and Σ p^α of all tokens."""
        xp = self._xp
        parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0, int), np.zeros(0), np.zeros(0))]
        for begin in range(0, vectors.shape[0], FRAMES_AT_ONCE):
            scores = self.log_probs(vectors[begin : begin + FRAMES_AT_ONCE])
            found = scores.argmax(axis=-1), scores.max(axis=-1), power_sums(scores, xp)
            parts.append(tuple(xp.to_numpy(each) for each in found))
        labels, log_probs, sums = (np.concatenate(column) for column in zip(*parts, strict=True))
        return labels.astype(int), log_probs, sums
