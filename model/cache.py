"""What the decoder remembers: self-attention keys and values by row, and cross-attention ones by utterance.

A running batch has R rows. Rows are joined at the end and leave by the last row taking their place, so the rows in use
are always the first R. Buffers grow in steps of a few sizes, so that shapes repeat.
"""

import mlx.core as mx

TIME_STEP = 64


def rounded_up(n: int, step: int) -> int:
    return -(-n // step) * step


class KVSlots:
    """Keys and values of one attention layer: (rows, heads, time, d_head), of which the first R rows are in use."""

    def __init__(self, n_heads: int, d_head: int, dtype: mx.Dtype):
        self._empty = mx.zeros((0, n_heads, 0, d_head), dtype)
        self.keys = self.values = self._empty

    def join(self, at: int, keys: mx.array, values: mx.array) -> None:
        """Put rows (n, H, T, d) at rows at … at+n-1, making room where there is none."""
        n, _, T, _ = keys.shape
        self.make_room(at + n, T)
        self.keys[at : at + n, :, :T] = keys
        self.values[at : at + n, :, :T] = values

    def make_room(self, rows: int, time: int) -> None:
        """Room for `rows` rows of `time` positions."""
        have_rows, H, have_time, d = self.keys.shape
        if have_rows >= rows and have_time >= time:
            return
        shape = (_doubled(have_rows, rows), H, max(have_time, rounded_up(time, TIME_STEP)), d)
        grown = mx.zeros(shape, self.keys.dtype), mx.zeros(shape, self.keys.dtype)
        for new, old in zip(grown, (self.keys, self.values), strict=True):
            new[:have_rows, :, :have_time] = old
        self.keys, self.values = grown

    def write(self, positions: mx.array, keys: mx.array, values: mx.array) -> None:
        """One new position in each of the first R rows: positions (R,), keys and values (R, H, 1, d)."""
        rows = mx.arange(positions.shape[0])
        self.keys[rows, :, positions] = keys.squeeze(2)
        self.values[rows, :, positions] = values.squeeze(2)

    def read(self, rows: int, time: int) -> tuple[mx.array, mx.array]:
        """Views (rows, H, time, d) of what is in use."""
        return self.keys[:rows, :, :time], self.values[:rows, :, :time]

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`, which has left."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def reorder(self, rows: mx.array, sources: mx.array) -> None:
        """Row rows[i] becomes what row sources[i] was: (n,) each."""
        self.keys[rows] = self.keys[sources]
        self.values[rows] = self.values[sources]

    def clear(self) -> None:
        """Give the memory back."""
        self.keys = self.values = self._empty


def _doubled(n: int, least: int) -> int:
    while n < least:
        n = max(1, 2 * n)
    return n
