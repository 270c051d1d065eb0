"""How many primitives a GPU is asked to launch, 3 to 5 µs each: a number that must not creep up."""

from collections import Counter

import mlx.core as mx
import pytest

from server.cli.doctor.primitives import counted
from tests.primitives import of_encoder_layer, of_step, of_transducer_round

# Two embeddings, their sum and norm; the last norm, the head, its log-softmax (2), the best token and its score.
BESIDE_THE_LAYERS = 10


def test_a_decoder_layers_step_is_16_primitives_one_of_them_writing_keys_and_values():
    fewer, more = of_step(layers=2), of_step(layers=3)
    more.subtract(fewer)
    assert +more == {
        "layer_norm": 3,
        "AddMM": 6,  # products with their biases: qkv, q, two outputs, the two dense layers
        "scaled_dot_product_attention": 2,
        "SliceUpdate": 1,
        "Add": 3,
        "Maximum": 1,
    }


@pytest.mark.parametrize("layers", [4, 8])
def test_a_step_is_10_primitives_beside_its_layers(layers):
    assert of_step(layers).total() == BESIDE_THE_LAYERS + 16 * layers


@pytest.mark.parametrize("layers", [4, 8])
def test_telling_what_tokens_were_written_from_adds_6_primitives_to_a_step(layers):
    more = of_step(layers, attention=True)
    more.subtract(of_step(layers))
    assert +more == {"Multiply": 2, "Matmul": 1, "Select": 1, "Softmax": 1, "Sum": 1}


@pytest.mark.parametrize(("durations", "primitives"), [((0, 1, 2, 3, 4), 52), ((), 49)], ids=["tdt", "rnnt"])
@pytest.mark.parametrize("lstm_layers", [1, 2])
def test_a_transducers_round_is_52_primitives_and_5_for_each_lstm_layer(lstm_layers, durations, primitives):
    """An RNN-T has no durations to choose."""
    assert of_transducer_round(lstm_layers, durations).total() == primitives + 5 * lstm_layers


def test_a_lstm_layer_is_one_product_one_fused_cell_and_its_memory():
    fewer, more = of_transducer_round(1, ()), of_transducer_round(2, ())
    more.subtract(fewer)
    [fused] = [name for name in +more if name.startswith("Compiled")]
    assert +more == {"Concatenate": 1, "AddMM": 1, fused: 1, "Select": 2}


def test_an_encoder_layer_is_28_primitives_and_two_masks_where_audios_are_padded():
    alone, padded = of_encoder_layer(padded=False), of_encoder_layer(padded=True)
    assert alone.total() == 28
    padded.subtract(alone)
    assert +padded == {"Select": 2}


def test_a_fused_operation_counts_once_and_views_not_at_all():
    x, weight = mx.ones((2, 3, 4, 8)), mx.ones((8,))
    with counted() as count:
        attended = mx.fast.scaled_dot_product_attention(x, x, x, scale=0.5, mask=mx.ones((4, 4), mx.bool_))
        normed = mx.fast.layer_norm(attended, weight, weight, 1e-5)
        found = count(normed.reshape(2, 12, 8)[:, 1:].swapaxes(1, 2) + 1)
    assert found == Counter(scaled_dot_product_attention=1, layer_norm=1, Add=1, Full=3)
