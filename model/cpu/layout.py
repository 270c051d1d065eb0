"""Weights laid out for a CPU: float32 as it is multiplied fast, packed weights in 8 bits or unpacked."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

from model.arrays import numpy as numpy_arrays
from model.config import QuantizationConfig
from model.cpu import int8, packed_file, prepacked
from model.cpu.int8 import Quantized
from model.cpu.products import ProductEmbedding, ProductLinear
from model.cpu.subsampling import CpuSubsampling
from model.cpu.tracing import compile_rowwise
from model.encoder import FastConformer
from model.layers import Embedding, Layer, Linear

log = logging.getLogger(__name__)

# They are not packed, so that a GPU computes them in float32. But reading them takes most of a step's time.
_FOR_EACH_TOKEN = ("prediction.", "joint.prediction", "joint.out")
# float32 numbers in a line of a CPU's cache. Transposing so many rows at a time is six times as fast as all at once.
_LINE = 16


def lay_out(module: nn.Module) -> None:
    """Make `module`, whose parameters are float32, compute with numpy's arrays from now on.

    An encoder's subsampling, and layers that are faster with prepacked weights, are replaced, and what layers with
    packed weights compute of each row becomes a graph. The other matrices are stored by inputs, in one block, for which
    numpy asks the system for large pages: so one row is multiplied as fast as memory is read.
    Afterwards `module.parameters()`, which lists MLX's arrays, is empty.
    """
    for each in module.modules():
        if isinstance(each, FastConformer):
            each.subsampling = CpuSubsampling(each.subsampling)
    _replace(module, _prepacked)
    modules = module.modules()
    matrices: list[Any] = [each for each in modules if isinstance(each, nn.Linear | nn.Embedding)]
    room = np.empty(sum(each.weight.size for each in matrices), np.float32)
    for each in matrices:
        outputs, inputs = each.weight.shape
        columns, room = room[: outputs * inputs].reshape(inputs, outputs), room[outputs * inputs :]
        # Where it has not been read yet, MLX reads it here. Its memory, freed once it is laid out, serves the next one.
        rows = np.asarray(each.weight)
        for i in range(0, outputs, _LINE):
            columns[:, i : i + _LINE] = rows[i : i + _LINE].T
        each.weight = columns.T
    for each in modules:
        each.xp = numpy_arrays
        for name, value in list(each.items()):
            if isinstance(value, mx.array):
                setattr(each, name, np.array(value))
    for each in modules:
        if isinstance(each, Layer):
            compile_rowwise(each)
    pack(module)


def pack(module: nn.Module) -> None:
    """Pack the weights of products that no graph has."""
    for each in module.modules():
        if isinstance(each, ProductLinear | ProductEmbedding):
            each.product.pack()


def _prepacked(_: str, layer: nn.Module) -> nn.Module:
    """The layer with its weight to be prepacked, or as it is. The weight is taken out of it: so it can be freed."""
    if not isinstance(layer, Linear | Embedding) or not prepacked.is_faster(layer.weight.shape):
        return layer
    weight = layer.pop("weight")
    if isinstance(layer, Embedding):
        vectors = np.array(weight)
        return ProductEmbedding(vectors, prepacked.product(vectors))
    return ProductLinear(prepacked.product(weight, None if layer.bias is None else np.array(layer.bias)))


def take_packed(
    module: nn.Module, weights: dict[str, mx.array], layers: set[str], quantization: QuantizationConfig, path: Path
) -> None:
    """Prepare `module` for the packed weights of `layers`, which are from `path`, and `weights` for its layers.

    A CPU that is fast at it computes them in 8 bits, and with them the other layers that are read for each token.
    Others have no fast product of packed weights and unpack them.
    """
    if not int8.is_fast():
        log.warning(
            "%d layers of %d bits are unpacked: %s. The model takes as much memory as one that is not quantized.",
            *(len(layers), quantization.bits, int8.SLOW),
        )
        for layer in layers:
            weights[f"{layer}.weight"] = _unpacked(weights, layer, quantization)
        return
    chosen = {
        name: layer for name, layer in module.named_modules() if name in layers or is_read_for_each_token(name, layer)
    }
    more = len(chosen) - len(layers)
    log.info("%d layers of %d bits and %d of more are computed in 8 bits", len(layers), quantization.bits, more)
    shapes = {name: layer.weight.shape for name, layer in chosen.items()}
    kept = packed_file.read(path, shapes)
    quantized = kept or {
        name: int8.quantized(_unpacked(weights, name, quantization) if name in layers else weights[f"{name}.weight"])
        for name in shapes
    }
    if not kept:
        packed_file.write(path, quantized)

    def replaced(name: str, layer: nn.Module) -> nn.Module:
        if name not in shapes:
            return layer
        if isinstance(layer, Linear):
            for part in ("weight", "scales", "biases"):
                weights.pop(f"{name}.{part}", None)
        return in_8_bits(layer, quantized.pop(name), weights.pop(f"{name}.bias", None))

    _replace(module, replaced)


def in_8_bits(layer: nn.Module, quantized: Quantized, bias: mx.array | None) -> nn.Module:
    """What computes a Linear in 8 bits, or the scores of an Embedding."""
    if isinstance(layer, Embedding):
        return ProductEmbedding(layer.weight, int8.product(*quantized))
    return ProductLinear(int8.product(*quantized, None if bias is None else np.array(bias.astype(mx.float32))))


def is_read_for_each_token(name: str, layer: nn.Module) -> bool:
    """Whether it is a head, or a linear layer of what a transducer computes for each token."""
    return isinstance(layer, Embedding) or (isinstance(layer, Linear) and name.startswith(_FOR_EACH_TOKEN))


def _replace(module: nn.Module, replaced: Callable[[str, nn.Module], nn.Module]) -> None:
    """Put `replaced(name, layer)` in the place of each layer inside `module`."""
    module.update_modules(tree_map_with_path(replaced, module.leaf_modules(), is_leaf=nn.Module.is_module))


def _unpacked(weights: dict[str, mx.array], layer: str, quantization: QuantizationConfig) -> mx.array:
    """A layer's weight (O, I). Its packed tensors are taken out of `weights`."""
    packed, scales, offsets = (weights.pop(f"{layer}.{part}") for part in ("weight", "scales", "biases"))
    return mx.dequantize(packed, scales, offsets, quantization.group_size, quantization.bits)
