"""Linear layers in 8 bits on an x86-64 CPU: oneDNN's products of whole numbers, through torch.

MLX has no fast product of packed numbers on a CPU. Processors with VNNI instructions multiply 8-bit numbers four times
as fast as float32, and a decode step, which is bound by reading weights, reads a quarter of them.
"""

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from model import arrays
from model.arrays import Array
from model.layers import Layer

# As Linux names the instructions that multiply 8-bit numbers.
_VNNI = {"avx512_vnni", "avx_vnni"}
# oneDNN generates code for every count of rows: beyond so many, counts are rounded up to a multiple of it.
_ROWS = 16
# What a row's numbers are rounded to: whole numbers up to 127 either way, stored with 128 added.
_LARGEST, _ZERO = 127, 128


def is_fast() -> bool:
    """Whether this machine computes faster in 8 bits: MLX runs on its CPU, which has the instructions for it."""
    return arrays.on_cpu() and not _VNNI.isdisjoint(_instructions())


@cache
def _instructions() -> set[str]:
    """What an x86-64 CPU knows besides the usual, by Linux's names; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


class Int8Linear(Layer):
    """A linear layer whose product is of whole numbers: weights with a scale for each output, inputs one for each row.

    A scale for each row, found as it comes, and no zero but 0: a row's result does not depend on its company.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None):
        """weight: (O, I); bias: (O,)."""
        super().__init__()
        import torch

        matrix = np.array(weight.astype(mx.float32))
        scales = _scales(matrix)
        whole = np.rint(matrix / scales).astype(np.int8)
        self._scales = torch.from_numpy(scales[:, 0])
        self._zeros = torch.zeros(len(scales), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(whole), None)
        self._bias = torch.zeros(len(scales)) if bias is None else torch.from_numpy(np.array(bias.astype(mx.float32)))

    def __call__(self, x: Array) -> Array:
        """(…, I) → (…, O)"""
        import torch

        rows = self.xp.to_numpy(x).reshape(-1, x.shape[-1])
        scales = _scales(rows)
        R, inputs = rows.shape
        whole = np.full((R if R <= _ROWS else -(-R // _ROWS) * _ROWS, inputs), _ZERO, np.uint8)
        # What is cut off after adding one half is rounded.
        np.add(rows * (1 / scales), _ZERO + 0.5, out=whole[:R], casting="unsafe")
        product: Any = torch.ops.onednn.qlinear_pointwise(
            *(torch.from_numpy(whole), 1.0, _ZERO, self._packed, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        scaled = torch.addcmul(self._bias, product[:R], torch.from_numpy(scales)).numpy().reshape(*x.shape[:-1], -1)
        return self.xp.asarray(scaled, x.dtype)


def _scales(rows: np.ndarray) -> np.ndarray:
    """(R, n) → what a row's whole numbers, within ±127, are to be multiplied with: (R, 1)."""
    scales = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True)) / _LARGEST
    # A row of zeros is one whatever its scale, and what is next to nothing counts as such.
    scales[scales < np.finfo(np.float32).tiny] = 1
    return scales
