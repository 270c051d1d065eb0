"""numpy's arrays: what models compute with on a CPU in float32.

The names, arguments and results are those of `model.arrays.mlx`, whose shapes are written in the same letters. Where
speed asks for it, work is done in place, on rows one by one, or laid out for the cache and for BLAS.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import (
    arange,
    asarray,
    concatenate,
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
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from model.cpu import functions

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

# A CPU computes rows one after the other, so padding would only cost time, and a result is there when its call returns.
CONCURRENT = False

# A row's slots grow by so many positions at a time.
TIME_STEP = 64


def to_numpy(x: np.ndarray) -> np.ndarray:
    """The values themselves. Do not write to them."""
    return x


def contiguous(x: np.ndarray) -> np.ndarray:
    """As it is: BLAS reads rows of any stride as fast."""
    return x


def evaluate(*arrays: np.ndarray) -> None:
    """Nothing to wait for."""


def start(*arrays: np.ndarray) -> None:
    """Nothing to begin."""


def wait_for(*arrays: np.ndarray) -> None:
    """Nothing to wait for."""


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """(…, I) with weight (O, I) and bias (O,) → (…, O)"""
    rows, columns = x.reshape(-1, x.shape[-1]), weight.T
    # For more than one row BLAS packs the weights first, which takes as long as four rows do without.
    few = len(rows) in (2, 3, 4)
    found = np.stack([row @ columns for row in rows]) if few else rows @ columns
    if bias is not None:
        found += bias
    return found.reshape(*x.shape[:-1], -1)


def product(x: np.ndarray, packed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """With a packed weight, a `cpu.tracing.Product`: (…, I) → (…, O)"""
    return packed(x)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Over the last axis."""
    return functions.layer_norm(x, weight, bias, eps)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def silu(x: np.ndarray) -> np.ndarray:
    return functions.silu(x)


def glu(x: np.ndarray) -> np.ndarray:
    """The first half of the last axis, gated by the second."""
    half = x.shape[-1] // 2
    divisor = np.negative(x[..., half:])
    np.exp(divisor, out=divisor)
    divisor += 1
    return np.divide(x[..., :half], divisor, out=divisor)


def add_half(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y / 2"""
    return x + np.float32(0.5) * y


def lstm_cell(gates: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step of an LSTM layer: gates (R, 4P), in the order i, f, g, o, and cell (R, P) → output and cell (R, P)."""
    i, f, g, o = np.split(gates, 4, axis=-1)
    # sigmoid(x) as tanh, which neither overflows nor warns.
    half = np.float32(0.5)
    i, f, o = (half * np.tanh(half * gate) + half for gate in (i, f, o))
    cell = f * cell + i * np.tanh(g)
    return o * np.tanh(cell), cell


def rows_where(
    chosen: np.ndarray, compute: Callable[[Any], list[np.ndarray]], otherwise: list[np.ndarray]
) -> list[np.ndarray]:
    """Arrays (R, …) with the rows of compute(rows) where chosen (R,) is true, and else those of `otherwise`.

    Only the chosen rows are computed.
    """
    rows = np.flatnonzero(chosen)
    if len(rows) == len(chosen):
        return compute(slice(None))
    if not len(rows):
        return otherwise
    results = [old.copy() for old in otherwise]
    for result, new in zip(results, compute(rows), strict=True):
        result[rows] = new
    return results


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    values = x - x.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Scaled dot-product attention.

    q: (B, H, S, d); k, v: (B, H, T, d); mask: true where to attend, or a bias to add, broadcast to (B, H, S, T).
    Returns (B, H, S, d).
    """
    if mask is not None and mask.dtype == bool:
        mask = np.where(mask, np.float32(0), np.float32(-np.inf))
    return functions.attention(q, k, v, mask)


def attention_weights(q: np.ndarray, k: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """What `attention` multiplies the values with, the mean over heads: (…, S, T), rows summing to 1.

    q: (…, H, S, d); k: (…, H, T, d); mask: true where to attend, broadcast to (…, H, S, T).
    """
    scores = (q * np.float32(q.shape[-1] ** -0.5)) @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf))
    return np.exp(log_softmax(scores)).mean(axis=-3)


def frames(x: np.ndarray, length: int, hop: int) -> np.ndarray:
    """(B, N) → a view (B, (N - length) // hop + 1, length) of frames that begin `hop` apart."""
    return sliding_window_view(x, length, axis=1)[:, ::hop]


def relative_scores(q: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Scores of the last S of T steps, q (B, H, S, d), by distance: with positions (H, T + S - 1, d), from T-1 down.

    Returns a view (B, H, S, T), whose place (i, j) is of the distance from step T-S+i back to step j. Each row begins
    one place to the left of the one above: a row stride one short of the width.
    """
    by_distance = functions.dot_products(q, positions[None])
    B, H, S, width = by_distance.shape
    first = by_distance.reshape(-1)[S - 1 :]
    strides = [first.itemsize * n for n in (H * S * width, S * width, width - 1, 1)]
    return as_strided(first, (B, H, S, width - S + 1), strides, writeable=False)


def depthwise_1d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Depthwise convolution over time that keeps the length: x (B, T, D), weight (D, K, 1), K odd."""
    T, K = x.shape[1], weight.shape[1]
    half = K // 2
    total, scratch = np.full(x.shape, bias, np.float32), np.empty_like(x)
    # Each channel's neighbour beside it: strided taps would be read one by one.
    for i, tap in enumerate(weight[..., 0].T.copy()):
        # Places first … last of the result have an input at this tap; the others meet the padding.
        first, last = max(0, half - i), min(T, T + half - i)
        if first < last:
            heard = x[:, first + i - half : last + i - half]
            total[:, first:last] += np.multiply(heard, tap, out=scratch[:, first:last])
    return total


class FixedSlots:
    """Keys and values of a decoder's attention layers, for the rows of a running batch. A row keeps its length.

    Each row has arrays of its own, so nothing is padded, and rows that begin alike share them.
    Rows join at the end, and the last row takes the place of one that leaves.
    """

    def __init__(self, layers: int, n_heads: int, d_head: int, dtype: Any):
        # By row, then by layer: keys and values (2H, T, d).
        self._rows: list[list[np.ndarray]] = []

    def join(self, layers: list[np.ndarray], copies: int) -> None:
        """Add `copies` rows that begin with these keys and values (1, 2H, T, d), one array for each layer."""
        self._rows += [[kv[0].copy() for kv in layers]] * copies

    def attend(self, layer: int, q: np.ndarray) -> np.ndarray:
        """What the queries (R, H, 1, d) find in their rows: (R, H, 1, d)."""
        return _attended(q, [row[layer] for row in self._rows])

    def weights(self, layer: int, q: np.ndarray, rows: list[int]) -> list[np.ndarray]:
        """What the queries (R, H, 1, d) of these rows attend to in them: (1, T) each, the mean over heads."""
        H = q.shape[1]
        return [attention_weights(q[row], self._rows[row][layer][:H], None) for row in rows]

    def leave(self, row: int) -> None:
        """Row `row` leaves, and the last row takes its place."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def clear(self) -> None:
        """Give the memory back."""
        self._rows.clear()


class GrowingSlots(FixedSlots):
    """Rows that get longer by one position in each step. Each has room for its own length, in steps of TIME_STEP."""

    def __init__(self, layers: int, n_heads: int, d_head: int, dtype: Any):
        super().__init__(layers, n_heads, d_head, dtype)
        # How many positions of each row are in use.
        self._lengths: list[int] = []

    def join(self, layers: list[np.ndarray], copies: int) -> None:
        T = layers[0].shape[2]
        self._rows += [[_grown(kv[0], T) for kv in layers] for _ in range(copies)]
        self._lengths += [T] * copies

    def begin_step(self) -> None:
        """Make room for the next position of every row. `write` fills it, layer by layer."""
        self._lengths = [length + 1 for length in self._lengths]
        for row, length in zip(self._rows, self._lengths, strict=True):
            if length > row[0].shape[1]:
                row[:] = [_grown(kv, length) for kv in row]

    def write(self, layer: int, kv: np.ndarray) -> None:
        """Keys and values (R, 2H, 1, d) of the new position."""
        for i, (row, length) in enumerate(zip(self._rows, self._lengths, strict=True)):
            row[layer][:, length - 1] = kv[i, :, 0]

    def attend(self, layer: int, q: np.ndarray) -> np.ndarray:
        pairs = zip(self._rows, self._lengths, strict=True)
        return _attended(q, [row[layer][:, :length] for row, length in pairs])

    def leave(self, row: int) -> None:
        super().leave(row)
        self._lengths[row] = self._lengths[-1]
        self._lengths.pop()

    def clear(self) -> None:
        super().clear()
        self._lengths.clear()

    def copied(self, row: int, length: int) -> list[np.ndarray]:
        """The first `length` keys and values of a row (1, 2H, length, d), one array for each layer."""
        return [kv[None, :, :length].copy() for kv in self._rows[row]]

    def reorder(self, rows: list[int], sources: list[int]) -> None:
        """Row rows[i] becomes what row sources[i] was. All are of one length."""
        copies = [[kv.copy() for kv in self._rows[source]] for source in sources]
        for row, copied in zip(rows, copies, strict=True):
            self._rows[row] = copied


def _attended(q: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Attention of one query in each row: q (R, H, 1, d), keys and values (2H, T, d) of any T → (R, H, 1, d).

    Only the products go row by row: a step of many rows has no time for more calls.
    """
    H, d = q.shape[1], q.shape[3]
    lengths = [kv.shape[1] for kv in rows]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    places = [slice(*each) for each in zip(starts.tolist(), ends.tolist(), strict=True)]
    q = q * np.float32(d**-0.5)
    # Of all rows, one after the other.
    weights = np.empty((H, 1, sum(lengths)), np.float32)
    for queries, kv, place in zip(q, rows, places, strict=True):
        np.matmul(queries, kv[:H].swapaxes(-1, -2), out=weights[..., place])
    weights -= np.repeat(np.maximum.reduceat(weights, starts, axis=-1), lengths, axis=-1)
    np.exp(weights, out=weights)
    found = np.empty(q.shape, np.float32)
    for result, kv, place in zip(found, rows, places, strict=True):
        np.matmul(weights[..., place], kv[H:], out=result)
    # After the product, so d columns are divided instead of T.
    found /= np.add.reduceat(weights, starts, axis=-1).transpose(2, 0, 1)[..., None]
    return found


def _grown(x: np.ndarray, positions: int) -> np.ndarray:
    """(2H, T, d) → a copy with room for so many positions."""
    heads, T, d = x.shape
    grown = np.zeros((heads, -(-positions // TIME_STEP) * TIME_STEP, d), np.float32)
    grown[:, :T] = x
    return grown
