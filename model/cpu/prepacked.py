"""Linear layers in float32 on one thread of a CPU, with weights that are packed once (`model.cpu.products`).

numpy's BLAS packs them in every product of more than one row. For 2 to 16 rows, those of a decode step or a prompt,
this takes most of the time.
"""

import sys

import numpy as np

from model.arrays import Array
from model.cpu.onnx_graph import graph, node
from model.cpu.products import Product, thread_count
from model.layers import Layer

# A call takes 5 µs, as long as a product with a narrower weight. For one row, 256 × 256 is no faster than with BLAS.
_NARROWEST = 256


def is_faster(shape: tuple[int, ...]) -> bool:
    """Whether products with a weight of this shape (O, I) are faster when it is prepacked."""
    # On a Mac numpy's BLAS is Accelerate, which has the CPU's matrix unit. With several threads BLAS shares reading a
    # weight between them.
    return sys.platform == "linux" and thread_count() == 1 and min(shape) >= _NARROWEST


class PrepackedLinear(Layer):
    def __init__(self, weight: np.ndarray, bias: np.ndarray | None):
        """weight: (O, I); bias: (O,)"""
        super().__init__()
        self._product = _product(weight)
        self._bias = bias

    def __call__(self, x: Array) -> Array:
        """(…, I) → (…, O)"""
        return _with_bias(self._product, x, self._bias)


class PrepackedEmbedding(Layer):
    """An embedding whose vectors are also a head's weights: as they are, and prepacked."""

    def __init__(self, weight: np.ndarray):
        """weight: (V, M)"""
        super().__init__()
        self.weight = weight
        self._head = _product(weight)

    def scores(self, x: Array, bias: Array) -> Array:
        """(…, M) with bias (V,) → (…, V)"""
        return _with_bias(self._head, x, bias)


def _product(weight: np.ndarray) -> Product:
    """With a weight (O, I)."""
    weights = {"weight": weight}
    return Product(
        graph([node("Gemm", ["rows", "weight"], "product", transB=1)], {"rows": 2}, ("product", 2), weights), weights
    )


def _with_bias(product: Product, x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    found = product(x.reshape(-1, x.shape[-1]))
    if bias is not None:
        found += bias
    return found.reshape(*x.shape[:-1], found.shape[-1])
