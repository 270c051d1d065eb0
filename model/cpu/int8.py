"""Products in 8 bits on an x86-64 CPU, with weights that are packed once.

MLX has no fast product of packed weights on a CPU. CPUs with VNNI instructions multiply 8-bit integers four times as
fast as float32. A decode step is bound by reading the weights, and 8 bits are a quarter of float32.
"""

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from model import arrays
from model.cpu.tracing import Product, Traced, Tracer

# Linux's names of the instructions that multiply 8-bit integers. Without them sums of two products could overflow.
_VNNI = {"avx512_vnni", "avx_vnni"}
# For the log, of a CPU without them.
SLOW = "this CPU has no fast product of packed weights"
# A row is scaled to integers from -127 to 127, stored with 128 added.
_LARGEST, _ZERO = 127, 128
# A weight's integers (I, O), int8, and the scales of its outputs (O,), float32.
Quantized = tuple[np.ndarray, np.ndarray]

# The scale of a row of zeros or of denormal numbers, which count as zeros.
_LEAST = np.finfo(np.float32).tiny


def is_fast() -> bool:
    """Whether models are computed on a CPU that is faster in 8 bits."""
    return arrays.on_cpu() and not _VNNI.isdisjoint(_instructions())


@cache
def _instructions() -> set[str]:
    """CPU flags from /proc/cpuinfo; empty outside Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def product(integers: np.ndarray, scales: np.ndarray, bias: np.ndarray | None = None) -> Product:
    """With a weight that `quantized` returned, and a bias (O,). Rows have scales, too; weights one for each output.

    Each row is scaled by itself, and 0 stays 0: so a row's result never depends on the other rows.
    """

    def trace(tracer: Tracer, x: Traced) -> Traced:
        value, constant = tracer.value, tracer.constant
        columns, zero = constant(np.array([1])), constant(np.array(_ZERO, np.uint8))
        largest = value("ReduceMax", value("Abs", x), columns, keepdims=0)
        row_scales = value("Mul", largest, constant(np.array([1 / _LARGEST], np.float32)))
        row_scales = value("Max", row_scales, constant(np.array([_LEAST])))
        zeros = value("Expand", zero, value("Shape", row_scales))
        rounded = value("QuantizeLinear", x, row_scales, zeros, axis=0)
        # It takes one scale for all rows, not one for each.
        one = constant(np.array(1, np.float32))
        weight = tracer.weight(integers), one, tracer.weight(scales)
        found = value("MatMulIntegerToFloat", rounded, *weight, zero, extension=True)
        found = value("Mul", found, value("Unsqueeze", row_scales, columns))
        return found if bias is None else found + tracer.weight(bias)

    return Product(trace)


def quantized(weight: mx.array) -> Quantized:
    """A weight (O, I) in 8 bits."""
    matrix = np.array(weight.astype(mx.float32))
    scales = np.maximum(matrix.max(axis=1), -matrix.min(axis=1)) / _LARGEST
    # Any scale will do for an output of zeros, and for one of denormal numbers, which count as zeros.
    scales[scales < _LEAST] = 1
    matrix /= scales[:, None]
    return np.ascontiguousarray(np.rint(matrix, out=matrix).astype(np.int8).T), scales
