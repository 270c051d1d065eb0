"""What layers are made of, for the arrays of either library.

On a GPU arrays are MLX's. On a CPU, in float32, a loaded model's are numpy's (`weights.lay_out_for_cpu`): MLX computes
exponentials there one at a time, 15 to 25 ns each, its wheels for Linux come with a slow BLAS, and waiting for a
result, which a decoding step would do eighty times, takes it 14 µs.
"""

from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

# mx.array or np.ndarray: what goes into a function, and what comes out, is of one library. On paper the two types have
# too little in common for code on both to be checked.
Array: TypeAlias = Any


def on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def default_dtype() -> str:
    """16 bits on a GPU; float32 on a CPU, where 16-bit products are some fifty times slower."""
    return "float32" if on_cpu() else "bfloat16"


def namespace(x: Array) -> Any:
    """The library that `x` is of: what both have, they call by one name."""
    return np if isinstance(x, np.ndarray) else mx


def like(x: Any, other: Array) -> Array:
    """`x`, an array of either library or a list, as an array of the library that `other` is of."""
    if isinstance(other, np.ndarray):
        return to_numpy(x) if isinstance(x, mx.array) else np.asarray(x)
    return x if isinstance(x, mx.array) else mx.array(x)


def to_numpy(x: Array) -> np.ndarray:
    """The same numbers, floating ones as float32, not to be written to."""
    if isinstance(x, np.ndarray):
        return x
    values = x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x
    mx.eval(values)
    return np.array(values, copy=False)


def product(x: Array, weight: Array) -> Array:
    """(…, I) with (O, I) → (…, O)"""
    if not isinstance(x, np.ndarray):
        return x @ weight.T
    rows, columns = x.reshape(-1, x.shape[-1]), weight.T
    # For more than one row BLAS packs the weights first, which takes as long as four rows do without.
    few = len(rows) in (2, 3, 4)
    found = np.stack([row @ columns for row in rows]) if few else rows @ columns
    return found.reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """(…, I) → (…, O)"""

    def __call__(self, x: Array) -> Array:
        if not isinstance(x, np.ndarray):
            return super().__call__(x)
        found = product(x, self.weight)
        bias = getattr(self, "bias", None)
        if bias is not None:
            found += bias
        return found


class LayerNorm(nn.LayerNorm):
    """Over the last axis, float32 inside."""

    def __call__(self, x: Array) -> Array:
        if not isinstance(x, np.ndarray):
            return super().__call__(x)
        # np.mean and np.var do more in Python than in their loops where there is one row.
        n = x.shape[-1]
        values = x - np.add.reduce(x, axis=-1, keepdims=True) / n
        variance = np.einsum("...d,...d->...", values, values)[..., None] / n
        values *= 1 / np.sqrt(variance + self.eps)
        values *= self.weight
        values += self.bias
        return values


def relu(x: Array) -> Array:
    return namespace(x).maximum(x, 0)


def silu(x: Array) -> Array:
    return _gated(x, x) if isinstance(x, np.ndarray) else nn.silu(x)


def glu(x: Array) -> Array:
    """First half of the last axis, gated by the second."""
    if not isinstance(x, np.ndarray):
        return nn.glu(x)
    half = x.shape[-1] // 2
    return _gated(x[..., :half], x[..., half:])


def _gated(value: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """value · sigmoid(gate)"""
    divisor = np.negative(gate)
    np.exp(divisor, out=divisor)
    divisor += 1
    return np.divide(value, divisor, out=divisor)


def log_softmax(x: Array) -> Array:
    """Over the last axis, in float32."""
    if not isinstance(x, np.ndarray):
        x = x.astype(mx.float32)
        return x - mx.logsumexp(x, axis=-1, keepdims=True)
    values = x - x.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def softmax(x: Array) -> Array:
    """Over the last axis."""
    return np.exp(log_softmax(x)) if isinstance(x, np.ndarray) else mx.softmax(x, axis=-1)


def attention(q: Array, k: Array, v: Array, scale: float, mask: Array | None) -> Array:
    """Scaled dot-product attention.

    q: (B, H, S, d); k, v: (B, H, T, d); mask: true where to attend, or a bias to add, broadcast to (B, H, S, T).
    Returns (B, H, S, d).
    """
    if not isinstance(q, np.ndarray):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    if mask is not None and mask.dtype == bool:
        mask = np.where(mask, np.float32(0), np.float32(-np.inf))
    return _attended(q, k, v, scale, mask)


def attention_by_row(q: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray], scale: float) -> np.ndarray:
    """The same for rows of different lengths: q (R, H, S, d); keys, values (H, T, d) a row, T its own."""
    return np.stack([_attended(*row, scale, None) for row in zip(q, keys, values, strict=True)])


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


def frames(x: Array, length: int, hop: int) -> Array:
    """(B, N) → a view (B, (N - length) // hop + 1, length), each begun `hop` after the one before."""
    if isinstance(x, np.ndarray):
        return np.lib.stride_tricks.sliding_window_view(x, length, axis=1)[:, ::hop]
    B, N = x.shape
    return mx.as_strided(mx.contiguous(x), (B, (N - length) // hop + 1, length), (N, hop, 1))


def relative_shift(by_distance: Array) -> Array:
    """(B, H, T, 2T - 1), each row from distance T-1 down → a view (B, H, T, T) whose place (i, j) is of distance i - j.

    Each row begins one place to the left of the one above: a row stride one short of the width.
    """
    B, H, T, width = by_distance.shape
    shape, strides = (B, H, T, T), (H * T * width, T * width, width - 1, 1)
    if not isinstance(by_distance, np.ndarray):
        return mx.as_strided(mx.contiguous(by_distance), shape, strides, T - 1)
    first = by_distance.reshape(-1)[T - 1 :]
    return np.lib.stride_tricks.as_strided(first, shape, [first.itemsize * n for n in strides], writeable=False)


def depthwise_1d(x: Array, weight: Array) -> Array:
    """Depthwise convolution over time that keeps the length: x (B, T, D), weight (D, K, 1), K odd."""
    D, K, _ = weight.shape
    half = K // 2
    if not isinstance(x, np.ndarray):
        return mx.conv1d(x, weight, padding=half, groups=D)
    T = x.shape[1]
    total, scratch = np.zeros_like(x), np.empty_like(x)
    # Each channel's neighbour beside it: strided taps would be read one by one.
    for i, tap in enumerate(weight[..., 0].T.copy()):
        # Places first … last of the result have an input at this tap; the others meet the padding.
        first, last = max(0, half - i), min(T, T + half - i)
        if first < last:
            heard = x[:, first + i - half : last + i - half]
            total[:, first:last] += np.multiply(heard, tap, out=scratch[:, first:last])
    return total


def conv_2d(x: Array, weight: Array) -> Array:
    """3x3 convolution of stride 2 from one channel, padded by one in frequency and not in time.

    x: (B, T, F, 1); weight: (C, 3, 3, 1). Returns (B, (T - 3) // 2 + 1, ceil(F / 2), C).
    """
    if not isinstance(x, np.ndarray):
        return mx.conv2d(x, weight, stride=2, padding=(0, 1))
    padded = np.pad(x[..., 0], [(0, 0), (0, 0), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return windows.reshape(*windows.shape[:3], 9) @ weight.reshape(-1, 9).T


def depthwise_2d(x: Array, weight: Array) -> Array:
    """Depthwise 3x3 convolution of stride 2, padded by one in frequency and not in time.

    x: (B, T, F, C); weight: (C, 3, 3, 1). Returns (B, (T - 3) // 2 + 1, ceil(F / 2), C).
    """
    if not isinstance(x, np.ndarray):
        return mx.conv2d(x, weight, stride=2, padding=(0, 1), groups=x.shape[-1])
    T, F = (x.shape[1] - 3) // 2 + 1, (x.shape[2] - 1) // 2 + 1
    total = np.zeros((x.shape[0], T, F, x.shape[3]), np.float32)
    scratch = np.empty_like(total)
    taps = weight[..., 0].transpose(1, 2, 0).copy()
    for t in range(3):
        rows = x[:, t : t + 2 * T - 1 : 2]
        for f in range(3):
            # The first column's left neighbour is padding, and an odd width's last one's right neighbour.
            first = int(f == 0)
            heard = rows[:, :, 2 * first + f - 1 :: 2][:, :, : F - first]
            last = first + heard.shape[2]
            total[:, :, first:last] += np.multiply(heard, taps[t, f], out=scratch[:, :, first:last])
    return total
