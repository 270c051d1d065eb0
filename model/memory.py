"""Whether a model fits into memory, asked before its weights are read, and how much of it MLX may use."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from model.arrays import as_on_gpu, on_cpu
from model.config import FLOAT32_PARTS, QuantizationConfig, WeightsError
from model.cpu import int8

# Bytes of freed arrays that MLX keeps at most to use again. On a CPU malloc does that.
GPU_CACHE = 256 << 20
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Need:
    """Bytes that a model takes. cache: keys and values of one text; work: what encoding the longest audio takes."""

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work

    def __str__(self) -> str:
        return (
            f"weights {_size(self.weights)} + cache {_size(self.cache)} + work {_size(self.work)} = {_size(self.total)}"
        )


def weights_size(path: Path, dtype: str, quantization: QuantizationConfig | None) -> int:
    """Bytes that the tensors of a safetensors file take once they are loaded; only its header is read.

    quantization: how those are packed that come with scales. Raises WeightsError if the file cannot be read.
    """
    tensors = opened(path)
    packed = _packed_weights(tensors)
    size = 0
    for name, tensor in tensors.items():
        if quantization and name in packed:
            size += _packed_size(tensor.size * 32 // quantization.bits, quantization, dtype)
        elif name.rpartition(".")[0] + ".weight" not in packed or name.endswith(".bias"):
            size += tensor.size * (4 if name.startswith(FLOAT32_PARTS) else ITEM_SIZES[dtype])
    return size


def quantized_size(path: Path, dtype: str, bits: int) -> int:
    """About what `weights_size` would be if a file that is not quantized were, with `bits`."""
    tensors = opened(path)
    large = sum(
        t.size
        for name, t in tensors.items()
        if t.ndim == 2 and ".layers." in name and "linear_pos" not in name and not name.startswith(FLOAT32_PARTS)
    )
    saved = large * ITEM_SIZES[dtype] - _packed_size(large, QuantizationConfig(bits, 64), dtype)
    return weights_size(path, dtype, None) - saved


def opened(path: Path) -> dict[str, mx.array]:
    """The tensors of a safetensors file, each read when it is first used. Raises WeightsError."""
    try:
        tensors = mx.load(str(path))
    except (RuntimeError, OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from None
    assert isinstance(tensors, dict)
    return tensors


def _packed_weights(tensors: Mapping[str, mx.array]) -> set[str]:
    return {f"{name.removesuffix('.scales')}.weight" for name in tensors if name.endswith(".scales")}


def _packed_size(count: int, quantization: QuantizationConfig, dtype: str) -> int:
    """Bytes that `count` packed weights take: with scales and offsets on a GPU, as 8 bits or unpacked on a CPU."""
    if as_on_gpu():
        return count * quantization.bits // 8 + 2 * ITEM_SIZES[dtype] * count // quantization.group_size
    return count if int8.is_fast() else count * ITEM_SIZES[dtype]


def available() -> tuple[int, str] | None:
    """Bytes of memory for models, and where, in words. None if the system does not say."""
    if on_cpu():
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "on this machine"
        except (AttributeError, ValueError, OSError):
            return None
    info = mx.device_info()
    for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if isinstance(size := info.get(key), int) and size > 0:
            return size - mx.get_active_memory(), "on the GPU"
    return None


def reserve(name: str, need: Need, smaller: Mapping[str, Need]) -> None:
    """Set MLX's limits for the model `name`. Raises WeightsError, with the sum, if it does not fit.

    smaller: what it would need with other options of the command, the best first.
    """
    room = available()
    if room and need.total > room[0]:
        fitting = (f"with {option} it needs {_size(n.total)}" for option, n in smaller.items() if n.total <= room[0])
        raise WeightsError(
            f"{name} does not fit into memory: {need}, but {_size(max(room[0], 0))} are available {room[1]}; "
            f"{next(fitting, 'choose a smaller model')}"
        )
    if on_cpu():
        mx.set_cache_limit(0)
        return
    mx.set_cache_limit(min(GPU_CACHE, room[0] - need.total) if room else GPU_CACHE)
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if isinstance(recommended, int):
        # By default MLX goes half as far again, and the system begins to swap.
        mx.set_memory_limit(recommended)
        # What is read at every step stays in memory, of models loaded before as well.
        mx.set_wired_limit(min(recommended, mx.get_active_memory() + need.weights + need.cache))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
