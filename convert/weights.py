"""NeMo's tensors → this project's: what tables of names, shapes and layout changes are made of.

Shapes are written in symbols: `3D D` means (3·D, D), where a table's `sizes` says what D is.
An unexpected tensor, a missing one and one with the wrong shape are errors that name it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from convert.checkpoint import is_floating
from convert.errors import TensorError
from model.config import FLOAT32_PARTS

MAX_SIZE = 2**20
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


class LazyTensor(Protocol):
    """A tensor whose data is read only by `load()`, such as `checkpoint.StoredTensor`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def load(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Row:
    """A converted tensor's name and shape, NeMo's tensors with their shapes, and the function that converts them."""

    target: str
    shape: str
    sources: tuple[tuple[str, str], ...]
    layout: Callable[..., Any]


# ---- layouts: functions from float32 arrays to one array ----


def unchanged(tensor: np.ndarray) -> np.ndarray:
    return tensor


def concatenated(*tensors: np.ndarray) -> np.ndarray:
    """Several (O, I) → one (n·O, I), in the row's order."""
    return np.concatenate(tensors)


def pointwise(kernel: np.ndarray) -> np.ndarray:
    """A convolution with kernel size 1, (O, I, 1) or (O, I, 1, 1) → the equivalent linear layer (O, I)."""
    return kernel.reshape(len(kernel), -1)


# ---- the table ----


def module(
    target: str, shape: str, *sources: str, stored: str = "", layout: Callable[..., Any] = unchanged, bias: bool = True
) -> list[Row]:
    """The rows of a layer's weight and bias. sources: NeMo's layers; stored: their weights' shape, if it differs."""
    stored = stored or shape
    rows = [Row(f"{target}.weight", shape, tuple((f"{name}.weight", stored) for name in sources), layout)]
    if bias:
        biases = tuple((f"{name}.bias", stored.split()[0]) for name in sources)
        rows.append(Row(f"{target}.bias", shape.split()[0], biases, concatenated if len(sources) > 1 else unchanged))
    return rows


# Not needed once the batch norm is folded.
DROPPED = re.compile(r"encoder\.layers\.\d+\.conv\.batch_norm\.num_batches_tracked")


# ---- the table for one configuration ----


@dataclass(frozen=True)
class Table:
    """The rows for one configuration, and the value of each symbol."""

    rows: tuple[Row, ...]
    sizes: dict[str, int]

    def shape(self, symbols: str) -> tuple[int, ...]:
        """`"3D D"` as numbers."""
        return tuple(
            math.prod(
                int(factor) if factor.isdigit() else self.sizes[factor] for factor in re.findall(r"\d+|[A-Z]", size)
            )
            for size in symbols.split()
        )

    def check(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Raises TensorError naming the first tensor that has the wrong shape, is missing or is unexpected."""
        expected = {name: self.shape(symbols) for row in self.rows for name, symbols in row.sources}
        for name, shape in expected.items():
            if name in tensors and tuple(tensors[name].shape) != shape:
                raise TensorError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
            if name in tensors and not is_floating(tensors[name].dtype):
                raise TensorError(f"{name} has dtype {tensors[name].dtype}, expected floating point")
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise TensorError(f"missing tensor {missing[0]} {expected[missing[0]]}{_and_more(missing)}")
        unexpected = [name for name in tensors if name not in expected and not DROPPED.fullmatch(name)]
        if unexpected:
            shape = tuple(tensors[unexpected[0]].shape)
            raise TensorError(f"unexpected tensor {unexpected[0]} {shape}{_and_more(unexpected)}")

    def with_nemo_names(self) -> "Table":
        """The same tensors under NeMo's names and in NeMo's layouts."""
        sources = {name: symbols for row in self.rows for name, symbols in row.sources}
        rows = tuple(Row(name, symbols, ((name, symbols),), unchanged) for name, symbols in sources.items())
        return Table(rows, self.sizes)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def size(name: str, value: Any, maximum: int = MAX_SIZE) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= maximum:
        raise TensorError(f"{name}: {value!r} is not an integer from 1 to {maximum}")
    return value


# ---- conversion ----


def dtype_of(target: str, dtype: str) -> str:
    """A target's dtype. Some parts are always float32."""
    return "float32" if target.startswith(FLOAT32_PARTS) else dtype


def convert_tensors(tensors: Mapping[str, LazyTensor], table: Table, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """(target, array) row by row, so that only one row's tensors are in memory at a time.

    dtype: "float32", "bfloat16" or "float16"; `FLOAT32_PARTS` are always float32. Arithmetic is float32.
    Raises TensorError if the tensors do not match the table, or if a value is not finite in the dtype.
    """
    table.check(tensors)
    for row in table.rows:
        # A value too large for the dtype becomes infinite, which is an error below.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            result = row.layout(*(tensors[name].load().astype(np.float32, copy=False) for name, _ in row.sources))
            assert result.shape == table.shape(row.shape), row.target
            result = np.ascontiguousarray(result.astype(DTYPES[dtype_of(row.target, dtype)], copy=False))
        if not np.isfinite(result).all():
            raise TensorError(f"{row.sources[0][0]} has a value that is not finite in {dtype}")
        yield row.target, result
