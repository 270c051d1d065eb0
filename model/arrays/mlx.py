"""MLX's arrays: what models compute with on a GPU.

The names, arguments and results are those of `model.arrays.numpy`. Shapes: B batch, T time, D width, H heads, d width
of a head, R rows of a running batch.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.core import (
    arange,
    concatenate,
    contiguous,
    fft,
    imag,
    log,
    maximum,
    pad,
    real,
    sqrt,
    square,
    stack,
    take_along_axis,
    where,
)

__all__ = [
    "CONCURRENT",
    "FixedSlots",
    "GrowingSlots",
    "arange",
    "asarray",
    "attention",
    "concatenate",
    "contiguous",
    "conv_2d",
    "depthwise_1d",
    "depthwise_2d",
    "evaluate",
    "fft",
    "frames",
    "glu",
    "imag",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "maximum",
    "pad",
    "real",
    "relative_shift",
    "relu",
    "silu",
    "softmax",
    "sqrt",
    "square",
    "stack",
    "start",
    "take_along_axis",
    "to_numpy",
    "where",
]

# A GPU computes rows side by side and while Python goes on. So audios are padded and encoded together, and a decode
# step is begun before the tokens of the last one are known.
CONCURRENT = True

# Slots grow by so many positions at a time, so that shapes repeat.
TIME_STEP = 64


def asarray(x: Any, dtype: mx.Dtype | None = None) -> mx.array:
    """An array of either library, or a list, as MLX's, of type `dtype` if one is given."""
    array = x if isinstance(x, mx.array) else mx.array(x)
    return array if dtype is None else array.astype(dtype)


def to_numpy(x: mx.array) -> np.ndarray:
    """The values as numpy's, floating ones as float32. They may share memory: do not write to them."""
    return np.asarray(x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x)


def evaluate(*arrays: mx.array) -> None:
    """Wait until the arrays are computed."""
    mx.eval(*arrays)


def start(*arrays: mx.array) -> None:
    """Begin to compute the arrays, without waiting."""
    mx.async_eval(*arrays)


def linear(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """(…, I) with weight (O, I) and bias (O,) → (…, O)"""
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """Over the last axis, float32 inside."""
    return mx.fast.layer_norm(x, weight, bias, eps)


def relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def silu(x: mx.array) -> mx.array:
    return nn.silu(x)


def glu(x: mx.array) -> mx.array:
    """The first half of the last axis, gated by the second."""
    return nn.glu(x)


def softmax(x: mx.array) -> mx.array:
    """Over the last axis."""
    return mx.softmax(x, axis=-1)


def log_softmax(x: mx.array) -> mx.array:
    """Over the last axis, in float32."""
    x = x.astype(mx.float32)
    return x - mx.logsumexp(x, axis=-1, keepdims=True)


def attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Scaled dot-product attention.

    q: (B, H, S, d); k, v: (B, H, T, d); mask: true where to attend, or a bias to add, broadcast to (B, H, S, T).
    Returns (B, H, S, d).
    """
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)


def frames(x: mx.array, length: int, hop: int) -> mx.array:
    """(B, N) → a view (B, (N - length) // hop + 1, length) of frames that begin `hop` apart."""
    B, N = x.shape
    return mx.as_strided(mx.contiguous(x), (B, (N - length) // hop + 1, length), (N, hop, 1))


def relative_shift(by_distance: mx.array) -> mx.array:
    """(B, H, T, 2T - 1), each row from distance T-1 down → a view (B, H, T, T) whose place (i, j) is of distance i - j.

    Each row begins one place to the left of the one above: a row stride one short of the width.
    """
    B, H, T, width = by_distance.shape
    strides = (H * T * width, T * width, width - 1, 1)
    return mx.as_strided(mx.contiguous(by_distance), (B, H, T, T), strides, T - 1)


def depthwise_1d(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Depthwise convolution over time that keeps the length: x (B, T, D), weight (D, K, 1), K odd."""
    D, K, _ = weight.shape
    return mx.conv1d(x, weight, padding=K // 2, groups=D) + bias


def conv_2d(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """3x3 convolution of stride 2 from one channel, padded by one in frequency and not in time.

    x: (B, T, F, 1); weight: (C, 3, 3, 1). Returns (B, (T - 3) // 2 + 1, ceil(F / 2), C).
    """
    return mx.conv2d(x, weight, stride=2, padding=(0, 1)) + bias


def depthwise_2d(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Depthwise 3x3 convolution of stride 2, padded by one in frequency and not in time.

    x: (B, T, F, C); weight: (C, 3, 3, 1). Returns (B, (T - 3) // 2 + 1, ceil(F / 2), C).
    """
    return mx.conv2d(x, weight, stride=2, padding=(0, 1), groups=x.shape[-1]) + bias


class FixedSlots:
    """Keys and values of a decoder's attention layers, for the rows of a running batch. A row keeps its length.

    Each layer has a buffer (rows, H, time, d), of which the first rows are in use. Rows are padded to one length.
    Rows join at the end, and the last row takes the place of one that leaves.
    """

    def __init__(self, layers: int, n_heads: int, d_head: int, dtype: mx.Dtype):
        self._empty = mx.zeros((0, n_heads, 0, d_head), dtype)
        self._keys = [self._empty] * layers
        self._values = [self._empty] * layers
        # How many positions of each row are real.
        self._lengths: list[int] = []
        self._mask: mx.array | None = None

    def join(self, pairs: list[tuple[mx.array, mx.array]], copies: int) -> None:
        """Add `copies` rows that begin with these keys and values (1, H, T, d), one pair for each layer."""
        first, T = len(self._lengths), pairs[0][0].shape[2]
        last = first + copies
        self._make_room(last, T)
        for i, (keys, values) in enumerate(pairs):
            self._keys[i][first:last, :, :T] = keys
            self._values[i][first:last, :, :T] = values
        self._set_lengths([*self._lengths, *[T] * copies])

    def attend(self, layer: int, q: mx.array) -> mx.array:
        """What the queries (R, H, 1, d) find in their rows: (R, H, 1, d)."""
        R, time = len(self._lengths), _rounded_up(max(self._lengths))
        if self._mask is None:
            self._mask = (arange(time) < mx.array(self._lengths)[:, None])[:, None, None]
        return attention(q, self._keys[layer][:R, :, :time], self._values[layer][:R, :, :time], self._mask)

    def leave(self, row: int) -> None:
        """Row `row` leaves, and the last row takes its place."""
        last = len(self._lengths) - 1
        if row != last:
            for buffer in (*self._keys, *self._values):
                buffer[row] = buffer[last]
        self._lengths[row] = self._lengths[last]
        self._set_lengths(self._lengths[:last])

    def clear(self) -> None:
        """Give the memory back."""
        self._keys = [self._empty] * len(self._keys)
        self._values = [self._empty] * len(self._values)
        self._set_lengths([])

    def _set_lengths(self, lengths: list[int]) -> None:
        self._lengths, self._mask = lengths, None

    def _make_room(self, rows: int, time: int) -> None:
        """Room for `rows` rows of `time` positions. Buffers grow in steps of a few sizes."""
        have_rows, H, have_time, d = self._keys[0].shape
        if have_rows >= rows and have_time >= time:
            return
        shape = (_doubled(have_rows, rows), H, max(have_time, _rounded_up(time)), d)
        for buffers in (self._keys, self._values):
            for i, old in enumerate(buffers):
                buffers[i] = mx.zeros(shape, old.dtype)
                buffers[i][:have_rows, :, :have_time] = old


class GrowingSlots(FixedSlots):
    """Rows that get longer by one position in each step."""

    def begin_step(self, positions: list[int]) -> None:
        """Where each row's next keys and values go. Until the next step a row attends to itself up to there."""
        self._make_room(len(positions), max(positions) + 1)
        self._at = arange(len(positions)), mx.array(positions)
        self._set_lengths([position + 1 for position in positions])

    def write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        """The new position of each row: keys and values (R, H, 1, d)."""
        rows, columns = self._at
        self._keys[layer][rows, :, columns] = keys.squeeze(2)
        self._values[layer][rows, :, columns] = values.squeeze(2)

    def reorder(self, rows: list[int], sources: list[int]) -> None:
        """Row rows[i] becomes what row sources[i] was."""
        to, of = mx.array(rows), mx.array(sources)
        for buffer in (*self._keys, *self._values):
            buffer[to] = buffer[of]


def _rounded_up(time: int) -> int:
    return -(-time // TIME_STEP) * TIME_STEP


def _doubled(n: int, least: int) -> int:
    while n < least:
        n = max(1, 2 * n)
    return n
