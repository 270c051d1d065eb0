"""Transformer decoder and its head. NeMo's TransformerDecoderNM (pre-norm, fixed positions) and TokenClassifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from model.arrays import Array
from model.canary.config import DecoderConfig
from model.layers import Embedding, Layer, LayerNorm, Linear, rowwise


class Memory(Protocol):
    """Keys and values of every layer, for queries to attend to.

    A layer's are one array (R, 2H, T, d), here and wherever they are named `kv`: heads of keys, then heads of values.
    """

    def attend(self, layer: int, q: Array) -> Array:
        """(R, H, S, d) → (R, H, S, d)"""
        ...


@dataclass(frozen=True)
class CrossMemory:
    """What the decoder attends to of each row's audio.

    layers: keys and values (R, 2H, T, d); inside: (R, 1, 1, T), true at real encoder steps; xp: their library.
    """

    layers: list[Array]
    inside: Array
    xp: Any

    def attend(self, layer: int, q: Array) -> Array:
        return self.xp.attention(q, *_keys_and_values(self.layers[layer]), self.inside)

    def weights(self, layer: int, q: Array, rows: list[int]) -> list[Array]:
        """What the queries (R, H, S, d) of these rows attend to: (S, T) each, the mean over heads."""
        keys, _ = _keys_and_values(self.layers[layer])
        weights = self.xp.attention_weights(q, keys, self.inside)
        return [weights[row] for row in rows]

    @classmethod
    def together(cls, memories: list["CrossMemory"]) -> "CrossMemory":
        """The rows of several, in their order, padded to the longest."""
        if len(memories) == 1:
            return memories[0]
        xp = memories[0].xp
        T = max(memory.inside.shape[-1] for memory in memories)

        def joined(arrays: Sequence[Array], axis: int) -> Array:
            padding = [[(0, 0)] * axis + [(0, T - a.shape[axis])] + [(0, 0)] * (3 - axis) for a in arrays]
            return xp.concatenate([xp.pad(a, p) for a, p in zip(arrays, padding, strict=True)])

        layers = [joined(layer, 2) for layer in zip(*(memory.layers for memory in memories), strict=True)]
        return cls(layers, joined([memory.inside for memory in memories], 3), xp)

    def of_rows(self, rows: list[int]) -> "CrossMemory":
        """The memory of these rows, in this order; a row may appear more than once."""
        if rows == list(range(self.inside.shape[0])):
            return self
        at = self.xp.asarray(rows)
        return CrossMemory([kv[at] for kv in self.layers], self.inside[at], self.xp)


@dataclass
class Watched:
    """A memory that also tells what the queries of one layer attend to.

    memory: a CrossMemory or FixedSlots; layer: its number; rows: whose queries; seen: what each of them attended
    to (S, T), once the layer is computed.
    """

    memory: Any
    layer: int
    rows: list[int]
    seen: list[Array] = field(default_factory=list)

    def attend(self, layer: int, q: Array) -> Array:
        if layer == self.layer and self.rows:
            self.seen = self.memory.weights(layer, q, self.rows)
        return self.memory.attend(layer, q)


@dataclass(frozen=True, eq=False)
class TextMemory:
    """A text that was written earlier, from less of the same audio. It never changes.

    tokens: prompt, prefix and what was written; layers: self-attention's keys and values (1, 2H, n, d) of the first n
    tokens, in each layer.
    """

    tokens: list[int]
    layers: list[Array]

    def shared(self, prompt: list[int]) -> int:
        """How many tokens it and `prompt` both begin with."""
        pairs = enumerate(zip(self.tokens, prompt, strict=False))
        return next((i for i, (mine, its) in pairs if mine != its), min(len(self.tokens), len(prompt)))


@dataclass(frozen=True)
class TextPast:
    """Keys and values of the tokens before those of a prefill.

    layers: (R, 2H, P, d) each. A row's own are the last lengths[row] of the P.
    """

    layers: list[Array]
    lengths: list[int]


def of_row(layers: list[Array], row: int, first: int, stop: int) -> list[Array]:
    """A row's keys and values (1, 2H, stop - first, d) of these positions in each layer."""
    return [kv[row : row + 1, :, first:stop] for kv in layers]


def _keys_and_values(kv: Array) -> tuple[Array, Array]:
    """(R, 2H, T, d) → keys and values, each (R, H, T, d)."""
    H = kv.shape[1] // 2
    return kv[:, :H], kv[:, H:]


def _after(past: TextPast, S: int) -> tuple[np.ndarray, np.ndarray]:
    """What S tokens after a past attend to (R, 1, S, P + S), true where they do, and their positions (R, S)."""
    P, lengths = past.layers[0].shape[2], np.array(past.lengths)
    column, own = np.arange(P + S), np.arange(S)
    seen = (column >= P - lengths[:, None, None]) & (column <= P + own[:, None])
    return seen[:, None], lengths[:, None] + own


def _heads(x: Array, n_heads: int) -> Array:
    """(R, S, M) → (R, H, S, M/H)."""
    R, S, M = x.shape
    return x.reshape(R, S, n_heads, M // n_heads).transpose(0, 2, 1, 3)


def _joined(x: Array) -> Array:
    """(R, H, S, d) → (R, S, H·d)."""
    R, H, S, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(R, S, H * d)


class SelfAttention(Layer):
    """Its weights. `DecoderLayer` calls them."""

    def __init__(self, M: int):
        super().__init__()
        self.linear_qkv = Linear(M, 3 * M)
        self.linear_out = Linear(M, M)


class CrossAttention(Layer):
    """Its weights, which `DecoderLayer` calls. The keys and values of all layers come from `Decoder.cross_memory`."""

    def __init__(self, M: int):
        super().__init__()
        self.linear_q = Linear(M, M)
        self.linear_out = Linear(M, M)


class DecoderLayer(Layer):
    """What it computes before, between and after its attentions."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        M = config.hidden_size
        self.layer_norm_1 = LayerNorm(M)
        self.self_attn = SelfAttention(M)
        self.layer_norm_2 = LayerNorm(M)
        self.cross_attn = CrossAttention(M)
        self.layer_norm_3 = LayerNorm(M)
        self.dense_in = Linear(M, config.inner_size)
        self.dense_out = Linear(config.inner_size, M)

    @rowwise
    def to_self_attention(self, x: Array) -> Array:
        """(R, S, M) → queries, keys and values (R, S, 3M)."""
        return self.self_attn.linear_qkv(self.layer_norm_1(x))

    @rowwise
    def to_cross_attention(self, x: Array, attended: Array) -> tuple[Array, Array]:
        """x, and what its queries found in the text, → x and queries, all (R, S, M)."""
        x = x + self.self_attn.linear_out(attended)
        return x, self.cross_attn.linear_q(self.layer_norm_2(x))

    @rowwise
    def to_next_layer(self, x: Array, attended: Array) -> Array:
        """x, and what its queries found in the audio, → x, all (R, S, M)."""
        x = x + self.cross_attn.linear_out(attended)
        return x + self.dense_out(self.xp.relu(self.dense_in(self.layer_norm_3(x))))


class Decoder(Layer):
    """Tokens and an encoded audio → hidden states. The head shares the token embedding."""

    def __init__(self, config: DecoderConfig, vocab_size: int):
        super().__init__()
        self._config = config
        M = config.hidden_size
        self.token_embedding = Embedding(vocab_size, M)
        self.position_encoding: Array = mx.zeros((config.max_sequence_length, M))
        self.embedding_layer_norm = LayerNorm(M)
        self.layers = [DecoderLayer(config) for _ in range(config.num_layers)]
        # The cross-attention keys and values of all layers, in one product over the encoded audio.
        self.cross_kv = Linear(M, 2 * config.num_layers * M)
        self.final_layer_norm = LayerNorm(M)

    def cross_memory(self, encoded: Array, lengths: list[int]) -> CrossMemory:
        """encoded: (R, T, M), lengths: its real steps (R,) → what all steps attend to."""
        layers, H = self._config.num_layers, self._config.num_attention_heads
        heads = _heads(self.cross_kv(self.xp.asarray(encoded)), 2 * layers * H)
        by_layer = [heads[:, i * 2 * H : (i + 1) * 2 * H] for i in range(layers)]
        inside = self.xp.asarray(np.arange(encoded.shape[1]) < np.array(lengths)[:, None])[:, None, None]
        return CrossMemory(by_layer, inside, self.xp)

    def memory_of(self, layers: list[Array]) -> CrossMemory:
        """The memory of one audio, from its keys and values (1, 2H, T, d) in each layer."""
        return CrossMemory(layers, self.xp.asarray(np.ones((1, 1, 1, layers[0].shape[2]), bool)), self.xp)

    def past_of(self, rows: list[list[Array]]) -> TextPast | None:
        """The past of a prefill, from each row's keys and values (1, 2H, n, d) by layer, or []; None if all are []."""
        xp = self.xp
        lengths = [layers[0].shape[2] if layers else 0 for layers in rows]
        P = max(lengths)
        if not P:
            return None
        nothing = [kv[:, :, :0] for kv in rows[lengths.index(P)]]
        padded = [
            [xp.pad(kv, [(0, 0), (0, 0), (P - n, 0), (0, 0)]) if n < P else kv for kv in layers or nothing]
            for layers, n in zip(rows, lengths, strict=True)
        ]
        return TextPast([xp.concatenate(list(layer)) for layer in zip(*padded, strict=True)], lengths)

    def prefill(
        self, tokens: list[list[int]], audio: Memory, past: TextPast | None = None
    ) -> tuple[Array, list[Array]]:
        """A whole sequence for each row, causally, after what there is of it in `past`.

        tokens: (R, S), padded on the right. Returns hidden states (R, S, M), and the layers' self-attention keys and
        values (R, 2H, P + S, d), those of the past first; nothing may attend to those at padding.
        """
        S = len(tokens[0])
        if past is None:
            seen, positions = np.tri(S, dtype=bool), slice(S)
        else:
            seen, positions = _after(past, S)
            # Padding may lie beyond the longest sequence.
            positions = self.xp.asarray(np.minimum(positions, self.position_encoding.shape[0] - 1))
        mask, written = self.xp.asarray(seen), []

        def attended(layer: int, q: Array, kv: Array) -> Array:
            if past is not None:
                kv = self.xp.concatenate([past.layers[layer], kv], axis=2)
            written.append(kv)
            return self.xp.attention(q, *_keys_and_values(kv), mask)

        x = self._embedded(tokens, self.position_encoding[positions])
        return self._decoded(x, attended, audio), written

    @property
    def alignment_layer(self) -> int:
        """The layer whose cross-attention says where in the audio a token was written from."""
        # NeMo uses the last layer but one. With only two layers, the first attends to no place in particular.
        layers = self._config.num_layers
        return layers - 2 if layers > 2 else layers - 1

    def step(self, tokens: Array, positions: list[int], text: Any, audio: Memory) -> Array:
        """One token a row: tokens (R,) at `positions` → hidden states (R, M).

        text: the rows' own keys and values, from `empty_text_slots`, to which the tokens' are written; audio: those
        of the rows' audios, from `empty_audio_slots`, or `Watched`.
        """
        text.begin_step()
        x = self._embedded(tokens, self.position_encoding[self.xp.asarray(positions)])[:, None]

        def attended(layer: int, q: Array, kv: Array) -> Array:
            text.write(layer, kv)
            return text.attend(layer, q)

        return self._decoded(x, attended, audio)[:, 0]

    def _decoded(self, x: Array, attended: Callable[[int, Array, Array], Array], audio: Memory) -> Array:
        """Through all layers: (R, S, M) → (R, S, M).

        attended: a layer, its queries (R, H, S, d), their keys and values (R, 2H, S, d) → what the queries find in the
        text (R, H, S, d).
        """
        H = self._config.num_attention_heads
        for i, layer in enumerate(self.layers):
            heads = _heads(layer.to_self_attention(x), 3 * H)
            x, q = layer.to_cross_attention(x, _joined(attended(i, heads[:, :H], heads[:, H:])))
            x = layer.to_next_layer(x, _joined(audio.attend(i, _heads(q, H))))
        return self.final_layer_norm(x)

    def empty_text_slots(self) -> Any:
        """`GrowingSlots` for self-attention."""
        return self.xp.GrowingSlots(*self._slot_shape)

    def empty_audio_slots(self) -> Any:
        """`FixedSlots` for cross-attention."""
        return self.xp.FixedSlots(*self._slot_shape)

    @property
    def _slot_shape(self) -> tuple[int, int, int, Any]:
        """Layers, heads, width of a head, type."""
        config = self._config
        H = config.num_attention_heads
        return config.num_layers, H, config.hidden_size // H, self.position_encoding.dtype

    def _embedded(self, tokens: Array, positions: Array) -> Array:
        """tokens (…,), and the encoding of their positions (…, M) → (…, M)."""
        # The stored sinusoid is already divided by √M; the token part is not scaled.
        return self.embedding_layer_norm(self.token_embedding.weight[self.xp.asarray(tokens)] + positions)


class Head(Layer):
    """Scores over the vocabulary, from the token embedding's weights and a bias of its own."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.bias: Array = mx.zeros((vocab_size,))

    def __call__(self, hidden: Array, embedding: Embedding) -> Array:
        """(…, M) → (…, V) log-probabilities, float32."""
        return self.xp.log_softmax(embedding.scores(hidden, self.bias))
