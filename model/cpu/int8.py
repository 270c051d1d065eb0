"""Linear layers in 8 bits on an x86-64 CPU, by oneDNN's integer products through torch.

MLX has no fast product of packed weights on a CPU. CPUs with VNNI instructions multiply 8-bit integers four times as
fast as float32. A decode step is bound by reading the weights, and 8 bits are a quarter of float32.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from model import arrays
from model.arrays import Array
from model.layers import Layer

# Linux's names of the instructions that multiply 8-bit integers.
_VNNI = {"avx512_vnni", "avx_vnni"}
# oneDNN generates code for every number of rows. Beyond 16, round it up to a multiple of 16.
_ROWS = 16
# A row is scaled to integers from -127 to 127, stored with 128 added.
_LARGEST, _ZERO = 127, 128


def is_fast() -> bool:
    """Whether models are computed on a CPU that is faster in 8 bits."""
    return why_not() is None


def why_not() -> str | None:
    """Why models are not computed faster in 8 bits here, in words for the log. None if they are."""
    if not arrays.on_cpu() or _VNNI.isdisjoint(_instructions()):
        return "this CPU has no fast product of packed weights"
    if not importlib.util.find_spec("torch"):
        return "fast 8-bit products on this CPU need torch: pip install 'canary-server[int8]'"
    return None


@cache
def _instructions() -> set[str]:
    """CPU flags from /proc/cpuinfo; empty outside Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


class Int8Linear(Layer):
    """A linear layer that multiplies integers: weights have a scale for each output, inputs one for each row.

    Each row is scaled by itself, and 0 stays 0: so a row's result never depends on the other rows.
    """

    def __init__(self, packed: Any, scales: np.ndarray, bias: mx.array | None):
        """packed, scales: as `pack` returns them; bias: (O,)."""
        super().__init__()
        import torch

        self._packed = packed
        self._scales = torch.from_numpy(scales)
        self._zeros = torch.zeros(len(scales), dtype=torch.int64)
        self._bias = torch.zeros(len(scales)) if bias is None else torch.from_numpy(np.array(bias.astype(mx.float32)))

    def __call__(self, x: Array) -> Array:
        """(…, I) → (…, O)"""
        import torch

        rows = self.xp.to_numpy(x).reshape(-1, x.shape[-1])
        scales = _scales(rows)
        R, inputs = rows.shape
        whole = np.full((R if R <= _ROWS else -(-R // _ROWS) * _ROWS, inputs), _ZERO, np.uint8)
        # Adding one half makes the cast, which truncates, round.
        np.add(rows * (1 / scales), _ZERO + 0.5, out=whole[:R], casting="unsafe")
        product: Any = torch.ops.onednn.qlinear_pointwise(
            *(torch.from_numpy(whole), 1.0, _ZERO, self._packed, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        scaled = torch.addcmul(self._bias, product[:R], torch.from_numpy(scales)).numpy().reshape(*x.shape[:-1], -1)
        return self.xp.asarray(scaled, x.dtype)


def pack(weight: mx.array) -> tuple[Any, np.ndarray]:
    """A weight (O, I) → its 8-bit integers in the layout that oneDNN multiplies, and the scales of the outputs (O,)."""
    import torch

    matrix = np.array(weight.astype(mx.float32))
    scales = _scales(matrix)
    matrix /= scales
    integers = np.rint(matrix, out=matrix).astype(np.int8)
    return torch.ops.onednn.qlinear_prepack(torch.from_numpy(integers), None), scales[:, 0]


def _scales(rows: np.ndarray) -> np.ndarray:
    """(R, n) → (R, 1): what the integers of a row, within ±127, are multiplied with to give its values."""
    scales = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True)) / _LARGEST
    # Any scale will do for a row of zeros, and for one of denormal numbers, which count as zeros.
    scales[scales < np.finfo(np.float32).tiny] = 1
    return scales
