"""Transformer decoder and its head. NeMo's TransformerDecoderNM (pre-norm, fixed positions) and TokenClassifier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from model import kernels
from model.canary.cache import TIME_STEP, GrowingRows, KVRows, KVSlots, rounded_up
from model.canary.config import DecoderConfig
from model.kernels import Array, Linear, like, namespace

# Keys or values of R rows: (R, H, T, d_head), or one (H, T, d_head) a row with T its own.
Rows = Array | list[np.ndarray]


@dataclass(frozen=True)
class CrossMemory:
    """What the decoder attends to of each row's audio.

    keys, values: one (R, H, T, d_head) a layer; inside: (R, 1, 1, T), true at real encoder steps.
    """

    keys: list[Array]
    values: list[Array]
    inside: Array

    def of_rows(self, rows: list[int]) -> "CrossMemory":
        """That of the rows of these numbers, which may come more than once."""
        if rows == list(range(self.inside.shape[0])):
            return self
        chosen = like(rows, self.inside)
        return CrossMemory([k[chosen] for k in self.keys], [v[chosen] for v in self.values], self.inside[chosen])


def _heads(x: Array, n_heads: int) -> Array:
    """(R, S, M) → (R, H, S, M/H)."""
    R, S, M = x.shape
    return x.reshape(R, S, n_heads, M // n_heads).transpose(0, 2, 1, 3)


def _joined(x: Array) -> Array:
    """(R, H, S, d) → (R, S, H·d)."""
    R, H, S, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(R, S, H * d)


def _attended(q: Array, keys: Rows, values: Rows, mask: Array) -> Array:
    """(R, H, S, d) → (R, H, S, d); rows of their own lengths need no mask."""
    scale = 1 / math.sqrt(q.shape[-1])
    if isinstance(keys, list):
        return kernels.attention_by_row(q, keys, values, scale)
    return kernels.attention(q, keys, values, scale, mask)


class SelfAttention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        M = config.hidden_size
        self._n_heads = config.num_attention_heads
        self.linear_qkv = Linear(M, 3 * M)
        self.linear_out = Linear(M, M)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """x: (R, S, M) → query, key, value, each (R, H, S, d)."""
        H = self._n_heads
        heads = _heads(self.linear_qkv(x), 3 * H)
        return heads[:, :H], heads[:, H : 2 * H], heads[:, 2 * H :]

    def attend(self, q: Array, keys: Rows, values: Rows, mask: Array) -> Array:
        return self.linear_out(_joined(_attended(q, keys, values, mask)))


class CrossAttention(nn.Module):
    """The queries' half; keys and values of every layer come from `Decoder.cross_memory`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self._n_heads = config.num_attention_heads
        self.linear_q = Linear(config.hidden_size, config.hidden_size)
        self.linear_out = Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: Array, keys: Rows, values: Rows, inside: Array) -> Array:
        q = _heads(self.linear_q(x), self._n_heads)
        return self.linear_out(_joined(_attended(q, keys, values, inside)))

    def weights(self, x: Array, keys: Array, inside: Array) -> Array:
        """(R, S, M) → (R, H, S, T), summing to 1 over the audio's steps."""
        q = _heads(self.linear_q(x), self._n_heads)
        scores = (q / math.sqrt(q.shape[-1])) @ keys.swapaxes(-1, -2)
        return kernels.softmax(namespace(x).where(inside, scores, -math.inf))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        M = config.hidden_size
        self.layer_norm_1 = kernels.LayerNorm(M)
        self.self_attn = SelfAttention(config)
        self.layer_norm_2 = kernels.LayerNorm(M)
        self.cross_attn = CrossAttention(config)
        self.layer_norm_3 = kernels.LayerNorm(M)
        self.dense_in = Linear(M, config.inner_size)
        self.dense_out = Linear(config.inner_size, M)

    def after_self_attention(self, x: Array, keys: Rows, values: Rows, inside: Array) -> Array:
        x = x + self.cross_attn(self.layer_norm_2(x), keys, values, inside)
        return x + self.dense_out(kernels.relu(self.dense_in(self.layer_norm_3(x))))


class Decoder(nn.Module):
    """Tokens and an encoded audio to hidden states; the head shares the token embedding."""

    def __init__(self, config: DecoderConfig, vocab_size: int):
        super().__init__()
        self._config = config
        M = config.hidden_size
        self.token_embedding = nn.Embedding(vocab_size, M)
        self.position_encoding: Array = mx.zeros((config.max_sequence_length, M))
        self.embedding_layer_norm = kernels.LayerNorm(M)
        self.layers = [DecoderLayer(config) for _ in range(config.num_layers)]
        # The cross-attention keys and values of all layers, in one product over the encoded audio.
        self.cross_kv = Linear(M, 2 * config.num_layers * M)
        self.final_layer_norm = kernels.LayerNorm(M)

    def cross_memory(self, encoded: Array, lengths: list[int]) -> CrossMemory:
        """encoded: (R, T, M), of which a row's first `lengths` steps are real → what every later step attends to."""
        layers, H = self._config.num_layers, self._config.num_attention_heads
        heads = _heads(self.cross_kv(like(encoded, self.position_encoding)), 2 * layers * H)
        by_layer = [heads[:, i * H : (i + 1) * H] for i in range(2 * layers)]
        return CrossMemory(by_layer[0::2], by_layer[1::2], self._up_to(lengths, encoded.shape[1]))

    def prefill(self, tokens: list[list[int]], cross: CrossMemory) -> tuple[Array, list[tuple[Array, Array]]]:
        """A whole sequence a row, causally.

        tokens: (R, S), padded on the right. Returns hidden states (R, S, M), and the layers' self-attention keys and
        values (R, H, S, d); what they hold at padding must not be attended to.
        """
        x, _, remembered = self._through(tokens, cross, len(self.layers))
        return self.final_layer_norm(x), remembered

    def cross_attention(self, tokens: list[int], cross: CrossMemory, layer: int) -> Array:
        """What each of tokens (S,) attends to in a layer, the mean over heads: (S, T), rows summing to 1.

        Row i is from when token i was read, that is, the token after it written. Source: NeMo's AlignAtt policy.
        """
        x, causal, _ = self._through([tokens], cross, layer)
        last = self.layers[layer]
        q, k, v = last.self_attn.project(last.layer_norm_1(x))
        x = x + last.self_attn.attend(q, k, v, causal)
        return last.cross_attn.weights(last.layer_norm_2(x), cross.keys[layer], cross.inside).mean(axis=1)[0]

    def _through(
        self, tokens: list[list[int]], cross: CrossMemory, layers: int
    ) -> tuple[Array, Array, list[tuple[Array, Array]]]:
        """Tokens (R, S) through the first `layers`: hidden states, the causal mask, the layers' keys and values."""
        S = len(tokens[0])
        x = self._embedded(tokens, self.position_encoding[:S])
        causal = like(np.tri(S, dtype=bool), x)
        remembered = []
        for i, layer in enumerate(self.layers[:layers]):
            q, k, v = layer.self_attn.project(layer.layer_norm_1(x))
            remembered.append((k, v))
            x = x + layer.self_attn.attend(q, k, v, causal)
            x = layer.after_self_attention(x, cross.keys[i], cross.values[i], cross.inside)
        return x, causal, remembered

    def step(
        self,
        tokens: Array,
        positions: list[int],
        slots: Sequence[KVSlots | GrowingRows],
        cross: Sequence[KVSlots | KVRows],
        lengths: list[int],
    ) -> Array:
        """One token a row: tokens (R,) at `positions` → hidden states (R, M).

        The token's keys and values are written to `slots`; `cross` holds those of the audio, of which a row has its
        length. Both have one a layer.
        """
        R = len(positions)
        # As many positions and encoder steps as are looked at of each row, where they are padded to one count.
        time, T = (rounded_up(n, TIME_STEP) for n in (max(positions) + 1, max(lengths)))
        past = inside = None
        if not self._in_numpy:
            past, inside = self._up_to([position + 1 for position in positions], time), self._up_to(lengths, T)
        x = self._embedded(tokens, self.position_encoding[like(positions, self.position_encoding)])[:, None]
        for i, layer in enumerate(self.layers):
            q, k, v = layer.self_attn.project(layer.layer_norm_1(x))
            slots[i].write(positions, time, k, v)
            x = x + layer.self_attn.attend(q, *slots[i].read(R, time), past)
            x = layer.after_self_attention(x, *cross[i].read(R, T), inside)
        return self.final_layer_norm(x)[:, 0]

    def _up_to(self, lengths: list[int], longest: int) -> Array:
        """(R, 1, 1, longest): true at a row's first `lengths` places."""
        return like(np.arange(longest) < np.array(lengths)[:, None], self.position_encoding)[:, None, None]

    def empty_slots(self) -> Sequence[KVSlots | GrowingRows]:
        """Slots for self-attention, a layer each."""
        return [GrowingRows() for _ in self.layers] if self._in_numpy else self._padded_slots()

    def empty_cross_slots(self) -> Sequence[KVSlots | KVRows]:
        """Slots for cross-attention, a layer each."""
        return [KVRows() for _ in self.layers] if self._in_numpy else self._padded_slots()

    @property
    def _in_numpy(self) -> bool:
        return isinstance(self.position_encoding, np.ndarray)

    def _padded_slots(self) -> list[KVSlots]:
        """Slots of either kind whose rows are padded to one length, as a GPU wants them."""
        d_head = self._config.hidden_size // self._config.num_attention_heads
        return [KVSlots(self._config.num_attention_heads, d_head, self.position_encoding.dtype) for _ in self.layers]

    def _embedded(self, tokens: Array, positions: Array) -> Array:
        """tokens (…,), and the encoding of their positions (…, M) → (…, M)."""
        weight = self.token_embedding.weight
        # The stored sinusoid is already divided by √M; the token part is not scaled.
        return self.embedding_layer_norm(weight[like(tokens, weight)] + positions)


class Head(nn.Module):
    """Scores over the vocabulary: the token embedding's weights and a bias of its own."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.bias: Array = mx.zeros((vocab_size,))

    def __call__(self, hidden: Array, embedding: nn.Embedding) -> Array:
        """(…, M) → (…, V) log-probabilities, float32."""
        return kernels.log_softmax(kernels.product(hidden, embedding.weight) + self.bias)
