"""MLX's arrays: what models compute with on a GPU.

The names, arguments and results are those of `model.arrays.numpy`. Shapes: B batch, T time, D width, H heads, d width
of a head, R rows of a running batch.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.core import (
    arange,
    concatenate,
    contiguous,
    exp,
    fft,
    float32,
    imag,
    log,
    maximum,
    minimum,
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
    "add_half",
    "arange",
    "asarray",
    "attention",
    "attention_weights",
    "concatenate",
    "contiguous",
    "depthwise_1d",
    "evaluate",
    "exp",
    "fft",
    "float32",
    "frames",
    "glu",
    "imag",
    "layer_norm",
    "linear",
    "log",
    "log_softmax",
    "lstm_cell",
    "maximum",
    "minimum",
    "pad",
    "product",
    "real",
    "relative_scores",
    "relu",
    "rows_where",
    "silu",
    "sqrt",
    "square",
    "stack",
    "start",
    "take_along_axis",
    "to_numpy",
    "wait_for",
    "where",
]

# A GPU computes rows side by side and while Python goes on. So audios are padded and encoded together, and a decode
# step is prepared while the last one is computed.
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
    # A GPU lets go of what it has read a moment after the results are there.
    mx.synchronize()


def start(*arrays: mx.array) -> None:
    """Begin to compute the arrays, without waiting."""
    mx.async_eval(*arrays)


def wait_for(*arrays: mx.array) -> None:
    """Wait until the arrays are computed, but not for what was begun after them."""
    mx.eval(*arrays)


def linear(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """(…, I) with weight (O, I) and bias (O,) → (…, O)"""
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def product(x: mx.array, packed: Callable[[np.ndarray], np.ndarray]) -> mx.array:
    """With a packed weight, a `cpu.tracing.Product`: (…, I) → (…, O)"""
    return asarray(packed(to_numpy(x)), x.dtype)


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """Over the last axis, float32 inside."""
    return mx.fast.layer_norm(x, weight, bias, eps)


def relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def silu(x: mx.array) -> mx.array:
    return nn.silu(x)


def glu(x: mx.array) -> mx.array:
    """The first half of the last axis, gated by the second."""
    return _gated(*mx.split(x, 2, axis=-1))


@partial(mx.compile, shapeless=True)
def _gated(x: mx.array, gate: mx.array) -> mx.array:
    return x * mx.sigmoid(gate)


def add_half(x: mx.array, y: mx.array) -> mx.array:
    """x + y / 2"""
    return _add_half(x, y)


@partial(mx.compile, shapeless=True)
def _add_half(x: mx.array, y: mx.array) -> mx.array:
    return x + 0.5 * y


def lstm_cell(gates: mx.array, cell: mx.array) -> tuple[mx.array, mx.array]:
    """One step of an LSTM layer: gates (R, 4P), in the order i, f, g, o, and cell (R, P) → output and cell (R, P)."""
    i, f, g, o = mx.split(gates, 4, axis=-1)
    return _lstm_cell(i, f, g, o, cell)


@partial(mx.compile, shapeless=True)
def _lstm_cell(i: mx.array, f: mx.array, g: mx.array, o: mx.array, cell: mx.array) -> tuple[mx.array, mx.array]:
    cell = mx.sigmoid(f) * cell + mx.sigmoid(i) * mx.tanh(g)
    return mx.sigmoid(o) * mx.tanh(cell), cell


def rows_where(chosen: mx.array, compute: Callable[[Any], list[mx.array]], otherwise: list[mx.array]) -> list[mx.array]:
    """Arrays (R, …) with the rows of compute(rows) where chosen (R,) is true, and else those of `otherwise`.

    Everything is computed for all rows: which are chosen is known to the GPU alone.
    """
    pairs = zip(compute(slice(None)), otherwise, strict=True)
    return [mx.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in pairs]


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


def attention_weights(q: mx.array, k: mx.array, mask: mx.array | None) -> mx.array:
    """What `attention` multiplies the values with, the mean over heads: (B, S, T) float32, rows summing to 1.

    q: (B, H, S, d); k: (B, H, T, d); mask: true where to attend, broadcast to (B, H, S, T).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, -math.inf)
    return mx.softmax(scores.astype(mx.float32), axis=-1).mean(axis=-3)


def frames(x: mx.array, length: int, hop: int) -> mx.array:
    """(B, N) → a view (B, (N - length) // hop + 1, length) of frames that begin `hop` apart."""
    B, N = x.shape
    return mx.as_strided(x, (B, (N - length) // hop + 1, length), (N, hop, 1))


def relative_scores(q: mx.array, positions: mx.array) -> mx.array:
    """Scores of the last S of T steps, q (B, H, S, d), by distance: with positions (H, T + S - 1, d), from T-1 down.

    Returns a view (B, H, S, T), whose place (i, j) is of the distance from step T-S+i back to step j. Each row begins
    one place to the left of the one above: a row stride one short of the width.
    """
    by_distance = q @ positions.swapaxes(-1, -2)
    B, H, S, width = by_distance.shape
    strides = (H * S * width, S * width, width - 1, 1)
    return mx.as_strided(by_distance, (B, H, S, width - S + 1), strides, S - 1)


def depthwise_1d(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """Depthwise convolution over time that keeps the length: x (B, T, D), weight (D, K, 1), K odd."""
    D, K, _ = weight.shape
    # A GPU's fast kernel for depthwise convolution does not pad (MLX #2567).
    padded = pad(x, [(0, 0), (K // 2, K // 2), (0, 0)])
    return mx.conv1d(padded, weight, groups=D) + bias


class FixedSlots:
    """Keys and values of a decoder's attention layers, for the rows of a running batch. A row keeps its length.

    Each layer has one buffer (2, rows, H, time, d): keys, then values. The first rows are in use, and all of them end
    at the same column. Rows join at the end, and the last row takes the place of one that leaves.

    MLX writes into an array in place only if nothing else uses it; otherwise it first copies the whole array. So
    whatever reads a buffer must be computed before the next write begins.
    """

    # Free columns behind the rows in a new buffer.
    _free_columns = 0

    def __init__(self, layers: int, n_heads: int, d_head: int, dtype: mx.Dtype):
        self._empty = mx.zeros((2, 0, n_heads, 0, d_head), dtype)
        self._buffers = [self._empty] * layers
        # Where each row begins, where the longest does, and where all of them end.
        self._starts: list[int] = []
        self._first = self._end = 0
        # True where a row has keys and values, from the first column to the buffers' last: (R, H, 1, time). None if all
        # rows are of one length.
        self._mask: mx.array | None = None

    def join(self, layers: list[mx.array], copies: int) -> None:
        """Add `copies` rows that begin with these keys and values (1, 2H, T, d), one array for each layer."""
        rows, length = len(self._starts), layers[0].shape[2]
        if rows + copies > self._buffers[0].shape[1] or length > self._end:
            self._lay_out(rows + copies, max(length, self._end - self._first))
        start = self._end - length
        for buffer, kv in zip(self._buffers, layers, strict=True):
            buffer[:, rows : rows + copies, :, start : self._end] = _keys_and_values(kv)
        self._set_starts([*self._starts, *[start] * copies])

    def attend(self, layer: int, q: mx.array) -> mx.array:
        """What the queries (R, H, 1, d) find in their rows: (R, H, 1, d)."""
        buffer, rows, columns = self._buffers[layer], slice(len(self._starts)), slice(self._first, self._end)
        mask = None if self._mask is None else self._mask[..., : self._end - self._first]
        return attention(q, buffer[0, rows, :, columns], buffer[1, rows, :, columns], mask)

    def weights(self, layer: int, q: mx.array, rows: list[int]) -> list[mx.array]:
        """What the queries (R, H, 1, d) of these rows attend to in them: (1, T) each, the mean over heads."""
        keys = self._buffers[layer][0, : len(self._starts), :, self._first : self._end]
        mask = None if self._mask is None else self._mask[..., : self._end - self._first]
        weights = attention_weights(q, keys, mask)
        return [weights[row, :, self._starts[row] - self._first :] for row in rows]

    def leave(self, row: int) -> None:
        """Row `row` leaves, and the last row takes its place. Buffers twice as large as needed shrink."""
        starts = self._starts[:-1]
        if row < len(starts):
            self._copy([len(starts)], [row])
            starts[row] = self._starts[-1]
        self._set_starts(starts)
        longest = self._end - self._first
        if starts and math.prod(self._buffers[0].shape) >= 2 * math.prod(self._shape(len(starts), longest)):
            self._lay_out(len(starts), longest)

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers = [self._empty] * len(self._buffers)
        self._end = 0
        self._set_starts([])

    def _set_starts(self, starts: list[int]) -> None:
        self._starts, self._first, self._mask = starts, min(starts, default=self._end), None
        if len(set(starts)) > 1:
            columns = np.arange(self._first, self._buffers[0].shape[3])
            mask = columns >= np.array(starts)[:, None, None, None]
            # A GPU's fused attention would copy a mask that is broadcast over the heads, in every layer.
            self._mask = asarray(np.repeat(mask, self._empty.shape[2], axis=1))

    def _shape(self, rows: int, time: int) -> tuple[int, ...]:
        """The shape of a new buffer for `rows` rows, the longest of `time` positions. There are few such shapes."""
        _, _, H, _, d = self._empty.shape
        return 2, 1 << (rows - 1).bit_length(), H, _rounded_up(time) + self._free_columns, d

    def _lay_out(self, rows: int, time: int) -> None:
        """Move the rows to new buffers, with room for `rows` rows, the longest of `time` positions."""
        R, first, end = len(self._starts), self._first, self._end
        shift = _rounded_up(time) - end
        for layer in range(len(self._buffers)):
            buffer = mx.zeros(self._shape(rows, time), self._empty.dtype)
            if R:
                buffer[:, :R, :, first + shift : end + shift] = self._buffers[layer][:, :R, :, first:end]
            self._buffers[layer] = buffer
            # One layer at a time: its old buffer is freed before the next one's new buffer is made.
            evaluate(buffer)
        self._end = end + shift
        self._set_starts([start + shift for start in self._starts])

    def _copy(self, sources: list[int], rows: list[int]) -> None:
        """Row rows[i] gets the keys and values of row sources[i]."""
        columns, of, to = slice(self._first, self._end), mx.array(sources), mx.array(rows)
        copies = [buffer[:, of, :, columns] for buffer in self._buffers]
        evaluate(*copies)
        for buffer, copied in zip(self._buffers, copies, strict=True):
            buffer[:, to, :, columns] = copied


class GrowingSlots(FixedSlots):
    """Rows that get longer by one position in each step."""

    _free_columns = TIME_STEP

    def begin_step(self) -> None:
        """Make room for the next position of every row. `write` fills it, layer by layer."""
        if self._end == self._buffers[0].shape[3]:
            self._lay_out(len(self._starts), self._end - self._first)
        self._end += 1

    def write(self, layer: int, kv: mx.array) -> None:
        """Keys and values (R, 2H, 1, d) of the new position."""
        self._buffers[layer][:, : len(self._starts), :, self._end - 1 : self._end] = _keys_and_values(kv)

    def copied(self, row: int, length: int) -> list[mx.array]:
        """The first `length` keys and values of a row (1, 2H, length, d), one array for each layer."""
        places = slice(self._starts[row], self._starts[row] + length)
        H, d = self._empty.shape[2], self._empty.shape[4]
        copies = [contiguous(buffer[:, row, :, places].reshape(1, 2 * H, length, d)) for buffer in self._buffers]
        evaluate(*copies)
        return copies

    def reorder(self, rows: list[int], sources: list[int]) -> None:
        """Row rows[i] becomes what row sources[i] was. All are of one length."""
        self._copy(sources, rows)


def _keys_and_values(kv: mx.array) -> mx.array:
    """(R, 2H, T, d) → (2, R, H, T, d)"""
    R, heads, T, d = kv.shape
    return kv.reshape(R, 2, heads // 2, T, d).swapaxes(0, 1)


def _rounded_up(time: int) -> int:
    return -(-time // TIME_STEP) * TIME_STEP
