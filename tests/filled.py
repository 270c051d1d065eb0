"""A running batch of nothing but its KV cache: real slots, and a decoder that only writes and reads them.

On a GPU a whole step is under way while the next one is begun. On MLX's CPU back end only some hundred operations are,
less than a step of a whole decoder has.
"""

from types import SimpleNamespace

import mlx.core as mx

from model.arrays import mlx as arrays
from model.canary.generate import RunningBatch
from model.canary.rows import Utterance

VOCABULARY = 64
NEVER = -1  # a token that is never written


class SlotsAlone:
    """In a decoder's place. Rows begin with `positions` positions, however short their prompts are."""

    xp = arrays
    alignment_layer = 0

    def __init__(self, layers: int, heads: int, width: int, positions: int):
        self._shape = layers, heads, width
        self._positions = positions
        self.position_encoding = mx.zeros((100 * positions, 1))
        self.token_embedding = None
        # Only their shapes matter. Broadcast, they take no memory.
        self._prefilled = [mx.broadcast_to(mx.array(0.5), (1, 2 * heads, positions, width))] * layers

    def empty_text_slots(self):
        return arrays.GrowingSlots(*self._shape, mx.float32)

    def empty_audio_slots(self):
        return arrays.FixedSlots(*self._shape, mx.float32)

    def cross_memory(self, encoded, lengths):
        layers, heads, width = self._shape
        return SimpleNamespace(layers=[mx.zeros((1, 2 * heads, 1, width))] * layers, of_rows=lambda _: None)

    def past_of(self, rows):
        return None

    def prefill(self, tokens, audio, past):
        return mx.zeros((len(tokens), len(tokens[0]), VOCABULARY)), self._prefilled

    def step(self, tokens, positions, text, audio):
        layers, heads, width = self._shape
        text.begin_step()
        x = mx.broadcast_to(mx.array(tokens)[:, None, None, None].astype(mx.float32), (len(positions), heads, 1, width))
        for layer in range(layers):
            text.write(layer, mx.concatenate([x, x], axis=1))
            x = text.attend(layer, x)
        return x.reshape(len(positions), -1)[:, :VOCABULARY]


def filled_batch(layers: int, heads: int, width: int, rows: int, positions: int, look_ahead: bool) -> RunningBatch:
    """`rows` rows with `positions` positions each."""
    decoder = SlotsAlone(layers, heads, width, positions)
    batch = RunningBatch(decoder, lambda x, _: x, NEVER, NEVER, look_ahead=look_ahead)  # type: ignore[arg-type]
    prompt = [1] * positions
    for key in range(rows):
        batch.join([Utterance(key, mx.zeros((1, 1)), prompt, limit=10 * positions)])
    return batch
