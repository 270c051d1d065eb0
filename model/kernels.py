"""The operations whose fast form depends on the back end. On a GPU they are MLX's own.

MLX's CPU back end computes exponentials one at a time, 15 to 25 ns each, which would cost an encoder more than all its
matrix products. numpy's are vectorised; handing it the buffer costs less than a tenth of that.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np


def on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def exp(x: mx.array) -> mx.array:
    """e**x, float32 inside on a CPU."""
    if not on_cpu():
        return mx.exp(x)
    values = x.astype(mx.float32)
    mx.eval(values)
    return mx.array(np.exp(np.array(values, copy=False))).astype(x.dtype)


def silu(x: mx.array) -> mx.array:
    return x / (1 + exp(-x)) if on_cpu() else nn.silu(x)


def glu(x: mx.array) -> mx.array:
    """First half of the last axis, gated by the second."""
    if not on_cpu():
        return nn.glu(x)
    value, gate = mx.split(x, 2, axis=-1)
    return value / (1 + exp(-gate))


def log_softmax(x: mx.array) -> mx.array:
    """Over the last axis, in float32."""
    x = x.astype(mx.float32)
    if not on_cpu():
        return x - mx.logsumexp(x, axis=-1, keepdims=True)
    x = x - x.max(axis=-1, keepdims=True)
    return x - mx.log(exp(x).sum(axis=-1, keepdims=True))


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Scaled dot-product attention.

    q: (B, H, S, d); k, v: (B, H, T, d); mask: true where to attend, or a bias to add, broadcast to (B, H, S, T).
    Returns (B, H, S, d).
    """
    if not on_cpu():
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
    weights, total = _softmax_parts(scores)
    return (weights @ v) / total


def attention_by_row(q: mx.array, keys: list[mx.array], values: list[mx.array], scale: float) -> mx.array:
    """The same on a CPU for rows of different lengths: q (R, H, S, d); keys, values (1, H, T, d) a row, T its own."""
    if len(keys) == 1:
        return attention(q, keys[0], values[0], scale, None)
    T = max(k.shape[2] for k in keys)
    scores = [q_row @ k.swapaxes(-1, -2) for q_row, k in zip(mx.split(q * scale, len(keys)), keys, strict=True)]
    weights, total = _softmax_parts(mx.concatenate([_lengthened(row, T) for row in scores]))
    rows = mx.split(weights, len(values))
    attended = [row[..., : v.shape[2]] @ v for row, v in zip(rows, values, strict=True)]
    return mx.concatenate(attended) / total


def _lengthened(scores: mx.array, length: int) -> mx.array:
    """(…, T) → (…, length), so that nothing attends to what is added."""
    missing = length - scores.shape[-1]
    return mx.pad(scores, [(0, 0)] * 3 + [(0, missing)], constant_values=-mx.inf) if missing else scores


def _softmax_parts(scores: mx.array) -> tuple[mx.array, mx.array]:
    """e**scores, scaled so as not to overflow, and what to divide by: after the product, so d columns instead of T."""
    weights = exp(scores - scores.max(axis=-1, keepdims=True))
    # As a product, since MLX's own sum is slow on a CPU.
    return weights, weights @ mx.ones((weights.shape[-1], 1), weights.dtype)


def depthwise_1d(x: mx.array, weight: mx.array) -> mx.array:
    """Depthwise convolution over time that keeps the length: x (B, T, D), weight (D, K, 1), K odd."""
    D, K, _ = weight.shape
    half = K // 2
    if not on_cpu():
        return mx.conv1d(x, weight, padding=half, groups=D)
    T = x.shape[1]
    padded = mx.pad(x, [(0, 0), (half, half), (0, 0)])
    taps = weight.squeeze(-1).T
    total = padded[:, :T] * taps[0]
    for i in range(1, K):
        total = total + padded[:, i : i + T] * taps[i]
    return total


def depthwise_2d(x: mx.array, weight: mx.array) -> mx.array:
    """Depthwise 3x3 convolution of stride 2, padded by one in frequency and not in time.

    x: (B, T, F, C); weight: (C, 3, 3, 1). Returns (B, (T - 3) // 2 + 1, ceil(F / 2), C).
    """
    if not on_cpu():
        return mx.conv2d(x, weight, stride=2, padding=(0, 1), groups=x.shape[-1])
    T, F = (x.shape[1] - 3) // 2 + 1, (x.shape[2] - 1) // 2 + 1
    padded = mx.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)])
    total = mx.array(0, x.dtype)
    for t in range(3):
        for f in range(3):
            total = total + padded[:, t : t + 2 * T - 1 : 2, f : f + 2 * F - 1 : 2] * weight[:, t, f, 0]
    return total
