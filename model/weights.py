"""Weights into modules."""

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from model import kernels
from model.config import QuantizationConfig
from model.cpu import allocator, int8
from model.cpu.int8 import Int8Linear

log = logging.getLogger(__name__)

# Numbers that a CPU's cache fetches together: as many rows are turned into columns at a time, six times as fast as all.
_LINE = 16
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class WeightsError(ValueError):
    """Weights that do not fit the configuration beside them."""


def load(module: nn.Module, path: Path, dtype: str, quantization: QuantizationConfig | None = None) -> None:
    """`load_weights`, laid out for where they are computed with, and little more memory at any time than they take."""
    with allocator.on_pages_of_their_own():
        load_weights(module, path, dtype, quantization)
        lay_out_for_cpu(module)


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


def lay_out_for_cpu(module: nn.Module) -> None:
    """Where a CPU computes, in float32, make the arrays of `module` numpy's, with which it computes from then on.

    What is multiplied with is kept by inputs and in one block, for which numpy asks the system for large pages: so a
    single row is multiplied as fast as memory is read. `module.parameters()`, which are MLX's, are none afterwards.
    """
    if not kernels.on_cpu() or any(x.dtype != mx.float32 for x in dict(tree_flatten(module.parameters())).values()):
        return
    modules = module.modules()
    matrices: list[Any] = [each for each in modules if isinstance(each, nn.Linear | nn.Embedding)]
    room = np.empty(sum(each.weight.size for each in matrices), np.float32)
    for each in matrices:
        outputs, inputs = each.weight.shape
        columns, room = room[: outputs * inputs].reshape(inputs, outputs), room[outputs * inputs :]
        rows = kernels.to_numpy(each.weight)
        for i in range(0, outputs, _LINE):
            columns[:, i : i + _LINE] = rows[i : i + _LINE].T
        each.weight = columns.T
    for each in modules:
        for name, value in list(each.items()):
            if isinstance(value, mx.array):
                setattr(each, name, kernels.to_numpy(value).copy())


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
    if int8.is_fast():
        log.info("%d layers of %d bits are computed in 8 bits", len(layers), quantization.bits)
        _put_in_8_bits(module, weights, layers, quantization)
    elif kernels.on_cpu():
        log.warning(
            "%d layers of %d bits are unpacked: this CPU has no fast product of packed numbers. "
            "The model takes as much memory as one that is not quantized.",
            *(len(layers), quantization.bits),
        )
        for layer in layers:
            weights[f"{layer}.weight"] = _unpacked(weights, layer, quantization)
    else:
        nn.quantize(module, quantization.group_size, quantization.bits, class_predicate=lambda name, _: name in layers)


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
