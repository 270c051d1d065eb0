"""Weights laid out for a CPU's BLAS, as numpy's arrays."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from model.arrays import numpy as numpy_arrays

# float32 numbers that a CPU's cache fetches together. So many rows are turned into columns at a time: six times as
# fast as all at once.
_LINE = 16


def lay_out(module: nn.Module) -> None:
    """Make `module`, whose parameters are float32, compute with numpy's arrays from now on.

    Matrices are kept by inputs and in one block, for which numpy asks the system for large pages: so a single row is
    multiplied as fast as memory is read. Afterwards `module.parameters()`, which are MLX's, has none.
    """
    modules = module.modules()
    matrices: list[Any] = [each for each in modules if isinstance(each, nn.Linear | nn.Embedding)]
    room = np.empty(sum(each.weight.size for each in matrices), np.float32)
    for each in matrices:
        outputs, inputs = each.weight.shape
        columns, room = room[: outputs * inputs].reshape(inputs, outputs), room[outputs * inputs :]
        rows = np.asarray(each.weight)
        for i in range(0, outputs, _LINE):
            columns[:, i : i + _LINE] = rows[i : i + _LINE].T
        each.weight = columns.T
    for each in modules:
        each.xp = numpy_arrays
        for name, value in list(each.items()):
            if isinstance(value, mx.array):
                setattr(each, name, np.array(value))
