"""float32 on a CPU: weights that onnxruntime packs once."""

import os
import sys
import threading
from collections import defaultdict

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from model.arrays import numpy as numpy_arrays
from model.cpu import prepacked, row_graph
from model.cpu.layout import lay_out
from model.cpu.products import ProductEmbedding, ProductLinear
from model.decoding import DecodingOptions
from model.layers import Embedding, Linear
from model.parakeet.config import PredictionConfig
from model.parakeet.prediction import PredictionNetwork
from tests.unit.conftest import drawn, tiny_canary

ROWS = (1, 2, 3, 4, 8, 16, 17, 125, 1250)


def linear(weight: np.ndarray, bias: np.ndarray | None = None) -> ProductLinear:
    """Prepacked, for numpy's arrays."""
    layer = ProductLinear(prepacked.product(weight, bias))
    layer.xp = numpy_arrays
    return layer


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("outputs", "inputs"), [(256, 256), (2048, 512), (1000, 257), (5, 3)])
def test_products_are_exact_to_float32_for_any_number_of_rows(outputs, inputs):
    weight, bias, x = drawn(outputs, inputs), drawn(outputs), drawn(max(ROWS), inputs)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    without, layer = linear(weight), linear(weight, bias)
    for rows in ROWS:
        np.testing.assert_allclose(without(x[:rows]), exact[:rows], atol=1e-6 * inputs)
        np.testing.assert_allclose(layer(x[:rows]), exact[:rows] + bias, atol=1e-6 * inputs)
    assert layer(x[:6].reshape(2, 3, inputs)).shape == (2, 3, outputs)


@pytest.mark.usefixtures("threads")
def test_a_rows_product_does_not_depend_on_the_other_rows():
    layer, x = linear(drawn(1024, 512)), drawn(max(ROWS), 512)
    together = layer(x)
    for rows in ROWS:
        np.testing.assert_allclose(layer(x[:rows]), together[:rows], atol=2e-5)
        np.testing.assert_allclose(layer(x[-rows:]), together[-rows:], atol=2e-5)


def test_a_product_reads_rows_of_any_stride_and_leaves_them_as_they_are():
    weight, x = drawn(256, 256), drawn(256, 8)
    before = x.copy()
    np.testing.assert_allclose(linear(weight)(x.T), x.T @ weight.T, atol=2e-4)
    assert np.array_equal(x, before)


def test_a_prepacked_weight_keeps_nothing_of_the_array_that_it_was_made_from():
    weight, x = drawn(256, 256), drawn(2, 256)
    expected = x @ weight.T
    layer = linear(weight)
    layer.product.pack()
    weight[:] = 0
    np.testing.assert_allclose(layer(x), expected, atol=2e-4)


def test_many_rows_are_shared_between_threads_and_few_are_not(monkeypatch):
    layer, by_thread = linear(drawn(256, 256)), defaultdict(list)
    layer.product.pack()
    session = layer.product._graph._session

    class Seen:
        def run(self, names, given):
            (rows,) = given.values()
            by_thread[threading.current_thread().name].append(len(rows))
            return session.run(names, given)

    monkeypatch.setattr(layer.product._graph, "_session", Seen())
    monkeypatch.setattr(row_graph, "thread_count", lambda: 2)
    row_graph._threads.cache_clear()
    for rows in (1, 16, 63, 64, 125):
        layer(drawn(rows, 256))
    row_graph._threads.cache_clear()
    assert list(by_thread.values()) == [[1, 16, 63, 32, 63], [32, 62]]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [Linear(256, 512), Linear(512, 256, bias=False)]
        self.narrow = Linear(256, 255)
        self.embedding = Embedding(300, 256)


def test_wide_layers_and_a_heads_embedding_are_prepacked_and_compute_the_same(one_thread, monkeypatch):
    monkeypatch.setattr(prepacked, "_NARROWEST", 256)
    module = Small()
    x, bias, tokens = mx.array(drawn(3, 256)), mx.array(drawn(300)), [7, 0, 299]
    before = module.narrow(module.layers[1](module.layers[0](x)))
    scores, vectors = module.embedding.scores(x, bias), module.embedding.weight[mx.array(tokens)]
    lay_out(module)
    assert [type(layer) for layer in module.layers] == [ProductLinear] * 2
    assert (type(module.narrow), type(module.embedding)) == (Linear, ProductEmbedding)
    assert tree_flatten(module.parameters()) == []
    rows = np.array(x)
    np.testing.assert_allclose(module.narrow(module.layers[1](module.layers[0](rows))), before, atol=1e-4)
    np.testing.assert_allclose(module.embedding.scores(rows, np.array(bias)), scores, atol=1e-4)
    assert np.array_equal(module.embedding.weight[tokens], vectors)


@pytest.mark.parametrize(("platform", "threads"), [("linux", 2), ("darwin", 1)])
def test_with_several_threads_and_on_a_mac_nothing_is_prepacked(monkeypatch, platform, threads):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(prepacked, "thread_count", lambda: threads)
    module = Small()
    lay_out(module)
    assert [type(layer) for layer in module.layers] == [Linear] * 2
    assert type(module.embedding) is Embedding


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell which cores a process may use")
@pytest.mark.parametrize(
    ("cores", "variables", "threads"),
    [
        (1, {}, 1),
        (4, {}, 4),
        (4, {"OMP_NUM_THREADS": "1"}, 1),
        (4, {"OPENBLAS_NUM_THREADS": "1"}, 1),
        (4, {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 2),
        (4, {"OPENBLAS_NUM_THREADS": "0", "OMP_NUM_THREADS": "1"}, 1),
        (4, {"OMP_NUM_THREADS": "many"}, 4),
        (1, {"OMP_NUM_THREADS": "8"}, 1),
    ],
)
def test_threads_are_counted_as_openblas_counts_them(monkeypatch, cores, variables, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert row_graph.thread_count() == threads


@pytest.mark.usefixtures("one_thread")
def test_a_canary_with_prepacked_weights_writes_what_it_writes_with_mlxs_arrays(sounds, prompts):
    on_cpu, as_on_gpu = tiny_canary(), tiny_canary()
    lay_out(on_cpu)
    assert not [layer for layer in on_cpu.modules() if isinstance(layer, Linear | Embedding)]
    encoded = [canary.encodings(sounds) for canary in (on_cpu, as_on_gpu)]
    for one, other in zip(*encoded, strict=True):
        np.testing.assert_allclose(one.vectors, np.array(other.vectors), atol=5e-5)
    options = DecodingOptions(max_new_tokens=24)
    texts = [canary.generate(e, prompts, options) for canary, e in zip((on_cpu, as_on_gpu), encoded, strict=True)]
    assert [g.tokens for g in texts[0]] == [g.tokens for g in texts[1]]
    assert any(len(g.tokens) > 5 for g in texts[0])


@pytest.mark.usefixtures("one_thread")
def test_a_parakeets_lstm_layers_are_prepacked_and_compute_the_same():
    network = PredictionNetwork(PredictionConfig(hidden=12, layers=2), 20)
    tokens, memory = [3, 20, 7], [drawn(3, 12) for _ in range(4)]
    output, after = network(mx.array(tokens), [mx.array(each) for each in memory])
    lay_out(network)
    assert [type(layer) for layer in network.layers] == [ProductLinear] * 2
    found, found_after = network(tokens, memory)
    np.testing.assert_allclose(found, output, atol=1e-5)
    for one, other in zip(found_after, after, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
