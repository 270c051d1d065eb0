"""FastConformer encoder: log-mel frames to one vector per 80 ms. NeMo's ConformerEncoder."""

import math

import mlx.core as mx
import mlx.nn as nn

from model.config import EncoderConfig


def subsampled(length):
    """Frames left of `length` (int or array) after the three stride-2 convolutions of the subsampling."""
    for _ in range(3):
        length = (length - 1) // 2 + 1
    return length


def positional_encoding(length: int, d_model: int) -> mx.array:
    """(2·length - 1, d_model): sinusoids of the distances length-1 … -(length-1), sine and cosine interleaved."""
    distance = mx.arange(length - 1, -length, -1, dtype=mx.float32)[:, None]
    rate = mx.exp(mx.arange(0, d_model, 2, dtype=mx.float32) * -(math.log(10000.0) / d_model))
    angle = distance * rate
    return mx.stack([mx.sin(angle), mx.cos(angle)], axis=-1).reshape(2 * length - 1, d_model)


class DepthwiseStride2(nn.Module):
    """3x3 depthwise convolution of stride 2 over (time, frequency); weight (C, 3, 3, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = mx.zeros((channels, 3, 3, 1))
        self.bias = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, F, C) → (B, ceil(T/2), ceil(F/2), C)."""
        return mx.conv2d(x, self.weight, stride=2, padding=1, groups=x.shape[-1]) + self.bias


class Subsampling(nn.Module):
    """`dw_striding` by 8: three stride-2 convolutions, then a projection to the model's width."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        C = config.subsampling_conv_channels
        self.conv_in = nn.Conv2d(1, C, kernel_size=3, stride=2, padding=1)
        self.depthwise1 = DepthwiseStride2(C)
        self.pointwise1 = nn.Linear(C, C)
        self.depthwise2 = DepthwiseStride2(C)
        self.pointwise2 = nn.Linear(C, C)
        self.out = nn.Linear(C * subsampled(config.feat_in), config.d_model)

    def __call__(self, mel: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
        """(B, T, n_mels), (B,) → (B, T', d_model), (B,). Invalid frames are zeroed before every convolution."""
        x, lengths = nn.relu(self.conv_in(_masked(mel[..., None], lengths))), _halved(lengths)
        x, lengths = self.depthwise1(_masked(x, lengths)), _halved(lengths)
        x = nn.relu(self.pointwise1(_masked(x, lengths)))
        x, lengths = self.depthwise2(_masked(x, lengths)), _halved(lengths)
        x = _masked(nn.relu(self.pointwise2(_masked(x, lengths))), lengths)
        return self.out(x.reshape(*x.shape[:2], -1)), lengths


def _halved(lengths: mx.array) -> mx.array:
    return (lengths - 1) // 2 + 1


def _masked(x: mx.array, lengths: mx.array) -> mx.array:
    """x (B, T, …) with the frames at and past each row's length set to zero."""
    inside = mx.arange(x.shape[1]) < lengths[:, None]
    return mx.where(inside.reshape(*inside.shape, *([1] * (x.ndim - 2))), x, mx.array(0, x.dtype))


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        inner = config.d_model * config.ff_expansion_factor
        self.linear1 = nn.Linear(config.d_model, inner, bias=config.use_bias)
        self.linear2 = nn.Linear(inner, config.d_model, bias=config.use_bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear2(nn.silu(self.linear1(x)))


class RelativeAttention(nn.Module):
    """Multi-head self-attention with Transformer-XL's relative positions."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, H = config.d_model, config.n_heads
        self.linear_qkv = nn.Linear(D, 3 * D, bias=config.use_bias)
        self.linear_pos = nn.Linear(D, D, bias=False)
        self.linear_out = nn.Linear(D, D, bias=config.use_bias)
        self.pos_bias_u = mx.zeros((H, D // H))
        self.pos_bias_v = mx.zeros((H, D // H))

    def __call__(self, x: mx.array, positions: mx.array, mask: mx.array | None) -> mx.array:
        """x: (B, T, D); positions: (2T-1, D); mask: (B, 1, 1, T), true where a key is real, or None for all."""
        B, T, D = x.shape
        H = self.pos_bias_u.shape[0]
        q, k, v = mx.split(self.linear_qkv(x).reshape(B, T, 3 * H, D // H).transpose(0, 2, 1, 3), 3, axis=1)
        p = self.linear_pos(positions).reshape(1, 2 * T - 1, H, D // H).transpose(0, 2, 3, 1)
        scale = 1 / math.sqrt(D // H)
        by_distance = mx.contiguous((q + self.pos_bias_v[:, None]) * scale @ p)
        # Row i of the product holds distances from T-1 down; a row stride one short of its width moves each row one
        # place to the left of the one above, so that column j is the distance i - j. Nothing is copied.
        width = 2 * T - 1
        bias = mx.as_strided(by_distance, (B, H, T, T), (H * T * width, T * width, width - 1, 1), T - 1)
        if mask is not None:
            bias = mx.where(mask, bias, mx.array(-mx.inf, bias.dtype))
        attended = mx.fast.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, scale=scale, mask=bias)
        return self.linear_out(attended.transpose(0, 2, 1, 3).reshape(B, T, D))


class Convolution(nn.Module):
    """Pointwise, gated, depthwise (batch norm folded in), pointwise."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.d_model
        self.pointwise_conv1 = nn.Linear(D, 2 * D, bias=config.use_bias)
        self.depthwise_conv = nn.Conv1d(
            D, D, config.conv_kernel_size, padding=(config.conv_kernel_size - 1) // 2, groups=D
        )
        self.pointwise_conv2 = nn.Linear(D, D, bias=config.use_bias)

    def __call__(self, x: mx.array, inside: mx.array | None) -> mx.array:
        """x: (B, T, D); inside: (B, T, 1), true at real frames, or None for all."""
        x = nn.glu(self.pointwise_conv1(x))
        if inside is not None:
            x = mx.where(inside, x, mx.array(0, x.dtype))
        return self.pointwise_conv2(nn.silu(self.depthwise_conv(x)))


class ConformerLayer(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.d_model
        self.norm_feed_forward1 = nn.LayerNorm(D)
        self.feed_forward1 = FeedForward(config)
        self.norm_self_att = nn.LayerNorm(D)
        self.self_attn = RelativeAttention(config)
        self.norm_conv = nn.LayerNorm(D)
        self.conv = Convolution(config)
        self.norm_feed_forward2 = nn.LayerNorm(D)
        self.feed_forward2 = FeedForward(config)
        self.norm_out = nn.LayerNorm(D)

    def __call__(self, x: mx.array, positions: mx.array, inside: mx.array | None) -> mx.array:
        mask = None if inside is None else inside.transpose(0, 2, 1)[:, None]
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), positions, mask)
        x = x + self.conv(self.norm_conv(x), inside)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        return self.norm_out(x)


class FastConformer(nn.Module):
    """Subsampling by 8, then `n_layers` Conformer layers."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self._config = config
        self.subsampling = Subsampling(config)
        self.layers = [ConformerLayer(config) for _ in range(config.n_layers)]

    def __call__(self, mel: mx.array, lengths: mx.array) -> tuple[mx.array, mx.array]:
        """mel: (B, T, n_mels), lengths: (B,) valid frames → (B, T', d_model), (B,) valid steps of 80 ms.

        T' is the subsampled T. Steps past a row's length hold no meaning.
        """
        x, lengths = self.subsampling(mel, lengths)
        if self._config.xscaling:
            x = x * math.sqrt(self._config.d_model)
        T = x.shape[1]
        positions = positional_encoding(T, self._config.d_model).astype(x.dtype)
        inside = (mx.arange(T) < lengths[:, None])[..., None]
        for layer in self.layers:
            x = layer(x, positions, inside)
        return x, lengths
