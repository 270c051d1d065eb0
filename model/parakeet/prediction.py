"""A transducer's prediction network: the tokens so far → a vector. NeMo's RNNTDecoder, always float32."""

import mlx.nn as nn
import numpy as np

from model.arrays import Array
from model.layers import Layer, Linear
from model.parakeet.config import PredictionConfig


class PredictionNetwork(Layer):
    """An embedding and LSTM layers. The blank starts a text; it is never fed again."""

    def __init__(self, config: PredictionConfig, vocab_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size + 1, config.hidden)
        # One product for a layer: (4P, 2P) with [input | output of the step before].
        self.layers = [Linear(2 * config.hidden, 4 * config.hidden) for _ in range(config.layers)]

    def __call__(self, tokens: Array | list[int], memory: list[Array]) -> tuple[Array, list[Array]]:
        """One token a row: tokens (R,) → output (R, P), memory.

        memory: outputs and cells (R, P), layer by layer: [h0, c0, h1, c1, …].
        """
        x, after = self.embedding.weight[self.xp.asarray(tokens)], []
        for k, layer in enumerate(self.layers):
            h, c = memory[2 * k : 2 * k + 2]
            x, c = self.xp.lstm_cell(layer(self.xp.concatenate([x, h], axis=-1)), c)
            after += [x, c]
        return x, after

    def start(self, rows: int) -> tuple[Array, list[Array]]:
        """Output and memory before the first token: one step with the blank, whose embedding is zero."""
        blank, P = self.embedding.weight.shape[0] - 1, self.embedding.weight.shape[1]
        zeros = self.xp.asarray(np.zeros((rows, P), np.float32))
        return self([blank] * rows, [zeros] * (2 * len(self.layers)))
