"""KV cache on MLX's arrays: rows find what they find in numpy's slots, in one buffer that is never copied."""

import mlx.core as mx
import numpy as np
import pytest

from model.arrays import mlx as mlx_arrays
from model.arrays import numpy as numpy_arrays
from tests.filled import filled_batch

LAYERS, HEADS, WIDTH = 2, 3, 8


class Twins:
    """Slots of both libraries, that are asked the same."""

    def __init__(self, kind: str):
        self._random = np.random.default_rng(0)
        shape = LAYERS, HEADS, WIDTH
        self.mlx = getattr(mlx_arrays, kind)(*shape, mx.float32)
        self.numpy = getattr(numpy_arrays, kind)(*shape, np.float32)
        self.rows = 0

    def drawn(self, *shape: int) -> np.ndarray:
        return self._random.standard_normal(shape).astype(np.float32)

    def call(self, name: str, *args) -> None:
        for slots, array in ((self.mlx, mx.array), (self.numpy, np.array)):
            getattr(slots, name)(*(_converted(each, array) for each in args))

    def join(self, length: int, copies: int = 1) -> None:
        self.call("join", [self.drawn(1, 2 * HEADS, length, WIDTH) for _ in range(LAYERS)], copies)
        self.rows += copies

    def leave(self, row: int) -> None:
        self.call("leave", row)
        self.rows -= 1

    def step(self) -> None:
        self.call("begin_step")
        for layer in range(LAYERS):
            self.call("write", layer, self.drawn(self.rows, 2 * HEADS, 1, WIDTH))

    def difference(self) -> float:
        differences = []
        for layer in range(LAYERS):
            q = self.drawn(self.rows, HEADS, 1, WIDTH)
            found, expected = np.array(self.mlx.attend(layer, mx.array(q))), self.numpy.attend(layer, q)
            assert found.shape == expected.shape == q.shape
            differences.append(np.abs(found - expected).max())
        return max(differences)

    def capacity(self) -> tuple[int, int]:
        """Rows and positions that MLX's buffers have room for."""
        (shape,) = {buffer.shape for buffer in self.mlx._buffers}
        return shape[1], shape[3]


def _converted(value, array):
    if isinstance(value, list) and isinstance(value[0], np.ndarray):
        return [array(each) for each in value]
    return array(value) if isinstance(value, np.ndarray) else value


def test_rows_that_join_grow_and_leave_find_what_they_find_in_numpys_slots():
    twins = Twins("GrowingSlots")
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(400):
        if (twins.rows < 6 and random.random() < 0.05) or not twins.rows:
            twins.join(int(random.choice([1, 9, 10, 30, 150])))
        if twins.rows > 1 and random.random() < 0.04:
            twins.leave(int(random.integers(twins.rows)))
        twins.step()
        assert twins.difference() < 1e-5
        seen.add(twins.capacity())
    # Buffers grew and shrank on the way.
    assert len(seen) > 4
    twins.call("clear")
    assert twins.capacity() == (0, 0)
    twins.rows = 0
    twins.join(5)
    twins.step()
    assert twins.difference() < 1e-5


def test_rows_of_fixed_length_find_what_they_find_in_numpys_slots():
    twins = Twins("FixedSlots")
    for length, copies in ((20, 1), (7, 3), (130, 1), (7, 1)):
        twins.join(length, copies)
        assert twins.difference() < 1e-5
    for row in (4, 0, 3, 1):
        twins.leave(row)
        assert twins.difference() < 1e-5


def test_rows_of_a_beam_become_what_their_parents_were():
    twins = Twins("GrowingSlots")
    twins.join(30)
    twins.join(9, 3)
    for rows, sources in (([1, 2, 3], [2, 2, 1]), ([1, 2, 3], [3, 1, 1])):
        twins.step()
        twins.call("reorder", rows, sources)
        twins.step()
        assert twins.difference() < 1e-5


def test_rows_attend_as_they_do_in_numpys_slots_and_their_weights_sum_to_one():
    twins = Twins("FixedSlots")
    for length, copies in ((20, 1), (7, 2), (130, 1)):
        twins.join(length, copies)
        q = twins.drawn(twins.rows, HEADS, 1, WIDTH)
        rows = [*range(0, twins.rows, 2), twins.rows - 1]
        found, expected = twins.mlx.weights(1, mx.array(q), rows), twins.numpy.weights(1, q, rows)
        assert [each.shape for each in found] == [each.shape for each in expected]
        for mine, its in zip(found, expected, strict=True):
            assert np.abs(np.array(mine) - its).max() < 1e-6
            assert float(mine.sum()) == pytest.approx(1, abs=1e-5)
    assert [each.shape[1] for each in expected] == [20, 7, 130]


def test_the_first_positions_of_a_row_are_copied_as_they_joined_and_were_written():
    twins = Twins("GrowingSlots")
    joined = [twins.drawn(1, 2 * HEADS, 30, WIDTH) for _ in range(LAYERS)]
    twins.join(9)
    twins.call("join", joined, 1)
    twins.rows += 1
    for _ in range(3):
        twins.step()
    found, expected = (slots.copied(1, 32) for slots in (twins.mlx, twins.numpy))
    for mine, its, first in zip(found, expected, joined, strict=True):
        assert mine.shape == its.shape == (1, 2 * HEADS, 32, WIDTH)
        assert np.array_equal(np.array(mine), its)
        assert np.array_equal(its[:, :, :30], first)
    before = expected[0].copy()
    twins.step()
    assert np.array_equal(expected[0], before)


@pytest.mark.parametrize("kind", ["FixedSlots", "GrowingSlots"])
def test_buffers_shrink_when_the_long_row_leaves_and_when_most_rows_do(kind):
    twins = Twins(kind)
    for length in (20, 1000, 20, 20, 20, 20, 20, 20):
        twins.join(length)
    rows, time = twins.capacity()
    assert rows == 8
    assert time >= 1000
    twins.leave(1)
    assert twins.capacity() == (8, 64 + twins.mlx._free_columns)
    for _ in range(5):
        twins.leave(0)
    assert twins.capacity()[0] == 2
    assert twins.difference() < 1e-5


# On a GPU all of a step is under way when the next one is begun, on a CPU about as much as one layer.
def peak_beside_the_cache(look_ahead: bool, rows: int = 4, layers: int = 1, steps: int = 6) -> tuple[int, int]:
    """Bytes of a KV cache, and how many more steps take at their peak."""
    mx.synchronize()
    batch = filled_batch(layers, 8, 128, rows, 1024, look_ahead)
    batch.step()
    mx.synchronize()
    cache = sum(buffer.nbytes for buffer in batch._text._buffers)
    kept = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(steps):
        batch.step()
    return cache, mx.get_peak_memory() - kept


@pytest.fixture
def _nothing_cached():
    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)


@pytest.mark.usefixtures("_nothing_cached")
@pytest.mark.parametrize("look_ahead", [False, True])
def test_a_step_takes_hardly_more_memory_than_the_cache_with_look_ahead_or_without(look_ahead):
    cache, beside = peak_beside_the_cache(look_ahead)
    assert cache > 32 << 20
    assert beside < cache / 20


@pytest.mark.usefixtures("_nothing_cached")
def test_buffers_are_made_anew_one_layer_at_a_time():
    # 64 columns were free.
    cache, beside = peak_beside_the_cache(look_ahead=True, rows=1, layers=8, steps=70)
    assert cache / 8 < beside < cache / 4


@pytest.mark.usefixtures("_nothing_cached")
def test_a_row_that_leaves_copies_no_more_than_the_row_that_takes_its_place():
    batch = filled_batch(4, 8, 128, 8, 512, look_ahead=True)
    batch.step()
    mx.synchronize()
    cache, kept = sum(buffer.nbytes for buffer in batch._text._buffers), mx.get_active_memory()
    mx.reset_peak_memory()
    batch.drop(2)
    batch.step()
    mx.synchronize()
    assert mx.get_peak_memory() - kept < cache / 4


def test_a_gpus_fused_attention_takes_a_steps_keys_values_and_mask_without_copying_them(monkeypatch):
    # Read in MLX's Metal back end: batch and heads must lie as one dimension.
    taken = []
    original = mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(
        mx.fast,
        "scaled_dot_product_attention",
        lambda q, k, v, **options: taken.append((k, v, options["mask"])) or original(q, k, v, **options),
    )
    twins = Twins("GrowingSlots")
    for length in (70, 9, 20):
        twins.join(length)
    twins.step()
    twins.difference()
    assert len(taken) == LAYERS
    for arrays in taken:
        for array in arrays:
            assert array.shape[:2] == (3, HEADS)
            strides = memoryview(array).strides
            assert strides is not None
            assert strides[0] == strides[1] * HEADS
            assert strides[3] == memoryview(array).itemsize
