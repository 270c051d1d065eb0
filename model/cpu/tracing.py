"""What layers compute of each row, traced into graphs for onnxruntime, which runs each in one call.

A method is traced by calling it with symbols, so what it computes is written once, for every array library.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from model.cpu.onnx_graph import graph, node
from model.cpu.row_graph import RowGraph
from model.layers import Layer


class UnpackedError(Exception):
    """A layer was met whose weight is not packed."""


class Traced:
    """A symbol for a value of the graph. It stands in for an array (…, n) while a method is traced."""

    def __init__(self, tracer: "Tracer", name: str):
        self._tracer = tracer
        self.name = name

    def __add__(self, other: "Traced") -> "Traced":
        return self._tracer.value("Add", self, other)


class Tracer:
    """Stands in for an array library while a method is traced.

    It has the functions that rowwise methods use; `arrays.mlx` says what they do.
    """

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._weights: dict[str, np.ndarray] = {}
        self._constants: dict[str, np.ndarray] = {}
        self._count = 0
        self._products: list[Product] = []

    def linear(self, x: Traced, weight: np.ndarray, bias: np.ndarray | None) -> Traced:
        raise UnpackedError

    def product(self, x: Traced, packed: "Product") -> Traced:
        self._products.append(packed)
        return packed.traced(self, x)

    def layer_norm(self, x: Traced, weight: np.ndarray, bias: np.ndarray, eps: float) -> Traced:
        return self.value("LayerNormalization", x, self.weight(weight), self.weight(bias), epsilon=eps)

    def relu(self, x: Traced) -> Traced:
        return self.value("Relu", x)

    def silu(self, x: Traced) -> Traced:
        return self.value("QuickGelu", x, extension=True, alpha=1.0)

    def glu(self, x: Traced) -> Traced:
        values, gates = self._added("Split", [x], 2, axis=1, num_outputs=2)
        return self.value("Mul", values, self.value("Sigmoid", gates))

    def add_half(self, x: Traced, y: Traced) -> Traced:
        return x + self.value("Mul", y, self.constant(np.array(0.5, np.float32)))

    def value(self, operator: str, *inputs: Traced, **attributes: Any) -> Traced:
        """What an operation returns. attributes: see `onnx_graph.node`."""
        (found,) = self._added(operator, inputs, 1, **attributes)
        return found

    def weight(self, array: np.ndarray) -> Traced:
        """An array of which the graph gets a copy."""
        return self._kept(self._weights, array)

    def constant(self, array: np.ndarray) -> Traced:
        """A small array, which is written into the graph."""
        return self._kept(self._constants, array)

    def inputs(self, count: int) -> list[Traced]:
        return [self._named() for _ in range(count)]

    def compiled(self, inputs: Sequence[Traced], outputs: Sequence[Traced]) -> RowGraph:
        """What was traced, from `inputs` to `outputs`. The products' weights are freed."""
        given, found = ({each.name: 2 for each in values} for values in (inputs, outputs))
        content = graph(self._nodes, given, found, self._weights, self._constants)
        compiled = RowGraph(content, self._weights, list(given), list(found))
        for product in self._products:
            product.let_go()
        return compiled

    def _added(self, operator: str, inputs: Sequence[Traced], outputs: int, **attributes: Any) -> list[Traced]:
        found = [self._named() for _ in range(outputs)]
        self._nodes.append(node(operator, [x.name for x in inputs], *(each.name for each in found), **attributes))
        return found

    def _kept(self, arrays: dict[str, np.ndarray], array: np.ndarray) -> Traced:
        named = self._named()
        arrays[named.name] = array
        return named

    def _named(self) -> Traced:
        self._count += 1
        return Traced(self, str(self._count))


class Product:
    """Rows (…, I) → (…, O), float32, with a weight and perhaps a bias: a part of a larger graph, or one of its own.

    A row's result does not depend on the others.
    """

    def __init__(self, trace: Callable[[Tracer, Traced], Traced]):
        """trace: adds it to a graph. It holds the weight."""
        self._trace: Callable[[Tracer, Traced], Traced] | None = trace
        self._graph: RowGraph | None = None

    def traced(self, tracer: Tracer, x: Traced) -> Traced:
        assert self._trace
        return self._trace(tracer, x)

    def let_go(self) -> None:
        """Free the weight, since a graph has it."""
        self._trace = None

    @property
    def is_packed(self) -> bool:
        """Whether a graph has the weight."""
        return self._trace is None

    def pack(self) -> None:
        """Make a graph of its own, unless one has the weight. Else the first call does."""
        if not self.is_packed:
            tracer = Tracer()
            (x,) = tracer.inputs(1)
            self._graph = tracer.compiled([x], [tracer.product(x, self)])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.pack()
        assert self._graph
        return self._graph(x)


def compile_rowwise(layer: Layer) -> None:
    """Put graphs in the place of the layer's methods that are marked `rowwise`, if the weights they use are packed."""
    for name, method in inspect.getmembers(type(layer), inspect.isfunction):
        if getattr(method, "is_rowwise", False):
            with suppress(UnpackedError):
                setattr(layer, name, _compiled(layer, method))


def _compiled(layer: Layer, method: Callable[..., Any]) -> RowGraph:
    """Raises UnpackedError."""
    tracer = Tracer()
    inputs = tracer.inputs(len(inspect.signature(method).parameters) - 1)
    parts = [(part, part.xp) for part in layer.modules()]
    for part, _ in parts:
        part.xp = tracer
    try:
        outputs = method(layer, *inputs)
    finally:
        for part, xp in parts:
            part.xp = xp
    return tracer.compiled(inputs, outputs if isinstance(outputs, tuple) else [outputs])
