"""What every family's tensors begin with: the preprocessor and the FastConformer encoder.

Sizes in shapes:
    W window samples, B mel bands, P = n_fft/2 + 1
    D encoder width, H heads, A = D/H, E feed-forward width, K convolution kernel, C subsampling channels,
    F mel bands after subsampling
"""

import math
from collections.abc import Callable
from itertools import chain

import numpy as np

from convert.errors import TensorError
from convert.weights import Row, concatenated, module, pointwise, size, unchanged
from model.config import EncoderConfig, PreprocessorConfig

BATCH_NORM_EPS = 1e-5
MAX_LAYERS = 256


def encoder_table(preprocessor: PreprocessorConfig, encoder: EncoderConfig) -> tuple[list[Row], dict[str, int]]:
    """The rows of an encoder and its preprocessor, and the value of each symbol in their shapes."""
    sizes = {
        "W": size("preprocessor.window_size", preprocessor.win_length),
        "B": size("preprocessor.features", preprocessor.features),
        "P": size("preprocessor.n_fft", preprocessor.n_fft) // 2 + 1,
        "D": size("encoder.d_model", encoder.d_model),
        "H": size("encoder.n_heads", encoder.n_heads),
        "K": size("encoder.conv_kernel_size", encoder.conv_kernel_size),
        "C": size("encoder.subsampling_conv_channels", encoder.subsampling_conv_channels),
        "F": size("encoder.feat_in", encoder.feat_in),
    }
    if encoder.feat_in != preprocessor.features:
        raise TensorError(f"encoder.feat_in {encoder.feat_in} must equal preprocessor.features {sizes['B']}")
    if encoder.d_model % encoder.n_heads:
        raise TensorError(f"encoder.d_model {encoder.d_model} must be a multiple of n_heads {encoder.n_heads}")
    sizes["A"] = encoder.d_model // encoder.n_heads
    sizes["E"] = encoder.d_model * size("encoder.ff_expansion_factor", encoder.ff_expansion_factor)
    for _ in range(int(math.log2(encoder.subsampling_factor))):
        sizes["F"] = (sizes["F"] - 1) // 2 + 1
    rows = preprocessor_rows() + subsampling_rows(sizes["F"])
    for layer in range(size("encoder.n_layers", encoder.n_layers, MAX_LAYERS)):
        rows += encoder_layer_rows(layer, encoder.use_bias)
    return rows, sizes


def preprocessor_rows() -> list[Row]:
    return [
        Row("preprocessor.window", "W", (("preprocessor.featurizer.window", "W"),), unchanged),
        Row("preprocessor.fb", "B P", (("preprocessor.featurizer.fb", "1 B P"),), squeezed),
    ]


def subsampling_rows(bands: int) -> list[Row]:
    to, conv = "encoder.subsampling", "encoder.pre_encode.conv"
    rows = [
        module(f"{to}.conv_in", "C 3 3 1", f"{conv}.0", stored="C 1 3 3", layout=channels_last),
        module(f"{to}.depthwise1", "C 3 3 1", f"{conv}.2", stored="C 1 3 3", layout=channels_last),
        module(f"{to}.pointwise1", "C C", f"{conv}.3", stored="C C 1 1", layout=pointwise),
        module(f"{to}.depthwise2", "C 3 3 1", f"{conv}.5", stored="C 1 3 3", layout=channels_last),
        module(f"{to}.pointwise2", "C C", f"{conv}.6", stored="C C 1 1", layout=pointwise),
        module(f"{to}.out", "D CF", "encoder.pre_encode.out", layout=frequency_major(bands)),
    ]
    return list(chain.from_iterable(rows))


def encoder_layer_rows(layer: int, bias: bool) -> list[Row]:
    """bias: NeMo's `use_bias`, for the linear and convolution layers. Norms always have a bias."""
    at = f"encoder.layers.{layer}"
    attention, conv, norm = f"{at}.self_attn", f"{at}.conv", f"{at}.conv.batch_norm"
    scale, shift = (f"{norm}.weight", "D"), (f"{norm}.bias", "D")
    mean, variance = (f"{norm}.running_mean", "D"), (f"{norm}.running_var", "D")
    own_bias = ((f"{conv}.depthwise_conv.bias", "D"),) if bias else ()
    query_key_value = (f"{attention}.linear_q", f"{attention}.linear_k", f"{attention}.linear_v")
    rows = [
        module(f"{at}.norm_feed_forward1", "D", f"{at}.norm_feed_forward1"),
        module(f"{at}.feed_forward1.linear1", "E D", f"{at}.feed_forward1.linear1", bias=bias),
        module(f"{at}.feed_forward1.linear2", "D E", f"{at}.feed_forward1.linear2", bias=bias),
        module(f"{at}.norm_self_att", "D", f"{at}.norm_self_att"),
        module(f"{attention}.linear_qkv", "3D D", *query_key_value, stored="D D", layout=concatenated, bias=bias),
        module(f"{attention}.linear_pos", "D D", f"{attention}.linear_pos", bias=False),
        [Row(f"{attention}.pos_bias_u", "H A", ((f"{attention}.pos_bias_u", "H A"),), unchanged)],
        [Row(f"{attention}.pos_bias_v", "H A", ((f"{attention}.pos_bias_v", "H A"),), unchanged)],
        module(f"{attention}.linear_out", "D D", f"{attention}.linear_out", bias=bias),
        module(f"{at}.norm_conv", "D", f"{at}.norm_conv"),
        module(
            f"{conv}.pointwise_conv1", "2D D", f"{conv}.pointwise_conv1", stored="2D D 1", layout=pointwise, bias=bias
        ),
        [
            Row(
                f"{conv}.depthwise_conv.weight",
                "D K 1",
                ((f"{conv}.depthwise_conv.weight", "D 1 K"), scale, variance),
                folded_weight,
            ),
            Row(f"{conv}.depthwise_conv.bias", "D", (scale, shift, mean, variance, *own_bias), folded_bias),
        ],
        module(
            f"{conv}.pointwise_conv2", "D D", f"{conv}.pointwise_conv2", stored="D D 1", layout=pointwise, bias=bias
        ),
        module(f"{at}.norm_feed_forward2", "D", f"{at}.norm_feed_forward2"),
        module(f"{at}.feed_forward2.linear1", "E D", f"{at}.feed_forward2.linear1", bias=bias),
        module(f"{at}.feed_forward2.linear2", "D E", f"{at}.feed_forward2.linear2", bias=bias),
        module(f"{at}.norm_out", "D", f"{at}.norm_out"),
    ]
    return list(chain.from_iterable(rows))


# ---- layouts ----


def squeezed(tensor: np.ndarray) -> np.ndarray:
    """(1, B, P) → (B, P)."""
    return tensor[0]


def channels_last(kernel: np.ndarray) -> np.ndarray:
    """torch (O, I, time, freq) → MLX (O, time, freq, I)."""
    return kernel.transpose(0, 2, 3, 1)


def frequency_major(bands: int) -> Callable[[np.ndarray], np.ndarray]:
    """(D, C·F): reorder columns from c·F + f to f·C + c, the order of flattened channels-last data. bands: F."""

    def reordered(weight: np.ndarray) -> np.ndarray:
        D = len(weight)
        return weight.reshape(D, -1, bands).transpose(0, 2, 1).reshape(D, -1)

    return reordered


def folded_weight(kernel: np.ndarray, scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """A depthwise kernel (D, 1, K) with the batch norm's scale folded in → (D, K, 1)."""
    return (kernel * _gain(scale, variance)[:, None, None]).transpose(0, 2, 1)


def folded_bias(
    scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray, bias: np.ndarray | float = 0.0
) -> np.ndarray:
    """The bias of the folded convolution: the batch norm's shift plus the convolution's own bias, if it has one."""
    return (bias - mean) * _gain(scale, variance) + shift


def _gain(scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return scale / np.sqrt(variance + np.float32(BATCH_NORM_EPS))
