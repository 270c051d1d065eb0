"""Products with a weight that is packed once, by onnxruntime.

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

from model.cpu.session import session

# What each thread gets at least.
_ROWS = 32


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
        (found,) = self._session.run(["product"], {"rows": rows})
        return found


@cache
def _threads() -> ThreadPoolExecutor:
    """Those beside the calling thread."""
    return ThreadPoolExecutor(thread_count() - 1, "product")
