"""Graphs that treat each row by itself, run by onnxruntime.

onnxruntime would start threads for every graph. Threads for the whole process would make other sessions fail unless
they ask for them: the speech detector's, and those of programs that import `Canary`. So many rows are shared between
threads of our own, and few are computed in the calling thread: each thread would read all of the weights.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from model.cpu.session import session

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


class RowGraph:
    """Arrays (…, I), float32, of the same rows → arrays (…, O): one, or a tuple.

    A row's results do not depend on the other rows.
    """

    def __init__(self, graph: bytes, weights: Mapping[str, np.ndarray], inputs: Sequence[str], outputs: Sequence[str]):
        """graph: with these weights, which are copied, and these names."""
        self._session = session(graph, weights)
        self._inputs, self._outputs = inputs, list(outputs)

    def __call__(self, *given: np.ndarray) -> Any:
        places = given[0].shape[:-1]
        found = self._shared([each.reshape(-1, each.shape[-1]) for each in given])
        arrays = [rows.reshape(*places, rows.shape[-1]) for rows in found]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def _shared(self, given: list[np.ndarray]) -> list[np.ndarray]:
        """By several threads, if there are many rows."""
        shares = len(given[0]) // _ROWS
        if shares < 2 or (count := min(shares, thread_count())) < 2:
            return self._computed(given)
        first, *others = _parts(given, count)
        waiting = [_threads().submit(self._computed, part) for part in others]
        return _joined([self._computed(first), *(each.result() for each in waiting)])

    def _computed(self, given: list[np.ndarray]) -> list[np.ndarray]:
        rows = len(given[0])
        if rows <= _MOST_ROWS:
            return self._session.run(self._outputs, dict(zip(self._inputs, given, strict=True)))
        return _joined([self._computed(part) for part in _parts(given, -(-rows // _MOST_ROWS))])


def _parts(arrays: list[np.ndarray], count: int) -> list[list[np.ndarray]]:
    return [list(part) for part in zip(*(np.array_split(each, count) for each in arrays), strict=True)]


def _joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


@cache
def _threads() -> ThreadPoolExecutor:
    """Those beside the calling thread."""
    return ThreadPoolExecutor(thread_count() - 1, "rows")
