"""What layers compute of each row, recorded as graphs for onnxruntime, which runs each in one call.

A method is recorded by calling it, so what it computes is written once, for every array library.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from model.cpu.onnx_graph import graph, node
from model.cpu.row_graph import RowGraph
from model.layers import Layer


class Recorded:
    """A value of a graph, in the place of an array (…, n)."""

    def __init__(self, recorder: "Recorder", name: str):
        self._recorder = recorder
        self.name = name

    def __add__(self, other: "Recorded") -> "Recorded":
        return self._recorder.value("Add", self, other)


class Recorder:
    """In the place of an array library: those functions that rowwise methods use. See `arrays.mlx` for what they do.

    products: those whose weights are in the graph; unpacked: a layer was met whose weight is not packed.
    """

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._weights: dict[str, np.ndarray] = {}
        self._constants: dict[str, np.ndarray] = {}
        self._count = 0
        self.products: list[Product] = []
        self.unpacked = False

    def linear(self, x: Recorded, weight: np.ndarray, bias: np.ndarray | None) -> Recorded:
        self.unpacked = True
        return x

    def product(self, x: Recorded, product: "Product") -> Recorded:
        self.products.append(product)
        return product.recorded(self, x)

    def layer_norm(self, x: Recorded, weight: np.ndarray, bias: np.ndarray, eps: float) -> Recorded:
        return self.value("LayerNormalization", x, self.weight(weight), self.weight(bias), epsilon=eps)

    def relu(self, x: Recorded) -> Recorded:
        return self.value("Relu", x)

    def silu(self, x: Recorded) -> Recorded:
        return self.value("QuickGelu", x, extension=True, alpha=1.0)

    def glu(self, x: Recorded) -> Recorded:
        values, gates = self._added("Split", [x], 2, axis=1, num_outputs=2)
        return self.value("Mul", values, self.value("Sigmoid", gates))

    def add_half(self, x: Recorded, y: Recorded) -> Recorded:
        return x + self.value("Mul", y, self.constant(np.array(0.5, np.float32)))

    def value(self, operator: str, *inputs: Recorded, **attributes: Any) -> Recorded:
        """What an operation returns. attributes: see `onnx_graph.node`."""
        (found,) = self._added(operator, inputs, 1, **attributes)
        return found

    def weight(self, array: np.ndarray) -> Recorded:
        """An array of which the graph gets a copy."""
        return self._kept(self._weights, array)

    def constant(self, array: np.ndarray) -> Recorded:
        """A small array, which is written into the graph."""
        return self._kept(self._constants, array)

    def inputs(self, count: int) -> list[Recorded]:
        return [self._named() for _ in range(count)]

    def compiled(self, inputs: Sequence[Recorded], outputs: Sequence[Recorded]) -> RowGraph:
        """What was recorded, from `inputs` to `outputs`. The products' weights are freed."""
        given, found = ({each.name: 2 for each in values} for values in (inputs, outputs))
        content = graph(self._nodes, given, found, self._weights, self._constants)
        compiled = RowGraph(content, self._weights, list(given), list(found))
        for product in self.products:
            product.let_go()
        return compiled

    def _added(self, operator: str, inputs: Sequence[Recorded], outputs: int, **attributes: Any) -> list[Recorded]:
        found = [self._named() for _ in range(outputs)]
        self._nodes.append(node(operator, [x.name for x in inputs], *(each.name for each in found), **attributes))
        return found

    def _kept(self, arrays: dict[str, np.ndarray], array: np.ndarray) -> Recorded:
        named = self._named()
        arrays[named.name] = array
        return named

    def _named(self) -> Recorded:
        self._count += 1
        return Recorded(self, str(self._count))


class Product:
    """Rows (…, I) → (…, O), float32, with a weight and perhaps a bias: a part of a larger graph, or one of its own.

    A row's result does not depend on the others.
    """

    def __init__(self, record: Callable[[Recorder, Recorded], Recorded]):
        """record: adds it to what a recorder has. It holds the weight."""
        self._record: Callable[[Recorder, Recorded], Recorded] | None = record
        self._graph: RowGraph | None = None

    def recorded(self, recorder: Recorder, x: Recorded) -> Recorded:
        assert self._record
        return self._record(recorder, x)

    def let_go(self) -> None:
        """Free the weight, since a graph has it."""
        self._record = None

    def prepare(self) -> None:
        """Pack the weight, if no graph has it. Else the first call does."""
        if self._record:
            recorder = Recorder()
            (x,) = recorder.inputs(1)
            self._graph = recorder.compiled([x], [recorder.product(x, self)])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.prepare()
        assert self._graph
        return self._graph(x)


def compile_rowwise(layer: Layer) -> None:
    """Put graphs in the place of the layer's methods that are marked `rowwise`, if the weights they use are packed."""
    for name, method in inspect.getmembers(type(layer), inspect.isfunction):
        if not getattr(method, "is_rowwise", False):
            continue
        recorder = Recorder()
        inputs = recorder.inputs(len(inspect.signature(method).parameters) - 1)
        parts = [(part, part.xp) for part in layer.modules()]
        for part, _ in parts:
            part.xp = recorder
        outputs = method(layer, *inputs)
        for part, xp in parts:
            part.xp = xp
        if not recorder.unpacked:
            setattr(layer, name, recorder.compiled(inputs, outputs if isinstance(outputs, tuple) else [outputs]))
