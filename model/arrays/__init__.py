"""The arrays that models compute with: one of two libraries, with one set of names.

`model.arrays.mlx` is what a GPU computes with. `model.arrays.numpy` is what a CPU computes with in float32: there MLX
computes exponentials one at a time, 15 to 25 ns each, its wheels for Linux come with a slow BLAS, and waiting for a
result, which a decode step would do eighty times, takes it 14 µs.

The environment variable CANARY_ARRAYS chooses the library instead, for tests and debugging. It is read when a model is
loaded. `mlx` computes on a CPU as on a GPU; `numpy` is what a CPU does anyhow, and an error on a GPU or in 16 bits.
"""

import os
from types import ModuleType
from typing import Any, TypeAlias

from model.config import ConfigError

try:
    import mlx.core as mx
except ImportError as error:
    # On Linux the package alone brings no MLX, and MLX alone no library to compute with.
    raise ConfigError(
        f"MLX cannot be imported ({error}); on Linux, install it with pip install 'canary-server[cpu]', "
        "or for an NVIDIA GPU with [cuda12] or [cuda13]"
    ) from None

from model.arrays import mlx, numpy

# mx.array or np.ndarray. The two types have too little in common for a type checker to check code on both.
Array: TypeAlias = Any

VARIABLE = "CANARY_ARRAYS"


def on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def default_dtype() -> str:
    """16 bits on a GPU; float32 on a CPU, where 16-bit products are some fifty times slower."""
    return "float32" if on_cpu() else "bfloat16"


def as_on_gpu() -> bool:
    """Whether models are computed as on a GPU: there is one, or CANARY_ARRAYS says so. Raises ConfigError."""
    return _asked_for() == "mlx" or not on_cpu()


def library_for(dtype: str) -> ModuleType:
    """The library for a model of this type. Raises ConfigError if CANARY_ARRAYS asks for one that cannot compute it."""
    if _asked_for() == "numpy" and not (on_cpu() and dtype == "float32"):
        where = "a CPU" if on_cpu() else "a GPU"
        raise ConfigError(f"{VARIABLE}=numpy does not support {dtype} on {where}, only float32 on a CPU")
    return mlx if as_on_gpu() or dtype != "float32" else numpy


def _asked_for() -> str | None:
    value = os.environ.get(VARIABLE) or None
    if value not in (None, "mlx", "numpy"):
        raise ConfigError(f"{VARIABLE} {value!r} is not supported; must be one of mlx, numpy")
    return value
