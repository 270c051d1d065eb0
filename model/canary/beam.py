"""Beam search over the rows of one utterance, with NeMo's scores and stopping rule (BeamSearchSequenceGenerator).

Works with numpy between two decoder steps. Knows neither the decoder nor the batch.
"""

import numpy as np


def _penalty(lengths: np.ndarray, length_penalty: float) -> np.ndarray:
    """((5 + length) / 6) ** α, https://arxiv.org/abs/1609.08144."""
    return ((5 + lengths) / 6) ** length_penalty


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest along the last axis, largest first, equal ones in index order."""
    if scores.ndim > 1:
        return np.stack([_top(row, k) for row in scores])
    k = min(k, len(scores))
    # Sorting a whole vocabulary would take ten times as long.
    candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


class Beam:
    """`width` hypotheses of one utterance.

    prompt_length: tokens before the first generated one; length_penalty: α; ends: ids that finish a hypothesis.
    """

    def __init__(self, width: int, prompt_length: int, length_penalty: float, end_id: int, pad_id: int):
        self.width = width
        self._prompt_length = prompt_length
        self._alpha = length_penalty
        self._ends = np.array([end_id, pad_id])
        self._pad_id = pad_id
        self._scores = np.zeros(0)
        self._finished = np.zeros(width, bool)
        self.tokens = np.zeros((width, 0), np.int64)
        self.log_probs = np.zeros((width, 0))

    def begin(self, log_probs: np.ndarray) -> None:
        """The first tokens, from the prompt's last log-probabilities (V,)."""
        first = _top(log_probs, self.width)
        self._scores = log_probs[first].astype(np.float64)
        self.tokens = first[:, None]
        self.log_probs = log_probs[first][:, None]
        # As NeMo: the first token counts towards the length, and does not finish a hypothesis, whatever it is.
        self._lengths = np.full(self.width, self._prompt_length + 2.0)

    def advance(self, log_probs: np.ndarray) -> np.ndarray:
        """Add a token to each hypothesis, from log-probabilities (width, V). Returns the parents (width,)."""
        best = _top(log_probs, self.width)
        gains = np.take_along_axis(log_probs, best, axis=-1).astype(np.float64)
        # A finished hypothesis continues only with padding, at no cost.
        best[self._finished] = self._pad_id
        gains[self._finished] = -np.inf
        gains[self._finished, 0] = 0.0
        penalty = _penalty(self._lengths, self._alpha)
        penalised = (self._scores[:, None] + gains) / penalty[:, None]
        chosen = _top(penalised.reshape(-1), self.width)
        parents = chosen // self.width
        # NeMo removes the penalty by rank, not by parent, and later steps depend on it.
        self._scores = penalised.reshape(-1)[chosen] * penalty
        self.tokens = np.concatenate([self.tokens[parents], best.reshape(-1)[chosen][:, None]], axis=1)
        step = np.where(np.isfinite(gains), gains, 0.0).reshape(-1)[chosen]
        self.log_probs = np.concatenate([self.log_probs[parents], step[:, None]], axis=1)
        ended = np.isin(self.tokens, self._ends)
        self._lengths = 1.0 + self._prompt_length + (~ended).sum(axis=1)
        self._finished = ended[:, -1]
        return parents

    @property
    def finished(self) -> bool:
        return bool(self._finished.all())

    def best(self) -> tuple[list[int], list[float]]:
        """The best hypothesis: its tokens, without trailing ends, and their log-probabilities."""
        winner = int(np.argmax(self._scores / _penalty(self._lengths, self._alpha)))
        tokens, log_probs = self.tokens[winner].tolist(), self.log_probs[winner].tolist()
        while tokens and tokens[-1] in self._ends:
            tokens.pop()
        return tokens, log_probs[: len(tokens)]
