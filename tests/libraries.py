"""The array libraries that whole models are tried with, one after the other: MLX's alone on a GPU.

CANARY_ARRAYS names one of them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from model.arrays import VARIABLE, on_cpu

LIBRARIES = [os.environ[VARIABLE]] if os.environ.get(VARIABLE) else ["numpy", "mlx"] if on_cpu() else ["mlx"]


@contextmanager
def computing_with(library: str) -> Iterator[None]:
    """Models that are loaded meanwhile compute with it. Sixteen bits are computed with MLX's in any case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, library)
        yield
