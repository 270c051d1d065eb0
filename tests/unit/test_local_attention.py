"""Local attention is full attention with a band's mask, and takes no memory for what the band leaves out."""

import math
import tracemalloc
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from model.cpu.layout import lay_out
from model.encoder import BLOCK, FastConformer, RelativeAttention
from tests.configs import encoder_config
from tests.unit.conftest import drawn, randomized

CONTEXTS = [(5, 5), (16, 3), (0, 7), (4, 0), (0, 0), (150, 20)]


@pytest.fixture(scope="module", params=["mlx", "numpy"])
def attention(request) -> RelativeAttention:
    attention = randomized(RelativeAttention(encoder_config()))
    if request.param == "numpy":
        lay_out(attention)
    return attention


def projected(attention: RelativeAttention, x: np.ndarray) -> Any:
    """Queries, keys and values of x."""
    return attention.linear_qkv(attention.xp.asarray(x))


def banded(T: int, left: int, right: int) -> np.ndarray:
    """(1, 1, T, T), true where a step sees another."""
    offset = np.arange(T) - np.arange(T)[:, None]
    return ((offset >= -left) & (offset <= right))[None, None]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("T", [1, 6, 40, BLOCK, BLOCK + 1, 2 * BLOCK + 30])
def test_it_equals_full_attention_with_a_mask_over_a_band(attention, T, context):
    x = projected(attention, drawn(2, T, 32))
    expected = attention(x, attention.xp.asarray(banded(T, *context)), None)
    np.testing.assert_allclose(np.array(attention(x, None, context)), np.array(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_steps_past_the_end_of_a_row_count_for_nothing_and_are_no_nan(attention, context):
    T, lengths = 2 * BLOCK + 30, [2 * BLOCK + 30, 50, 1]
    x = drawn(3, T, 32)
    xp = attention.xp
    real = np.arange(T) < np.array(lengths)[:, None]
    ours = np.array(attention(projected(attention, x), xp.asarray(real[:, None, None]), context))
    assert np.isfinite(ours).all()
    for row, sound, length in zip(ours, x, lengths, strict=True):
        alone = np.array(attention(projected(attention, sound[None, :length]), None, context))
        np.testing.assert_allclose(row[:length], alone[0], rtol=1e-4, atol=2e-5)


def test_a_context_as_long_as_the_audio_is_full_attention(attention):
    x = projected(attention, drawn(1, 60, 32))
    np.testing.assert_array_equal(np.array(attention(x, None, (59, 59))), np.array(attention(x, None, None)))


def test_memory_grows_with_the_length_and_not_with_its_square():
    """A quarter of an hour: scores of all steps among each other would take 2 GB."""
    attention = randomized(RelativeAttention(encoder_config()))
    lay_out(attention)
    T = 15 * 60 * 1000 // 80
    x = projected(attention, drawn(1, T, 32))
    tracemalloc.start()
    attended = attention(x, None, (64, 64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert attended.shape == (1, T, 32)
    assert 4 * 4 * T * T > 2e9
    assert peak < 40e6


def test_an_encoder_uses_the_context_of_its_configuration_unless_another_is_given():
    """The first and the last steps do not see each other, even through all layers."""
    config = encoder_config(self_attention_model="rel_pos_local_attn", att_context_size=(6, 6))
    encoder = randomized(FastConformer(config))
    mel, other = drawn(1, 2400, 80), drawn(1, 2400, 80, seed=2)
    other[:, 400:] = mel[:, 400:]
    first, second = (np.array(encoder(mx.array(each))) for each in (mel, other))
    assert np.abs(first[0, :40] - second[0, :40]).max() > 0.1
    np.testing.assert_allclose(first[0, 100:], second[0, 100:], atol=1e-5)
    wide = [np.array(encoder(mx.array(each), local=(300, 300))) for each in (mel, other)]
    assert math.isfinite(np.abs(wide[0]).max())
    assert np.abs(wide[0][0, 100:] - wide[1][0, 100:]).max() > 1e-3
