"""What layers compute of each row, as one graph: traced from the same methods that MLX's arrays go through."""

import inspect

import mlx.core as mx
import numpy as np
import pytest

from model.arrays import mlx
from model.canary.decoder import DecoderLayer
from model.cpu import prepacked
from model.cpu.layout import lay_out
from model.cpu.products import ProductLinear
from model.cpu.row_graph import RowGraph
from model.cpu.tracing import Tracer
from model.encoder import ConformerLayer
from model.layers import Layer, LayerNorm, Linear, rowwise
from tests.configs import canary_config, encoder_config
from tests.packing import computing_in_8_bits
from tests.unit.conftest import drawn, randomized

METHODS = {
    ConformerLayer: ("to_attention", "to_convolution", "to_next_layer"),
    DecoderLayer: ("to_self_attention", "to_cross_attention", "to_next_layer"),
}
LAYERS = [
    pytest.param(lambda: ConformerLayer(encoder_config()), id="Conformer"),
    pytest.param(lambda: ConformerLayer(encoder_config(use_bias=False)), id="Conformer without biases"),
    pytest.param(lambda: DecoderLayer(canary_config().decoder), id="decoder"),
]


def width(layer: Layer) -> int:
    norm = layer.norm_out if isinstance(layer, ConformerLayer) else layer.layer_norm_1
    return norm.weight.shape[0]


def computed(layer: Layer, rows: np.ndarray) -> list[np.ndarray]:
    """All results of the three methods; each gets what the one before it returned, and `rows` for attention's."""
    names = METHODS[type(layer)]
    x = layer.xp.asarray(rows)
    first = getattr(layer, names[0])(x)
    x = first[0] if isinstance(first, tuple) else x
    x, second = getattr(layer, names[1])(x, layer.xp.asarray(rows[..., ::-1].copy()))
    last = getattr(layer, names[2])(x, layer.xp.asarray(0.5 * rows))
    return [np.array(each) for each in (*(first if isinstance(first, tuple) else [first]), x, second, last)]


@pytest.mark.usefixtures("one_thread", "threads")
@pytest.mark.parametrize("made", LAYERS)
def test_the_parts_of_a_layer_are_one_graph_each_and_compute_what_mlx_does(made):
    on_mlx, on_cpu = randomized(made()), randomized(made())
    lay_out(on_cpu)
    assert all(isinstance(getattr(on_cpu, name), RowGraph) for name in METHODS[type(on_cpu)])
    for places in ((1, 1), (3, 5), (1, 130), (2, 501)):
        rows = drawn(*places, width(on_mlx))
        for one, other in zip(computed(on_cpu, rows), computed(on_mlx, rows), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("made", LAYERS)
def test_in_8_bits_a_graph_computes_what_its_products_do_one_by_one(made):
    in_graphs, one_by_one = (computing_in_8_bits(randomized(made())) for _ in range(2))
    lay_out(in_graphs)
    assert isinstance(in_graphs.to_next_layer, RowGraph)
    rows = drawn(7, width(one_by_one))
    for one, other in zip(computed(in_graphs, rows), computed(one_by_one, rows), strict=True):
        # A last digit of a layer norm may round a number to the next of 255.
        assert np.abs(one - other).mean() < 0.002 * np.abs(other).mean()


class Mixed(Layer):
    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.narrow = LayerNorm(256), Linear(256, 300), Linear(300, 20)

    @rowwise
    def widened(self, x):
        return self.wide(self.norm(x))

    @rowwise
    def both(self, x):
        return self.narrow(self.widened(x))


@pytest.mark.usefixtures("one_thread")
def test_a_method_whose_layers_are_not_all_packed_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(prepacked, "_NARROWEST", 256)
    layer = randomized(Mixed())
    rows = drawn(4, 256)
    expected = np.array(layer.both(mx.array(rows)))
    lay_out(layer)
    assert isinstance(layer.widened, RowGraph)
    assert not isinstance(layer.both, RowGraph)
    assert isinstance(layer.wide, ProductLinear)
    np.testing.assert_allclose(layer.both(rows), expected, atol=1e-3)


@pytest.mark.usefixtures("one_thread")
def test_a_weight_is_held_by_the_graph_alone():
    layer = randomized(DecoderLayer(canary_config().decoder))
    lay_out(layer)
    products = [part.product for part in layer.modules() if isinstance(part, ProductLinear)]
    assert len(products) == 6
    assert all(product.is_packed and product._graph is None for product in products)


def test_symbols_are_given_to_the_functions_that_arrays_are_given_to():
    names = [name for name in vars(Tracer) if name in mlx.__all__]
    assert names == ["linear", "product", "layer_norm", "relu", "silu", "glu", "add_half"]
    for name in names:
        ours, theirs = (list(inspect.signature(getattr(each, name)).parameters) for each in (Tracer(), mlx))
        assert ours == theirs
