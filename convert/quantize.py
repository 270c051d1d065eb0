"""Which tensors are packed into few bits, and how: MLX's affine quantization, by groups along the input."""

import re

import numpy as np

from model.config import QuantizationConfig

# The linear layers that hold nearly all of a model. Small or sensitive ones stay as they are: subsampling, the
# projection of positions (computed once a length), between encoder and decoder, and the embedding, which is the head.
_LARGE = re.compile(
    r"encoder\.layers\.\d+\.(feed_forward[12]\.linear[12]|self_attn\.linear_(qkv|out)|conv\.pointwise_conv[12])\.weight"
    r"|decoder\.layers\.\d+\.(self_attn\.linear_(qkv|out)|cross_attn\.linear_(q|out)|dense_(in|out))\.weight"
    r"|decoder\.cross_kv\.weight"
)


def is_large(target: str) -> bool:
    """Whether a tensor belongs to a layer that is worth packing."""
    return _LARGE.fullmatch(target) is not None


def fits(shape: tuple[int, ...], quantization: QuantizationConfig) -> bool:
    """Whether a weight (O, I) can be packed: groups must fill its rows."""
    return shape[1] % quantization.group_size == 0


def packed_layout(
    target: str, dtype: str, shape: tuple[int, ...], quantization: QuantizationConfig
) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of what a weight (O, I) becomes: whole numbers, and a scale and an offset a group."""
    outputs, inputs = shape
    groups = (outputs, inputs // quantization.group_size)
    layer = target.removesuffix("weight")
    return [
        (target, "uint32", (outputs, inputs * quantization.bits // 32)),
        (f"{layer}scales", dtype, groups),
        (f"{layer}biases", dtype, groups),
    ]


def packed(weight: np.ndarray, quantization: QuantizationConfig) -> list[np.ndarray]:
    """A weight (O, I) → the arrays that `packed_layout` names, scales and offsets in the weight's own type."""
    import mlx.core as mx

    whole, scales, offsets = mx.quantize(mx.array(weight), quantization.group_size, quantization.bits)
    # numpy reads no bfloat16 from MLX; float32 holds every value of it.
    by_group = [np.array(x.astype(mx.float32)).astype(weight.dtype) for x in (scales, offsets)]
    return [np.array(whole), *by_group]
