"""Modules that compute in 8 bits as a CPU does that is fast at it, without a file of packed weights."""

from collections.abc import Callable
from typing import TypeVar

import mlx.nn as nn
from mlx.utils import tree_map_with_path

from model.cpu import int8
from model.cpu.layout import in_8_bits
from model.layers import Linear

M = TypeVar("M", bound=nn.Module)


def is_linear(_: str, layer: nn.Module) -> bool:
    return isinstance(layer, Linear)


def computing_in_8_bits(module: M, chosen: Callable[[str, nn.Module], bool] = is_linear) -> M:
    """`module` itself, with its layers in 8 bits for which chosen(name, layer) is true."""

    def replaced(name: str, layer: nn.Module) -> nn.Module:
        return in_8_bits(layer, int8.quantized(layer.weight), layer.get("bias")) if chosen(name, layer) else layer

    module.update_modules(tree_map_with_path(replaced, module.leaf_modules(), is_leaf=nn.Module.is_module))
    return module
