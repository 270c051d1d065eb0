"""How many primitives a computation with MLX's arrays has. On a GPU each is a kernel to launch, 3 to 5 µs.

A fused operation, such as `mx.fast.layer_norm`, counts as one. A CPU computes it with several primitives, which are
taken off again. Views do not count: they launch nothing.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from model.encoder import ConformerLayer

if TYPE_CHECKING:
    from model.canary.generate import RunningBatch

FUSED = ("layer_norm", "scaled_dot_product_attention")
VIEWS = {"AsStrided", "Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}


@contextmanager
def counted() -> Iterator[Callable[..., Counter[str]]]:
    """Yields count(*arrays): how often each primitive is in the graph of arrays that were made inside."""
    corrections: Counter[str] = Counter()
    originals = {name: getattr(mx.fast, name) for name in FUSED}

    def fused(name: str) -> Callable[..., mx.array]:
        def call(*args: Any, **options: Any) -> mx.array:
            leaves = [_leaf(each) for each in args]
            corrections.subtract(_primitives(originals[name](*leaves, **{k: _leaf(v) for k, v in options.items()})))
            corrections[name] += 1
            return originals[name](*args, **options)

        return call

    def count(*arrays: mx.array) -> Counter[str]:
        counter = _primitives(*arrays)
        counter.update(corrections)
        corrections.clear()
        return +counter

    for name in FUSED:
        setattr(mx.fast, name, fused(name))
    try:
        yield count
    finally:
        for name, original in originals.items():
            setattr(mx.fast, name, original)


def _leaf(value: Any) -> Any:
    """An array of the same shape with nothing to compute before it."""
    if not isinstance(value, mx.array):
        return value
    leaf = mx.zeros(value.shape, value.dtype)
    mx.eval(leaf)
    return leaf


def _primitives(*arrays: mx.array) -> Counter[str]:
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        names = re.findall(r'label ="([^"]*)", shape=rectangle', file.read())
    return Counter(name for name in names if name not in VIEWS)


def of_step(batch: "RunningBatch") -> Counter[str]:
    """The primitives of the next decode step of `batch`, which is of no use afterwards."""
    with counted() as count:
        return count(*batch._written(batch._last_tokens()).arrays)


def of_encoder_layer(layer: ConformerLayer, padded: bool) -> Counter[str]:
    """The primitives of an encoder layer; padded: for audios of unequal lengths."""
    scale: mx.array = layer.norm_out.weight
    x, inside = mx.ones((2, 20, scale.size), scale.dtype), mx.ones((2, 20, 1), mx.bool_) if padded else None
    # The first time, it projects positions.
    mx.eval(layer(x, inside), x, inside)
    with counted() as count:
        return count(layer(x, inside))
