"""Linear layers in float32 on one thread of a CPU, by onnxruntime, which packs a weight when it is loaded.

numpy's BLAS packs it in every product of more than one row. For 2 to 16 rows, those of a decode step or a prompt, this
takes most of the time.
"""

import os
import sys
from typing import Any

import numpy as np

from model.arrays import Array
from model.layers import Layer

# A call takes 5 µs, as long as a product with a narrower weight. For one row, 256 × 256 is no faster than with BLAS.
_NARROWEST = 256

# Numbers of fields and values in onnx.proto, the definition of ONNX's files.
_IR_VERSION, _OPSET = 8, 17
_FLOAT, _EXTERNAL, _INT = 1, 1, 2


def is_faster(shape: tuple[int, ...]) -> bool:
    """Whether products with a weight of this shape (O, I) are faster when it is prepacked."""
    return min(shape) >= _NARROWEST and _one_thread()


def _one_thread() -> bool:
    """Whether numpy's BLAS has one thread. With more it keeps the products: each session would start its own."""
    # On a Mac numpy's BLAS is Accelerate, which has the CPU's matrix unit.
    if sys.platform != "linux":
        return False
    cores = len(os.sched_getaffinity(0))
    asked = [os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")]
    numbers = [int(value) for value in asked if value.isdigit() and int(value)]
    return min([cores, *numbers[:1]]) == 1


class PrepackedWeight:
    """A weight (O, I) as onnxruntime multiplies it: an onnxruntime session of one product."""

    def __init__(self, weight: np.ndarray):
        """weight: it is copied."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # There is one node, and malloc keeps freed memory already.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        # It shares the array's memory, which the session copies.
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weight))
        options.add_external_initializers(["weight"], [value])
        graph = _graph(*weight.shape)
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def product(self, x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """(…, I) with bias (O,) → (…, O)"""
        (found,) = self._session.run(["product"], {"rows": x.reshape(-1, x.shape[-1])})
        if bias is not None:
            found += bias
        return found.reshape(*x.shape[:-1], found.shape[-1])


class PrepackedLinear(Layer):
    def __init__(self, weight: np.ndarray, bias: np.ndarray | None):
        """weight: (O, I); bias: (O,)"""
        super().__init__()
        self._weight = PrepackedWeight(weight)
        self._bias = bias

    def __call__(self, x: Array) -> Array:
        """(…, I) → (…, O)"""
        return self._weight.product(x, self._bias)


class PrepackedEmbedding(Layer):
    """An embedding whose vectors are also a head's weights: as they are, and prepacked."""

    def __init__(self, weight: np.ndarray):
        """weight: (V, M)"""
        super().__init__()
        self.weight = weight
        self._head = PrepackedWeight(weight)

    def scores(self, x: Array, bias: Array) -> Array:
        """(…, M) with bias (V,) → (…, V)"""
        return self._head.product(x, bias)


def _graph(outputs: int, inputs: int) -> bytes:
    """An ONNX model: rows (R, I) and the weight (O, I), which is given beside it → product (R, O)."""
    elsewhere = _field(1, "location") + _field(2, "memory")
    weight = _field(1, outputs) + _field(1, inputs) + _field(2, _FLOAT) + _field(8, "weight")
    weight += _field(13, elsewhere) + _field(14, _EXTERNAL)
    transposed = _field(1, "transB") + _field(3, 1) + _field(20, _INT)
    product = _field(1, "rows") + _field(1, "weight") + _field(2, "product") + _field(4, "Gemm") + _field(5, transposed)
    graph = _field(1, product) + _field(2, "linear") + _field(5, weight)
    graph += _field(11, _matrix("rows", inputs)) + _field(12, _matrix("product", outputs))
    return _field(1, _IR_VERSION) + _field(8, _field(1, "") + _field(2, _OPSET)) + _field(7, graph)


def _matrix(name: str, columns: int) -> bytes:
    """An input or output: any number of rows, so many columns."""
    shape = _field(1, _field(2, "R")) + _field(1, _field(1, columns))
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a message in protobuf's encoding."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value >> 7)
