"""Weights into modules."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class WeightsError(ValueError):
    """Weights that do not fit the configuration beside them."""


def load_weights(module: nn.Module, path: Path, dtype: str) -> None:
    """Read `path` into `module`, every tensor of it and nothing else. Raises WeightsError naming what differs."""
    try:
        weights = mx.load(str(path))
    except (RuntimeError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable: {error}") from None
    assert isinstance(weights, dict)
    expected = {name: value.shape for name, value in dict(tree_flatten(module.parameters())).items()}
    for name in expected.keys() | weights.keys():
        if name not in weights:
            raise WeightsError(f"{path} lacks {name}")
        if name not in expected:
            raise WeightsError(f"{path} has {name}, which the configuration has no place for")
        if weights[name].shape != expected[name]:
            raise WeightsError(f"{path}: {name} is {weights[name].shape}, not {expected[name]}")
    # The filterbank stays float32: features are computed in it whatever the model's type.
    kept = {name: v if name.startswith("preprocessor.") else v.astype(DTYPES[dtype]) for name, v in weights.items()}
    module.load_weights(list(kept.items()))
    module.eval()
    mx.eval(module.parameters())
