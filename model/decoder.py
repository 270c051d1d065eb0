"""Transformer decoder and its head. NeMo's TransformerDecoderNM (pre-norm, fixed positions) and TokenClassifier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from model import kernels
from model.cache import GrowingRows, KVRows, KVSlots
from model.config import DecoderConfig

# Keys or values of R rows: (R, H, T, d_head), or one (H, T, d_head) a row with T its own.
Rows = mx.array | list[np.ndarray]


@dataclass(frozen=True)
class CrossMemory:
    """What the decoder attends to of each row's audio.

    keys, values: one (R, H, T, d_head) a layer; inside: (R, 1, 1, T), true at real encoder steps.
    """

    keys: list[mx.array]
    values: list[mx.array]
    inside: mx.array

    def of_rows(self, rows: list[int]) -> "CrossMemory":
        """That of the rows of these numbers, which may come more than once."""
        if rows == list(range(self.inside.shape[0])):
            return self
        chosen = mx.array(rows)
        return CrossMemory([k[chosen] for k in self.keys], [v[chosen] for v in self.values], self.inside[chosen])


def _heads(x: mx.array, n_heads: int) -> mx.array:
    """(R, S, M) → (R, H, S, M/H)."""
    R, S, M = x.shape
    return x.reshape(R, S, n_heads, M // n_heads).transpose(0, 2, 1, 3)


def _joined(x: mx.array) -> mx.array:
    """(R, H, S, d) → (R, S, H·d)."""
    R, H, S, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(R, S, H * d)


def _attended(q: mx.array, keys: Rows, values: Rows, mask: mx.array) -> mx.array:
    """(R, H, S, d) → (R, H, S, d); rows of their own lengths need no mask."""
    scale = 1 / math.sqrt(q.shape[-1])
    if isinstance(keys, mx.array):
        assert isinstance(values, mx.array)
        return kernels.attention(q, keys, values, scale, mask)
    assert isinstance(values, list)
    return kernels.attention_by_row(q, keys, values, scale)


class SelfAttention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        M = config.hidden_size
        self._n_heads = config.num_attention_heads
        self.linear_qkv = nn.Linear(M, 3 * M)
        self.linear_out = nn.Linear(M, M)

    def project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x: (R, S, M) → query, key, value, each (R, H, S, d)."""
        q, k, v = mx.split(self.linear_qkv(x), 3, axis=-1)
        return _heads(q, self._n_heads), _heads(k, self._n_heads), _heads(v, self._n_heads)

    def attend(self, q: mx.array, keys: Rows, values: Rows, mask: mx.array) -> mx.array:
        return self.linear_out(_joined(_attended(q, keys, values, mask)))


class CrossAttention(nn.Module):
    """The queries' half; keys and values of every layer come from `Decoder.cross_memory`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self._n_heads = config.num_attention_heads
        self.linear_q = nn.Linear(config.hidden_size, config.hidden_size)
        self.linear_out = nn.Linear(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, keys: Rows, values: Rows, inside: mx.array) -> mx.array:
        q = _heads(self.linear_q(x), self._n_heads)
        return self.linear_out(_joined(_attended(q, keys, values, inside)))

    def weights(self, x: mx.array, keys: mx.array, inside: mx.array) -> mx.array:
        """(R, S, M) → (R, H, S, T), summing to 1 over the audio's steps."""
        q = _heads(self.linear_q(x), self._n_heads)
        scores = (q / math.sqrt(q.shape[-1])) @ keys.swapaxes(-1, -2)
        return mx.softmax(mx.where(inside, scores, -mx.inf), axis=-1)


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        M = config.hidden_size
        self.layer_norm_1 = kernels.LayerNorm(M)
        self.self_attn = SelfAttention(config)
        self.layer_norm_2 = kernels.LayerNorm(M)
        self.cross_attn = CrossAttention(config)
        self.layer_norm_3 = kernels.LayerNorm(M)
        self.dense_in = nn.Linear(M, config.inner_size)
        self.dense_out = nn.Linear(config.inner_size, M)

    def after_self_attention(self, x: mx.array, keys: Rows, values: Rows, inside: mx.array) -> mx.array:
        x = x + self.cross_attn(self.layer_norm_2(x), keys, values, inside)
        return x + self.dense_out(nn.relu(self.dense_in(self.layer_norm_3(x))))


class Decoder(nn.Module):
    """Tokens and an encoded audio to hidden states; the head shares the token embedding."""

    def __init__(self, config: DecoderConfig, vocab_size: int):
        super().__init__()
        self._config = config
        M = config.hidden_size
        self.token_embedding = nn.Embedding(vocab_size, M)
        self.position_encoding = mx.zeros((config.max_sequence_length, M))
        self.embedding_layer_norm = kernels.LayerNorm(M)
        self.layers = [DecoderLayer(config) for _ in range(config.num_layers)]
        # The cross-attention keys and values of all layers, in one product over the encoded audio.
        self.cross_kv = nn.Linear(M, 2 * config.num_layers * M)
        self.final_layer_norm = kernels.LayerNorm(M)

    def cross_memory(self, encoded: mx.array, lengths: mx.array) -> CrossMemory:
        """encoded: (R, T, M), lengths: (R,) → the keys and values that every later step attends to."""
        projected = mx.split(self.cross_kv(encoded), 2 * self._config.num_layers, axis=-1)
        by_head = [_heads(x, self._config.num_attention_heads) for x in projected]
        inside = (mx.arange(encoded.shape[1]) < lengths[:, None])[:, None, None]
        return CrossMemory(by_head[0::2], by_head[1::2], inside)

    def prefill(self, tokens: mx.array, cross: CrossMemory) -> tuple[mx.array, list[tuple[mx.array, mx.array]]]:
        """A whole sequence a row, causally.

        tokens: (R, S), padded on the right. Returns hidden states (R, S, M), and the layers' self-attention keys and
        values (R, H, S, d); what they hold at padding must not be attended to.
        """
        x, _, remembered = self._through(tokens, cross, len(self.layers))
        return self.final_layer_norm(x), remembered

    def cross_attention(self, tokens: mx.array, cross: CrossMemory, layer: int) -> mx.array:
        """What each of tokens (1, S) attends to in a layer, the mean over heads: (S, T), rows summing to 1.

        Row i is from when token i was read, that is, the token after it written. Source: NeMo's AlignAtt policy.
        """
        x, causal, _ = self._through(tokens, cross, layer)
        last = self.layers[layer]
        q, k, v = last.self_attn.project(last.layer_norm_1(x))
        x = x + last.self_attn.attend(q, k, v, causal)
        return last.cross_attn.weights(last.layer_norm_2(x), cross.keys[layer], cross.inside).mean(axis=1)[0]

    def _through(
        self, tokens: mx.array, cross: CrossMemory, layers: int
    ) -> tuple[mx.array, mx.array, list[tuple[mx.array, mx.array]]]:
        """Tokens (R, S) through the first `layers`: hidden states, the causal mask, the layers' keys and values."""
        S = tokens.shape[1]
        x = self._embedded(tokens, self.position_encoding[:S])
        causal = mx.tril(mx.ones((S, S), mx.bool_))
        remembered = []
        for i, layer in enumerate(self.layers[:layers]):
            q, k, v = layer.self_attn.project(layer.layer_norm_1(x))
            remembered.append((k, v))
            x = x + layer.self_attn.attend(q, k, v, causal)
            x = layer.after_self_attention(x, cross.keys[i], cross.values[i], cross.inside)
        return x, causal, remembered

    def step(
        self,
        tokens: mx.array,
        positions: mx.array,
        time: int,
        slots: Sequence[KVSlots | GrowingRows],
        cross: Sequence[KVSlots | KVRows],
        inside: mx.array,
    ) -> mx.array:
        """One token a row: tokens, positions (R,), all positions < time → hidden states (R, M).

        The token's keys and values are written to `slots`; `cross` holds those of the audio, `inside` (R, 1, 1, T) is
        true at its steps. Both have one a layer.
        """
        R = tokens.shape[0]
        x = self._embedded(tokens[:, None], self.position_encoding[positions][:, None])
        past = (mx.arange(time) <= positions[:, None])[:, None, None]
        for i, layer in enumerate(self.layers):
            q, k, v = layer.self_attn.project(layer.layer_norm_1(x))
            slots[i].write(positions, time, k, v)
            x = x + layer.self_attn.attend(q, *slots[i].read(R, time), past)
            x = layer.after_self_attention(x, *cross[i].read(R, inside.shape[-1]), inside)
        return self.final_layer_norm(x).squeeze(1)

    def empty_slots(self) -> Sequence[KVSlots | GrowingRows]:
        """Slots for self-attention, a layer each."""
        return [GrowingRows() for _ in self.layers] if kernels.on_cpu() else self.padded_slots()

    def empty_cross_slots(self) -> Sequence[KVSlots | KVRows]:
        """Slots for cross-attention, a layer each."""
        return [KVRows() for _ in self.layers] if kernels.on_cpu() else self.padded_slots()

    def padded_slots(self) -> list[KVSlots]:
        """Slots of either kind whose rows are padded to one length, as a GPU wants them."""
        d_head = self._config.hidden_size // self._config.num_attention_heads
        dtype = self.token_embedding.weight.dtype
        return [KVSlots(self._config.num_attention_heads, d_head, dtype) for _ in self.layers]

    def _embedded(self, tokens: mx.array, positions: mx.array) -> mx.array:
        # The stored sinusoid is already divided by √M; the token part is not scaled.
        return self.embedding_layer_norm(self.token_embedding(tokens) + positions)


class Head(nn.Module):
    """Scores over the vocabulary: the token embedding's weights and a bias of its own."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.bias = mx.zeros((vocab_size,))

    def __call__(self, hidden: mx.array, embedding: nn.Embedding) -> mx.array:
        """(…, M) → (…, V) log-probabilities, float32."""
        return kernels.log_softmax(embedding.as_linear(hidden) + self.bias)
