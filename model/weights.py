"""A converted model's weights into its modules."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from model.arrays import as_on_gpu, library_for
from model.arrays import numpy as numpy_arrays
from model.config import FLOAT32_PARTS, QuantizationConfig, WeightsError
from model.cpu import allocator, layout
from model.memory import opened

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def load(module: nn.Module, path: Path, dtype: str, quantization: QuantizationConfig | None = None) -> None:
    """`load_weights`, and choose the array library that `module` computes with.

    Raises WeightsError, or ConfigError for CANARY_ARRAYS.
    """
    xp = library_for(dtype)
    load_weights(module, path, dtype, quantization)
    if xp is numpy_arrays:
        layout.lay_out(module)
    else:
        layout.pack(module)
        mx.eval(module.parameters())
    # What weights were read into.
    allocator.give_back_freed_memory()


def load_weights(module: nn.Module, path: Path, dtype: str, quantization: QuantizationConfig | None = None) -> None:
    """Put the tensors of `path` into `module`: every parameter of it, and nothing else.

    MLX reads a tensor when it is first used, so a CPU lays out one after the other and never holds them all twice.
    quantization: how the linear layers are packed whose weights come with scales. A GPU computes with them as they
    are; for a CPU see `layout.take_packed`. Raises WeightsError naming what differs.
    """
    weights = opened(path)
    expected = {name: value.shape for name, value in dict(tree_flatten(module.parameters())).items()}
    layers = _packed_layers(module, weights) if quantization else set()
    if quantization:
        expected |= _packed_shapes(layers, expected, quantization)
    for name in expected.keys() | weights.keys():
        if name not in weights:
            raise WeightsError(f"{path}: missing tensor {name}")
        if name not in expected:
            raise WeightsError(f"{path}: unexpected tensor {name} (not in config.json)")
        if weights[name].shape != expected[name]:
            raise WeightsError(f"{path}: {name} has shape {weights[name].shape}, expected {expected[name]}")
    if quantization:
        _check_packed(layers, weights, path)
        if as_on_gpu():
            bits, group_size = quantization.bits, quantization.group_size
            nn.quantize(module, group_size, bits, class_predicate=lambda name, _: name in layers)
        else:
            layout.take_packed(module, weights, layers, quantization, path)
    kept = {
        name: v if name.startswith(FLOAT32_PARTS) or v.dtype == mx.uint32 else v.astype(DTYPES[dtype])
        for name, v in weights.items()
    }
    module.load_weights(list(kept.items()))
    module.eval()


def _packed_layers(module: nn.Module, weights: dict[str, mx.array]) -> set[str]:
    """The names of the linear layers whose weights come with scales."""
    return {
        name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and f"{name}.scales" in weights
    }


def _packed_shapes(
    layers: set[str], unpacked: dict[str, tuple[int, ...]], quantization: QuantizationConfig
) -> dict[str, tuple[int, ...]]:
    """The shapes of packed weights, their scales and their offsets, which MLX calls biases."""
    shapes = {}
    for layer in layers:
        outputs, inputs = unpacked[f"{layer}.weight"]
        groups = (outputs, inputs // quantization.group_size)
        shapes[f"{layer}.weight"] = (outputs, inputs * quantization.bits // 32)
        shapes |= {f"{layer}.scales": groups, f"{layer}.biases": groups}
    return shapes


def _check_packed(layers: set[str], weights: dict[str, mx.array], path: Path) -> None:
    """Raise WeightsError unless packed weights, and no other tensors, hold integers."""
    packed = {f"{layer}.weight" for layer in layers}
    for name, value in weights.items():
        if (name in packed) != (value.dtype == mx.uint32):
            found, expected = str(value.dtype).removeprefix("mlx.core."), "uint32" if name in packed else "floats"
            raise WeightsError(f"{path}: {name} holds {found}, expected {expected}")
