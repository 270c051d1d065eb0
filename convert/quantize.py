"""Which tensors are quantized, and how: MLX's affine quantization in groups along the input dimension."""

import re

import numpy as np

from model.config import QuantizationConfig

# The linear layers that hold nearly all of a model's weights. Small or sensitive ones are left out: subsampling, the
# projection of positions (computed once per length), the encoder-decoder projection, and the embedding (also the head).
_LARGE = re.compile(
    r"encoder\.layers\.\d+\.(feed_forward[12]\.linear[12]|self_attn\.linear_(qkv|out)|conv\.pointwise_conv[12])\.weight"
    r"|decoder\.layers\.\d+\.(self_attn\.linear_(qkv|out)|cross_attn\.linear_(q|out)|dense_(in|out))\.weight"
    r"|decoder\.cross_kv\.weight"
)


def is_large(target: str) -> bool:
    """Whether a tensor is the weight of a layer that is worth quantizing."""
    return _LARGE.fullmatch(target) is not None


def fits(shape: tuple[int, ...], quantization: QuantizationConfig) -> bool:
    """Whether a weight (O, I) can be quantized: I must be a multiple of the group size."""
    return shape[1] % quantization.group_size == 0


def packed_specs(
    target: str, dtype: str, shape: tuple[int, ...], quantization: QuantizationConfig
) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of the tensors that replace a weight (O, I): packed integers, scales and offsets.

    dtype: of the scales and offsets; each group has one of each.
    """
    outputs, inputs = shape
    groups = (outputs, inputs // quantization.group_size)
    layer = target.removesuffix("weight")
    return [
        (target, "uint32", (outputs, inputs * quantization.bits // 32)),
        (f"{layer}scales", dtype, groups),
        (f"{layer}biases", dtype, groups),
    ]


def packed(weight: np.ndarray, quantization: QuantizationConfig) -> list[np.ndarray]:
    """A weight (O, I) → the arrays that `packed_specs` names."""
    # Its error says how to install MLX.
    from model.arrays import mx

    integers, scales, offsets = mx.quantize(mx.array(weight), quantization.group_size, quantization.bits)
    # numpy cannot read MLX's bfloat16; float32 represents all of its values exactly.
    per_group = [np.array(x.astype(mx.float32)).astype(weight.dtype) for x in (scales, offsets)]
    return [np.array(integers), *per_group]
