"""Products in float32 on one thread of a CPU, with weights that are packed once.

numpy's BLAS packs them in every product of more than one row. For 2 to 16 rows, those of a decode step or a prompt,
this takes most of the time.
"""

import sys

import numpy as np

from model.cpu.onnx_graph import graph, node
from model.cpu.products import Product, thread_count

# A call takes 5 µs, as long as a product with a narrower weight. For one row, 256 × 256 is no faster than with BLAS.
_NARROWEST = 256


def is_faster(shape: tuple[int, ...]) -> bool:
    """Whether products with a weight of this shape (O, I) are faster when it is prepacked."""
    # On a Mac numpy's BLAS is Accelerate, which has the CPU's matrix unit. With several threads BLAS shares reading a
    # weight between them.
    return sys.platform == "linux" and thread_count() == 1 and min(shape) >= _NARROWEST


def product(weight: np.ndarray) -> Product:
    """Of rows with a weight (O, I)."""
    weights = {"weight": weight}
    return Product(
        graph([node("Gemm", ["rows", "weight"], "product", transB=1)], {"rows": 2}, ("product", 2), weights), weights
    )
