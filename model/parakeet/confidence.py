"""How sure a model is of a token: NeMo's default, the Tsallis entropy of all tokens' probabilities.

https://arxiv.org/abs/2212.08703; `entropy_tsallis_exp` in NeMo's asr_confidence_utils.py.
"""

from typing import Any

import numpy as np

from model.arrays import Array

ALPHA = 0.33


def power_sums(log_probs: Array, xp: Any) -> Array:
    """Σ p^α over the last axis of log-probabilities (…, N)."""
    return xp.exp(log_probs * ALPHA).sum(axis=-1)


def confidences(sums: np.ndarray, tokens: int) -> np.ndarray:
    """Confidences from 0 to 1, from `power_sums` over N = `tokens`, the blank among them."""
    order = 1 - ALPHA
    least = np.exp((1 - tokens**order) / order)
    return (np.exp((1 - sums.astype(np.float64)) / order) - least) / (1 - least)
