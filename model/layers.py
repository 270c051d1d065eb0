"""What the networks are made of. A layer computes with the array library that it holds, `xp`."""

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.nn as nn

from model.arrays import Array, mlx

F = TypeVar("F", bound=Callable[..., Any])


def rowwise(method: F) -> F:
    """Mark a layer's method that treats each row by itself: arrays (…, I) of the same rows → arrays (…, O).

    On a CPU it may become one graph; see `model.cpu.tracing`, which has the functions that it may use.
    """
    method.__dict__["is_rowwise"] = True
    return method


class Layer(nn.Module):
    """A module that computes with MLX's arrays, or with numpy's once `model.cpu.layout.lay_out` has said so."""

    xp = mlx


class Linear(Layer, nn.Linear):
    """(…, I) → (…, O)"""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        if not bias:
            self.bias = None

    def __call__(self, x: Array) -> Array:
        return self.xp.linear(x, self.weight, self.bias)


class Embedding(Layer, nn.Embedding):
    """A vector for each token; a head scores tokens with the same vectors."""

    def scores(self, x: Array, bias: Array) -> Array:
        """(…, M) with bias (V,) → (…, V)"""
        return self.xp.linear(x, self.weight, bias)


class LayerNorm(Layer, nn.LayerNorm):
    """Over the last axis, float32 inside."""

    def __call__(self, x: Array) -> Array:
        return self.xp.layer_norm(x, self.weight, self.bias, self.eps)
