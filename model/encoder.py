"""FastConformer encoder: log-mel frames to one vector per 80 ms. NeMo's ConformerEncoder."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from model.arrays import Array
from model.config import EncoderConfig
from model.growing import EncoderPast, Growing, LayerPast
from model.layers import Layer, LayerNorm, Linear, rowwise
from model.subsampling import Subsampling, subsampled

# A GPU gets so many layers at a time. It computes them while the next ones are prepared, so that it never stands still.
LAYERS_ON_GPU = 4
# Steps whose local attention is computed at a time.
BLOCK = 128
# Projected positions are kept for audio up to so many encoder steps (41 s).
POSITIONS_KEPT = 512


def positional_encoding(length: int, d_model: int) -> np.ndarray:
    """(2·length - 1, d_model): sinusoids of the distances length-1 … -(length-1), sine and cosine interleaved."""
    distance = np.arange(length - 1, -length, -1, dtype=np.float32)[:, None]
    rate = np.exp(np.arange(0, d_model, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / d_model))
    angle = distance * rate
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(2 * length - 1, d_model)


def _skewed(band: Array, xp: Any) -> Array:
    """(B, H, n, W) → (B, H, n, n + W - 1): each row begins one place right of the one above, after zeros."""
    B, H, n, W = band.shape
    rows = xp.pad(band, [(0, 0), (0, 0), (0, 0), (0, n)]).reshape(B, H, n * (W + n))
    return rows[..., :-n].reshape(B, H, n, W + n - 1)


class FeedForward(Layer):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        inner = config.d_model * config.ff_expansion_factor
        self.linear1 = Linear(config.d_model, inner, bias=config.use_bias)
        self.linear2 = Linear(inner, config.d_model, bias=config.use_bias)

    def __call__(self, x: Array) -> Array:
        return self.linear2(self.xp.silu(self.linear1(x)))


class RelativeAttention(Layer):
    """Multi-head self-attention with Transformer-XL's relative positions.

    `ConformerLayer` calls `linear_qkv` before it and `linear_out` after it.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, H = config.d_model, config.n_heads
        self.linear_qkv = Linear(D, 3 * D, bias=config.use_bias)
        self.linear_pos = Linear(D, D, bias=False)
        self.linear_out = Linear(D, D, bias=config.use_bias)
        self.pos_bias_u: Array = mx.zeros((H, D // H))
        self.pos_bias_v: Array = mx.zeros((H, D // H))

        # The projected sinusoids for the longest audio so far. A shorter one uses the middle of them.
        self._projected: Array = mx.zeros((H, 0, D // H))

    def __call__(
        self, qkv: Array, mask: Array | None, local: tuple[int, int] | None, growing: Growing | None = None
    ) -> Array:
        """What queries find, (B, T, D), of queries, keys and values (B, T, 3D).

        mask: (B, 1, 1, T), true where a key is real, or None for all; local: how many steps each one sees to its left
        and to its right, or None for all; growing: the audios that the T steps (B = 1) are of. Each step sees those of
        its own audio, the earlier ones as well.
        """
        B, T, width = qkv.shape
        H, D = self.pos_bias_u.shape[0], width // 3
        heads = qkv.reshape(B, T, 3 * H, D // H).transpose(0, 2, 1, 3)
        q, kv = heads[:, :H], heads[:, H:]
        if growing is not None:
            attended = self._growing(q, kv, growing)
        elif local is None or min(local) >= T - 1:
            attended = self._full(q, kv[:, :H], kv[:, H:], mask)
        else:
            attended = self._local(q, kv[:, :H], kv[:, H:], mask, *local)
        return attended.transpose(0, 2, 1, 3).reshape(B, T, D)

    def _growing(self, q: Array, kv: Array, growing: Growing) -> Array:
        """Each query sees all keys of its audio. q: (1, H, T, d) and kv: (1, 2H, T, d), of the new steps."""
        attended, H = [], q.shape[1]
        for past, new in growing.each():
            known = past.add_keys(kv[:, :, new], self.xp)
            attended.append(self._full(q[:, :, new], known[:, :H], known[:, H:], None))
        return self.xp.concatenate(attended, axis=2)

    def _full(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        """Each query sees every key. q: (B, H, S, d), of the last S steps; k, v: (B, H, T, d). Returns (B, H, S, d)."""
        xp, S, T = self.xp, q.shape[2], k.shape[2]
        positions = self._positions(T)[:, : T + S - 1]
        bias = xp.relative_scores(q + self.pos_bias_v[:, None], positions)
        if mask is not None:
            bias = xp.where(mask, bias, -math.inf)
        return xp.attention(q + self.pos_bias_u[:, None], k, v, bias)

    def _local(self, q: Array, k: Array, v: Array, mask: Array | None, left: int, right: int) -> Array:
        """Each query sees `left` keys before its own and `right` after it. NeMo's `rel_pos_local_attn`.

        Only a band of the scores is computed, block by block: memory grows with T, not with its square.
        """
        xp, T = self.xp, q.shape[2]
        longest = max(left, right) + 1
        positions = self._positions(longest)[:, longest - 1 - left : longest + right].swapaxes(-1, -2)
        k, v = (xp.pad(each, [(0, 0), (0, 0), (left, right), (0, 0)]) for each in (k, v))
        real = xp.asarray(np.ones((1, 1, 1, T), bool)) if mask is None else mask
        real = xp.pad(real, [(0, 0), (0, 0), (0, 0), (left, right)])
        blocks = []
        for start in range(0, T, BLOCK):
            n = min(BLOCK, T - start)
            queries, seen = q[:, :, start : start + n], slice(start, start + n + left + right)
            bias = _skewed((queries + self.pos_bias_v[:, None]) @ positions, xp)
            offset = np.arange(n + left + right) - np.arange(n)[:, None]
            band, own = (xp.asarray(each) for each in ((offset >= 0) & (offset <= left + right), offset == left))
            # A step past the end of its audio sees itself, as nothing at all would be NaN.
            bias = xp.where(band & (real[..., seen] | own), bias, -math.inf)
            blocks.append(xp.attention(queries + self.pos_bias_u[:, None], k[:, :, seen], v[:, :, seen], bias))
        return xp.concatenate(blocks, axis=2)

    def _positions(self, length: int) -> Array:
        """(H, 2·length - 1, D/H): the projected distances length-1 … -(length-1), times attention's scale."""
        H, have, d = self._projected.shape
        if have < 2 * length - 1:
            longest = max(length, min(2 * length, POSITIONS_KEPT))
            sinusoids = self.xp.asarray(positional_encoding(longest, H * d), self.pos_bias_u.dtype)
            projected = d**-0.5 * self.linear_pos(sinusoids).reshape(-1, H, d).transpose(1, 0, 2)
            if longest > POSITIONS_KEPT:
                return projected
            # MLX would copy a strided array in every product.
            self._projected = self.xp.contiguous(projected)
            have = 2 * longest - 1
        middle = have // 2
        return self._projected[:, middle - length + 1 : middle + length]


class Convolution(Layer):
    """The depthwise convolution, batch norm folded in. `ConformerLayer` calls the pointwise ones around it."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.d_model
        self.pointwise_conv1 = Linear(D, 2 * D, bias=config.use_bias)
        self.depthwise_conv = nn.Conv1d(D, D, config.conv_kernel_size, groups=D)
        self.pointwise_conv2 = Linear(D, D, bias=config.use_bias)

    def __call__(self, x: Array, inside: Array | None, growing: Growing | None = None) -> Array:
        """The depthwise convolution of the gated x (B, T, D).

        inside: (B, T, 1), true at real frames, or None for all; growing: see `RelativeAttention`.
        """
        if inside is not None:
            x = self.xp.where(inside, x, 0)
        return self._depthwise(x) if growing is None else self._growing(x, growing)

    def _growing(self, x: Array, growing: Growing) -> Array:
        """Each audio's steps see its earlier ones. x: (1, T, D), the new steps."""
        convolved = []
        for past, new in growing.each():
            gated = past.add_gated(x[:, new], self.xp)
            convolved.append(self._depthwise(gated)[:, gated.shape[1] - (new.stop - new.start) :])
        return self.xp.concatenate(convolved, axis=1)

    def _depthwise(self, x: Array) -> Array:
        return self.xp.depthwise_1d(x, self.depthwise_conv.weight, self.depthwise_conv.bias)


class ConformerLayer(Layer):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.d_model
        self.norm_feed_forward1 = LayerNorm(D)
        self.feed_forward1 = FeedForward(config)
        self.norm_self_att = LayerNorm(D)
        self.self_attn = RelativeAttention(config)
        self.norm_conv = LayerNorm(D)
        self.conv = Convolution(config)
        self.norm_feed_forward2 = LayerNorm(D)
        self.feed_forward2 = FeedForward(config)
        self.norm_out = LayerNorm(D)

    def __call__(
        self,
        x: Array,
        inside: Array | None,
        local: tuple[int, int] | None = None,
        growing: Growing | None = None,
    ) -> Array:
        """x: (B, T, D); inside: (B, T, 1), true at real frames, or None for all.

        local, growing: see `RelativeAttention`. The steps of x are added to the growing audios' pasts.
        """
        mask = None if inside is None else inside.transpose(0, 2, 1)[:, None]
        x, qkv = self.to_attention(x)
        x, gated = self.to_convolution(x, self.self_attn(qkv, mask, local, growing))
        return self.to_next_layer(x, self.conv(gated, inside, growing))

    @rowwise
    def to_attention(self, x: Array) -> tuple[Array, Array]:
        """(B, T, D) → x (B, T, D), and queries, keys and values (B, T, 3D)."""
        x = self.xp.add_half(x, self.feed_forward1(self.norm_feed_forward1(x)))
        return x, self.self_attn.linear_qkv(self.norm_self_att(x))

    @rowwise
    def to_convolution(self, x: Array, attended: Array) -> tuple[Array, Array]:
        """x, and what its queries found, → x and the convolution's gated input, all (B, T, D)."""
        x = x + self.self_attn.linear_out(attended)
        return x, self.xp.glu(self.conv.pointwise_conv1(self.norm_conv(x)))

    @rowwise
    def to_next_layer(self, x: Array, convolved: Array) -> Array:
        """x, and what was convolved, → x, all (B, T, D)."""
        x = x + self.conv.pointwise_conv2(self.xp.silu(convolved))
        x = self.xp.add_half(x, self.feed_forward2(self.norm_feed_forward2(x)))
        return self.norm_out(x)


class FastConformer(Layer):
    """Subsampling by 8, then `n_layers` Conformer layers."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self._config = config
        self.subsampling = Subsampling(config)
        self.layers = [ConformerLayer(config) for _ in range(config.n_layers)]

    def __call__(
        self,
        mel: Array,
        lengths: Array = None,
        local: tuple[int, int] | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> Array:
        """mel: (B, T, n_mels); lengths: (B,) valid frames, or None where all T are → (B, T', d_model).

        local: how many steps attention sees to the left and to the right, instead of as many as the model was trained
        with: for audio so long that T'² scores would not fit into memory.
        between_layers: called after every few of them, see `family.Model.encodings`.
        T' is the subsampled T. Steps past a row's subsampled length are meaningless.
        """
        local = local or self._config.local_context
        xp = self.xp
        lengths = None if lengths is None else xp.asarray(lengths)
        x = self._steps(mel, lengths)
        inside = None if lengths is None else (xp.arange(x.shape[1]) < subsampled(lengths)[:, None])[..., None]
        before = x
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, inside, local)
            if between_layers and not (xp.CONCURRENT and number % LAYERS_ON_GPU):
                xp.start(x)
                xp.wait_for(before)
                before = x
                between_layers()
        return x

    def grown(
        self, mels: list[Array], pasts: list[EncoderPast | None], settled: list[int]
    ) -> list[tuple[Array, EncoderPast]]:
        """The steps of audios that have grown, each since its past: None at its start.

        mels: (1, T, n_mels) of each whole audio. Returns the new steps (1, T' - past.steps, D) of each, and its next
        past. settled: how many steps that one has. They keep the keys and values that they have now, so what comes
        later does not change them. Only for attention without a local context.
        """
        new = [self._steps(mel, None, past.steps if past else 0) for mel, past in zip(mels, pasts, strict=True)]
        x, ends = self.xp.concatenate(new, axis=1), np.cumsum([each.shape[1] for each in new]).tolist()
        layers = []
        for i, layer in enumerate(self.layers):
            growing = Growing([replace(past.layers[i]) if past else LayerPast() for past in pasts], ends)
            x = layer(x, None, growing=growing)
            layers.append(growing.pasts)
        reach, grown = self._config.conv_kernel_size // 2, []
        for i, (past, mel, steps) in enumerate(zip(pasts, mels, settled, strict=True)):
            total = subsampled(mel.shape[1])
            kept = [each[i].up_to(steps, total, reach) for each in layers]
            vectors = x[:, ends[i] - new[i].shape[1] : ends[i]]
            grown.append((vectors, EncoderPast(steps, past.whole if past else total, kept)))
        return grown

    def _steps(self, mel: Array, lengths: Array | None, first: int = 0) -> Array:
        """What goes into the layers: the steps from `first` on (B, T' - first, D)."""
        x = self.subsampling(self.xp.asarray(mel, self.layers[0].norm_out.weight.dtype), lengths, first)
        return x * math.sqrt(self._config.d_model) if self._config.xscaling else x
