"""The operations whose fast form depends on the back end. On a GPU they are MLX's own.

MLX's CPU back end computes exponentials one at a time, 15 to 25 ns each, and means not much faster, which would cost an
encoder more than all its matrix products. numpy's are vectorised and work in place; handing it a buffer costs little.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np


def on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def to_numpy(x: mx.array) -> np.ndarray:
    """Its numbers as float32, not to be written to."""
    values = x.astype(mx.float32)
    mx.eval(values)
    return np.array(values, copy=False)


class LayerNorm(nn.LayerNorm):
    """Over the last axis, float32 inside."""

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            return super().__call__(x)
        values = to_numpy(x)
        values = values - values.mean(axis=-1, keepdims=True)
        variance = np.einsum("...d,...d->...", values, values)[..., None] / values.shape[-1]
        values *= 1 / np.sqrt(variance + self.eps)
        values *= to_numpy(self.weight)
        values += to_numpy(self.bias)
        return mx.array(values).astype(x.dtype)


class NumpyLinear(nn.Module):
    """A linear layer on a CPU, in float32: (…, I) → (…, O).

    numpy's BLAS multiplies few rows faster than others do if the weights lie by inputs, and on large pages.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None, room: np.ndarray):
        """weight: (O, I); bias: (O,); room: (I · O,), where to keep the weights."""
        super().__init__()
        self._columns = room.reshape(weight.shape[::-1])
        self._columns[:] = to_numpy(weight).T
        self._bias = None if bias is None else to_numpy(bias).copy()

    def __call__(self, x: mx.array) -> mx.array:
        rows = to_numpy(x).reshape(-1, x.shape[-1])
        # For more than one row BLAS packs the weights first, which takes as long as three rows do without.
        few = len(rows) in (2, 3)
        product = np.stack([row @ self._columns for row in rows]) if few else rows @ self._columns
        if self._bias is not None:
            product += self._bias
        return mx.array(product).reshape(*x.shape[:-1], -1)


def silu(x: mx.array) -> mx.array:
    return nn.silu(x) if not on_cpu() else _gated(x, x)


def glu(x: mx.array) -> mx.array:
    """First half of the last axis, gated by the second."""
    return nn.glu(x) if not on_cpu() else _gated(*mx.split(x, 2, axis=-1))


def _gated(value: mx.array, gate: mx.array) -> mx.array:
    """value · sigmoid(gate)"""
    divisor = np.negative(to_numpy(gate))
    np.exp(divisor, out=divisor)
    divisor += 1
    np.divide(to_numpy(value), divisor, out=divisor)
    return mx.array(divisor).astype(value.dtype)


def log_softmax(x: mx.array) -> mx.array:
    """Over the last axis, in float32."""
    if not on_cpu():
        x = x.astype(mx.float32)
        return x - mx.logsumexp(x, axis=-1, keepdims=True)
    values = to_numpy(x)
    values = values - values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return mx.array(values)


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Scaled dot-product attention.

    q: (B, H, S, d); k, v: (B, H, T, d); mask: true where to attend, or a bias to add, broadcast to (B, H, S, T).
    Returns (B, H, S, d).
    """
    if not on_cpu():
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    if mask is not None:
        mask = mx.where(mask, 0.0, -mx.inf) if mask.dtype == mx.bool_ else mask
        mx.eval(mask)
    attended = _attended(to_numpy(q), to_numpy(k), to_numpy(v), scale, None if mask is None else to_numpy(mask))
    return mx.array(attended).astype(q.dtype)


def attention_by_row(q: mx.array, keys: list[np.ndarray], values: list[np.ndarray], scale: float) -> mx.array:
    """The same on a CPU for rows of different lengths: q (R, H, S, d); keys, values (H, T, d) a row, T its own."""
    rows = zip(to_numpy(q), keys, values, strict=True)
    return mx.array(np.stack([_attended(*row, scale, None) for row in rows])).astype(q.dtype)


def _attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, bias: np.ndarray | None) -> np.ndarray:
    """(…, S, d), (…, T, d), (…, T, d) → (…, S, d)"""
    weights = (q * np.float32(scale)) @ k.swapaxes(-1, -2)
    if bias is not None:
        weights += bias
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    attended = weights @ v
    # After the product, so d columns are divided instead of T.
    attended /= weights.sum(axis=-1, keepdims=True)
    return attended


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
