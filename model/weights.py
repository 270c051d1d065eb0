"""Weights into modules."""

import logging
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from model.arrays import as_on_gpu, library_for
from model.arrays import numpy as numpy_arrays
from model.config import QuantizationConfig
from model.cpu import allocator, int8, layout
from model.cpu.int8 import Int8Linear

log = logging.getLogger(__name__)

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class WeightsError(ValueError):
    """Weights that do not fit the configuration beside them."""


def load(module: nn.Module, path: Path, dtype: str, quantization: QuantizationConfig | None = None) -> None:
    """`load_weights`, with the arrays that `module` is to compute with, in little more memory than they take.

    Raises WeightsError, or ConfigError for CANARY_ARRAYS.
    """
    xp = library_for(dtype)
    with allocator.on_pages_of_their_own():
        load_weights(module, path, dtype, quantization)
        if xp is numpy_arrays:
            layout.lay_out(module)


def load_weights(module: nn.Module, path: Path, dtype: str, quantization: QuantizationConfig | None = None) -> None:
    """Read `path` into `module`, every tensor of it and nothing else. Raises WeightsError naming what differs.

    quantization: how those linear layers are packed whose weights come with scales. They are computed with as they
    are on a GPU, in 8 bits on a CPU that is fast at it; on others, where there is no fast product, they are unpacked.
    """
    try:
        weights = mx.load(str(path))
    except (RuntimeError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable: {error}") from None
    assert isinstance(weights, dict)
    expected = {name: value.shape for name, value in dict(tree_flatten(module.parameters())).items()}
    layers = _packed_layers(module, weights) if quantization else set()
    if quantization:
        expected |= _packed_shapes(layers, expected, quantization)
    for name in expected.keys() | weights.keys():
        if name not in weights:
            raise WeightsError(f"{path} lacks {name}")
        if name not in expected:
            raise WeightsError(f"{path} has {name}, which the configuration has no place for")
        if weights[name].shape != expected[name]:
            raise WeightsError(f"{path}: {name} is {weights[name].shape}, not {expected[name]}")
    if quantization:
        _check_packed(layers, weights, path)
        _place(module, weights, layers, quantization)
    # The filterbank stays float32: features are computed in it whatever the model's type.
    kept = {
        name: v if name.startswith("preprocessor.") or v.dtype == mx.uint32 else v.astype(DTYPES[dtype])
        for name, v in weights.items()
    }
    module.load_weights(list(kept.items()))
    module.eval()
    mx.eval(module.parameters())


def _packed_layers(module: nn.Module, weights: dict[str, mx.array]) -> set[str]:
    """The linear layers whose weights come with scales."""
    return {
        name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and f"{name}.scales" in weights
    }


def _packed_shapes(
    layers: set[str], unpacked: dict[str, tuple[int, ...]], quantization: QuantizationConfig
) -> dict[str, tuple[int, ...]]:
    """The shapes of packed weights, of their scales and of their offsets, which MLX calls biases."""
    shapes = {}
    for layer in layers:
        outputs, inputs = unpacked[f"{layer}.weight"]
        groups = (outputs, inputs // quantization.group_size)
        shapes[f"{layer}.weight"] = (outputs, inputs * quantization.bits // 32)
        shapes |= {f"{layer}.scales": groups, f"{layer}.biases": groups}
    return shapes


def _check_packed(layers: set[str], weights: dict[str, mx.array], path: Path) -> None:
    """Whole numbers only where they are packed weights, and there nothing else."""
    packed = {f"{layer}.weight" for layer in layers}
    for name, value in weights.items():
        if (name in packed) != (value.dtype == mx.uint32):
            raise WeightsError(f"{path}: {name} holds {value.dtype}")


def _place(module: nn.Module, weights: dict[str, mx.array], layers: set[str], quantization: QuantizationConfig) -> None:
    """Make the layers of `module` ready for packed weights where those are of use, and `weights` for its layers."""
    if as_on_gpu():
        nn.quantize(module, quantization.group_size, quantization.bits, class_predicate=lambda name, _: name in layers)
    elif int8.is_fast():
        log.info("%d layers of %d bits are computed in 8 bits", len(layers), quantization.bits)
        _put_in_8_bits(module, weights, layers, quantization)
    else:
        log.warning(
            "%d layers of %d bits are unpacked: this CPU has no fast product of packed numbers. "
            "The model takes as much memory as one that is not quantized.",
            *(len(layers), quantization.bits),
        )
        for layer in layers:
            weights[f"{layer}.weight"] = _unpacked(weights, layer, quantization)


def _put_in_8_bits(
    module: nn.Module, weights: dict[str, mx.array], layers: set[str], quantization: QuantizationConfig
) -> None:
    """Replace `layers`, one after the other, taking what they are made of out of `weights`."""

    def replaced(name: str, layer: nn.Module) -> nn.Module:
        if name not in layers:
            return layer
        return Int8Linear(_unpacked(weights, name, quantization), weights.pop(f"{name}.bias", None))

    module.update_modules(tree_map_with_path(replaced, module.leaf_modules(), is_leaf=nn.Module.is_module))


def _unpacked(weights: dict[str, mx.array], layer: str, quantization: QuantizationConfig) -> mx.array:
    """A layer's weight (O, I); what it was packed into is taken out of `weights`."""
    packed, scales, offsets = (weights.pop(f"{layer}.{part}") for part in ("weight", "scales", "biases"))
    return mx.dequantize(packed, scales, offsets, quantization.group_size, quantization.bits)
