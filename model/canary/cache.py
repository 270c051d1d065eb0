"""What the decoder remembers of each row: self-attention keys and values, and cross-attention ones.

A running batch has R rows. Rows are joined at the end and leave by the last row taking their place, so the rows in use
are always the first R. Buffers grow in steps of a few sizes, so that shapes repeat.
"""

import mlx.core as mx
import numpy as np

TIME_STEP = 64


def rounded_up(n: int, step: int) -> int:
    return -(-n // step) * step


class KVSlots:
    """Keys and values of one attention layer: (rows, heads, time, d_head), of which the first R rows are in use."""

    def __init__(self, n_heads: int, d_head: int, dtype: mx.Dtype):
        self._empty = mx.zeros((0, n_heads, 0, d_head), dtype)
        self.keys = self.values = self._empty

    def join(self, at: int, keys: mx.array, values: mx.array, copies: int) -> None:
        """Put a row (1, H, T, d) at rows at … at+copies-1, making room where there is none."""
        T = keys.shape[2]
        self.make_room(at + copies, T)
        self.keys[at : at + copies, :, :T] = keys
        self.values[at : at + copies, :, :T] = values

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

    def write(self, positions: list[int], time: int, keys: mx.array, values: mx.array) -> None:
        """One new position in each of the first R rows: all < time, keys and values (R, H, 1, d)."""
        self.make_room(len(positions), time)
        rows, columns = mx.arange(len(positions)), mx.array(positions)
        self.keys[rows, :, columns] = keys.squeeze(2)
        self.values[rows, :, columns] = values.squeeze(2)

    def read(self, rows: int, time: int) -> tuple[mx.array, mx.array]:
        """Views (rows, H, time, d) of what is in use."""
        return self.keys[:rows, :, :time], self.values[:rows, :, :time]

    def leave(self, row: int, last: int) -> None:
        """Row `row` leaves, and row `last` takes its place."""
        if row != last:
            self.keys[row] = self.keys[last]
            self.values[row] = self.values[last]

    def reorder(self, rows: list[int], sources: list[int]) -> None:
        """Row rows[i] becomes what row sources[i] was."""
        to, of = mx.array(rows), mx.array(sources)
        self.keys[to] = self.keys[of]
        self.values[to] = self.values[of]

    def clear(self) -> None:
        """Give the memory back."""
        self.keys = self.values = self._empty


class KVRows:
    """The same, each row as long as it is: nothing is padded, and what rows have in common is kept once.

    For a CPU, which goes through rows one by one and gains nothing from their lying in one buffer.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []

    def join(self, at: int, keys: np.ndarray, values: np.ndarray, copies: int) -> None:
        """Put a row (1, H, T, d) at rows at … at+copies-1, which are the last."""
        assert at == len(self._rows)
        self._rows += [(keys[0].copy(), values[0].copy())] * copies

    def read(self, rows: int, time: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(H, T, d) of each row, T its own."""
        return [k for k, _ in self._rows], [v for _, v in self._rows]

    def leave(self, row: int, last: int) -> None:
        """Row `row` leaves, and row `last`, the last, takes its place."""
        self._rows[row] = self._rows[last]
        self._rows.pop()

    def clear(self) -> None:
        self._rows.clear()


class GrowingRows(KVRows):
    """Rows that get longer by a position at a time: each has room for its own length, in steps of a few sizes."""

    def __init__(self) -> None:
        super().__init__()
        self._used: list[int] = []

    def join(self, at: int, keys: np.ndarray, values: np.ndarray, copies: int) -> None:
        T = keys.shape[2]
        self._rows += [(_with_room(keys[0], T), _with_room(values[0], T)) for _ in range(copies)]

    def write(self, positions: list[int], time: int, keys: np.ndarray, values: np.ndarray) -> None:
        """One new position in each row: keys and values (R, H, 1, d)."""
        for i, position in enumerate(positions):
            held_keys, held_values = self._rows[i]
            if position == held_keys.shape[1]:
                held_keys, held_values = self._rows[i] = (
                    _with_room(held_keys, position + 1),
                    _with_room(held_values, position + 1),
                )
            held_keys[:, position] = keys[i, :, 0]
            held_values[:, position] = values[i, :, 0]
        self._used = [position + 1 for position in positions]

    def read(self, rows: int, time: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        pairs = [(k[:, :n], v[:, :n]) for (k, v), n in zip(self._rows, self._used, strict=True)]
        return [k for k, _ in pairs], [v for _, v in pairs]

    def reorder(self, rows: list[int], sources: list[int]) -> None:
        """Row rows[i] becomes what row sources[i] was."""
        moved = [(k.copy(), v.copy()) for k, v in (self._rows[s] for s in sources)]
        for row, pair in zip(rows, moved, strict=True):
            self._rows[row] = pair


def _with_room(x: np.ndarray, positions: int) -> np.ndarray:
    """(H, T, d) → a copy that has room for so many positions."""
    H, T, d = x.shape
    grown = np.zeros((H, rounded_up(positions, TIME_STEP), d), np.float32)
    grown[:, :T] = x
    return grown


def _doubled(n: int, least: int) -> int:
    while n < least:
        n = max(1, 2 * n)
    return n
