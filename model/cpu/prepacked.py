"""Products in float32 on one thread of a CPU, with weights that are packed once.

numpy's BLAS packs them in every product of more than one row. For 2 to 16 rows, those of a decode step or a prompt,
this takes most of the time.
"""

import sys

import numpy as np

from model.arrays import Array
from model.cpu import allocator
from model.cpu.row_graph import thread_count
from model.cpu.tracing import Product, Traced, Tracer

# Alone, a call takes 5 µs, as long as a product with a narrower weight. For one row, 256 × 256 is no faster than BLAS.
_NARROWEST = 256


def is_faster(shape: tuple[int, ...]) -> bool:
    """Whether products with a weight of this shape (O, I) are faster when it is prepacked."""
    # On a Mac numpy's BLAS is Accelerate, which has the CPU's matrix unit. With several threads BLAS shares reading a
    # weight between them.
    return sys.platform == "linux" and thread_count() == 1 and min(shape) >= _NARROWEST


def product(weight: Array, bias: np.ndarray | None = None) -> Product:
    """With a weight (O, I), of either library, and a bias (O,)."""

    def trace(tracer: Tracer, x: Traced) -> Traced:
        # Of what it took to pack another one, malloc could use too little again.
        allocator.give_back_freed_memory()
        # Where it has not been read yet, MLX reads it here. Its memory, freed once it is packed, serves the next one.
        matrices = [np.asarray(weight)] + ([] if bias is None else [bias])
        return tracer.value("Gemm", x, *map(tracer.weight, matrices), transB=1)

    return Product(trace)
