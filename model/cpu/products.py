"""Linear layers whose weights are packed once, by onnxruntime. They are made by `prepacked` and `int8`.

onnxruntime would start threads for every weight. Threads for the whole process would make other sessions fail unless
they ask for them: the speech detector's, and those of programs that import `Canary`. So many rows are shared between
threads of our own, and few are computed in the calling thread: waking another takes as long as they do.
"""

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from model.arrays import Array
from model.cpu.session import session
from model.layers import Layer

# What each thread gets at least.
_ROWS = 32
# 40 s of audio. malloc does not keep the memory of larger results (see `allocator`): the system would zero it anew.
_MOST_ROWS = 500


def thread_count() -> int:
    """How many threads numpy's BLAS has, as OpenBLAS counts them."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    asked = [os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")]
    numbers = [int(value) for value in asked if value.isdigit() and int(value)]
    return min([cores, *numbers[:1]])


class Product:
    """Rows (R, I) → (R, O), float32. A row's result does not depend on the others."""

    def __init__(self, graph: bytes, weights: Mapping[str, np.ndarray]):
        """graph: from "rows" to "product", with these weights, which are copied."""
        self._session = session(graph, weights)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        shares = len(rows) // _ROWS
        if shares < 2 or (count := min(shares, thread_count())) < 2:
            return self._computed(rows)
        first, *others = np.array_split(rows, count)
        waiting = [_threads().submit(self._computed, share) for share in others]
        return np.concatenate([self._computed(first), *(each.result() for each in waiting)])

    def _computed(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) <= _MOST_ROWS:
            (found,) = self._session.run(["product"], {"rows": rows})
            return found
        return np.concatenate([self._computed(part) for part in np.array_split(rows, -(-len(rows) // _MOST_ROWS))])


class ProductLinear(Layer):
    def __init__(self, product: Product, bias: np.ndarray | None):
        """product: (R, I) → (R, O); bias: (O,)"""
        super().__init__()
        self._product = product
        self._bias = bias

    def __call__(self, x: Array) -> Array:
        """(…, I) → (…, O)"""
        xp = self.xp
        return xp.asarray(_with_bias(self._product, xp.to_numpy(x), self._bias), x.dtype)


class ProductEmbedding(Layer):
    """A vector for each token; a head scores tokens by its own product."""

    def __init__(self, weight: Array, head: Product):
        """weight: the vectors (V, M); head: (R, M) → (R, V)"""
        super().__init__()
        self.weight = weight
        self._head = head

    def scores(self, x: Array, bias: Array) -> Array:
        """(…, M) with bias (V,) → (…, V), float32"""
        xp = self.xp
        return xp.asarray(_with_bias(self._head, xp.to_numpy(x), xp.to_numpy(bias)))


def _with_bias(product: Product, x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    found = product(x.reshape(-1, x.shape[-1]))
    if bias is not None:
        found += bias
    return found.reshape(*x.shape[:-1], found.shape[-1])


@cache
def _threads() -> ThreadPoolExecutor:
    """Those beside the calling thread."""
    return ThreadPoolExecutor(thread_count() - 1, "product")
