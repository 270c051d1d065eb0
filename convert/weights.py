"""NeMo's tensors → this project's: one table of names, shapes and layout changes.

Shapes are written in symbols; `3D D` means (3·D, D):
    W window samples, B mel bands, P = n_fft/2 + 1
    D encoder width, H heads, A = D/H, E feed-forward width, K convolution kernel, C subsampling channels,
    F mel bands after subsampling
    M decoder width, I feed-forward width, L layers, S longest sequence, V vocabulary rows; N = V + 1 with the CTC blank

An unexpected tensor, a missing one and one with the wrong shape are errors that name it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from convert.checkpoint import is_floating
from convert.errors import TensorError
from model.canary.config import CanaryConfig, DecoderConfig
from model.config import AlignerConfig, EncoderConfig, PreprocessorConfig

BATCH_NORM_EPS = 1e-5
MAX_LAYERS = 256
MAX_SIZE = 2**20
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


class LazyTensor(Protocol):
    """A tensor whose data is read only by `load()`, such as `checkpoint.StoredTensor`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def load(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Row:
    """A converted tensor's name and shape, NeMo's tensors with their shapes, and the function that converts them."""

    target: str
    shape: str
    sources: tuple[tuple[str, str], ...]
    layout: Callable[..., Any]


# ---- layouts: functions from float32 arrays to one array ----


def unchanged(tensor: np.ndarray) -> np.ndarray:
    return tensor


def squeezed(tensor: np.ndarray) -> np.ndarray:
    """(1, B, P) → (B, P)."""
    return tensor[0]


def concatenated(*tensors: np.ndarray) -> np.ndarray:
    """Several (O, I) → one (n·O, I), in the row's order."""
    return np.concatenate(tensors)


def channels_last(kernel: np.ndarray) -> np.ndarray:
    """torch (O, I, time, freq) → MLX (O, time, freq, I)."""
    return kernel.transpose(0, 2, 3, 1)


def pointwise(kernel: np.ndarray) -> np.ndarray:
    """A convolution with kernel size 1, (O, I, 1) or (O, I, 1, 1) → the equivalent linear layer (O, I)."""
    return kernel.reshape(len(kernel), -1)


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


def tied(embedding: np.ndarray, head: np.ndarray) -> np.ndarray:
    """The matrix that both embeds and scores tokens."""
    if not np.array_equal(embedding, head):
        raise TensorError(
            "log_softmax.mlp.layer0.weight differs from the token embedding; only a tied head is supported"
        )
    return embedding


# ---- the table ----


def module(
    target: str, shape: str, *sources: str, stored: str = "", layout: Callable[..., Any] = unchanged, bias: bool = True
) -> list[Row]:
    """The rows of a layer's weight and bias. sources: NeMo's layers; stored: their weights' shape, if it differs."""
    stored = stored or shape
    rows = [Row(f"{target}.weight", shape, tuple((f"{name}.weight", stored) for name in sources), layout)]
    if bias:
        biases = tuple((f"{name}.bias", stored.split()[0]) for name in sources)
        rows.append(Row(f"{target}.bias", shape.split()[0], biases, concatenated if len(sources) > 1 else unchanged))
    return rows


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


def decoder_rows(layers: int) -> list[Row]:
    embedding, decoder = "transf_decoder._embedding", "transf_decoder._decoder"
    tokens, head = f"{embedding}.token_embedding.weight", "log_softmax.mlp.layer0"
    positions = f"{embedding}.position_embedding.pos_enc"
    # All layers' keys and values of the encoded audio in one matrix, so that a single product computes them.
    cross = [f"{decoder}.layers.{n}.second_sub_layer.{net}" for n in range(layers) for net in ("key_net", "value_net")]
    rows = [
        [Row("decoder.token_embedding.weight", "V M", ((tokens, "V M"), (f"{head}.weight", "V M")), tied)],
        [Row("decoder.position_encoding", "S M", ((positions, "S M"),), unchanged)],
        module("decoder.embedding_layer_norm", "M", f"{embedding}.layer_norm"),
        *(decoder_layer_rows(f"decoder.layers.{n}", f"{decoder}.layers.{n}") for n in range(layers)),
        module("decoder.cross_kv", "2LM M", *cross, stored="M M", layout=concatenated),
        module("decoder.final_layer_norm", "M", f"{decoder}.final_layer_norm"),
        [Row("head.bias", "V", ((f"{head}.bias", "V"),), unchanged)],
    ]
    return list(chain.from_iterable(rows))


def decoder_layer_rows(target: str, source: str) -> list[Row]:
    self_attention = [f"{source}.first_sub_layer.{net}" for net in ("query_net", "key_net", "value_net")]
    rows = [
        module(f"{target}.layer_norm_1", "M", f"{source}.layer_norm_1"),
        module(f"{target}.self_attn.linear_qkv", "3M M", *self_attention, stored="M M", layout=concatenated),
        module(f"{target}.self_attn.linear_out", "M M", f"{source}.first_sub_layer.out_projection"),
        module(f"{target}.layer_norm_2", "M", f"{source}.layer_norm_2"),
        module(f"{target}.cross_attn.linear_q", "M M", f"{source}.second_sub_layer.query_net"),
        module(f"{target}.cross_attn.linear_out", "M M", f"{source}.second_sub_layer.out_projection"),
        module(f"{target}.layer_norm_3", "M", f"{source}.layer_norm_3"),
        module(f"{target}.dense_in", "I M", f"{source}.third_sub_layer.dense_in"),
        module(f"{target}.dense_out", "M I", f"{source}.third_sub_layer.dense_out"),
    ]
    return list(chain.from_iterable(rows))


def aligner_head_rows() -> list[Row]:
    return module("head", "N D", "decoder.decoder_layers.0", stored="N D 1", layout=pointwise)


# Not needed once the batch norm is folded.
DROPPED = re.compile(r"encoder\.layers\.\d+\.conv\.batch_norm\.num_batches_tracked")


# ---- the table for one configuration ----


@dataclass(frozen=True)
class Table:
    """The rows for one configuration, and the value of each symbol."""

    rows: tuple[Row, ...]
    sizes: dict[str, int]

    def shape(self, symbols: str) -> tuple[int, ...]:
        """`"3D D"` as numbers."""
        return tuple(
            math.prod(
                int(factor) if factor.isdigit() else self.sizes[factor] for factor in re.findall(r"\d+|[A-Z]", size)
            )
            for size in symbols.split()
        )

    def check(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Raises TensorError naming the first tensor that has the wrong shape, is missing or is unexpected."""
        expected = {name: self.shape(symbols) for row in self.rows for name, symbols in row.sources}
        for name, shape in expected.items():
            if name in tensors and tuple(tensors[name].shape) != shape:
                raise TensorError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
            if name in tensors and not is_floating(tensors[name].dtype):
                raise TensorError(f"{name} has dtype {tensors[name].dtype}, expected floating point")
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise TensorError(f"missing tensor {missing[0]} {expected[missing[0]]}{_and_more(missing)}")
        unexpected = [name for name in tensors if name not in expected and not DROPPED.fullmatch(name)]
        if unexpected:
            shape = tuple(tensors[unexpected[0]].shape)
            raise TensorError(f"unexpected tensor {unexpected[0]} {shape}{_and_more(unexpected)}")

    def with_nemo_names(self) -> "Table":
        """The same tensors under NeMo's names and in NeMo's layouts."""
        sources = {name: symbols for row in self.rows for name, symbols in row.sources}
        rows = tuple(Row(name, symbols, ((name, symbols),), unchanged) for name, symbols in sources.items())
        return Table(rows, self.sizes)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def canary_table(config: CanaryConfig, encoder_only: bool = False) -> Table:
    """The table of a Canary model; with encoder_only, only the preprocessor and the encoder."""
    rows, sizes = _encoder_table(config.preprocessor, config.encoder)
    if encoder_only:
        return Table(tuple(rows), sizes)
    sizes |= _decoder_sizes(config.decoder, config.vocab_size)
    if sizes["D"] != sizes["M"]:
        rows += module("encoder_decoder_proj", "M D", "encoder_decoder_proj")
    return Table((*rows, *decoder_rows(sizes["L"])), sizes)


def aligner_table(config: AlignerConfig) -> Table:
    """The table of canary-1b-v2's aligner."""
    rows, sizes = _encoder_table(config.preprocessor, config.encoder)
    sizes["N"] = _size("vocab_size", config.vocab_size) + 1
    return Table((*rows, *aligner_head_rows()), sizes)


def _encoder_table(preprocessor: PreprocessorConfig, encoder: EncoderConfig) -> tuple[list[Row], dict[str, int]]:
    sizes = {
        "W": _size("preprocessor.window_size", preprocessor.win_length),
        "B": _size("preprocessor.features", preprocessor.features),
        "P": _size("preprocessor.n_fft", preprocessor.n_fft) // 2 + 1,
        "D": _size("encoder.d_model", encoder.d_model),
        "H": _size("encoder.n_heads", encoder.n_heads),
        "K": _size("encoder.conv_kernel_size", encoder.conv_kernel_size),
        "C": _size("encoder.subsampling_conv_channels", encoder.subsampling_conv_channels),
        "F": _size("encoder.feat_in", encoder.feat_in),
    }
    if encoder.feat_in != preprocessor.features:
        raise TensorError(f"encoder.feat_in {encoder.feat_in} must equal preprocessor.features {sizes['B']}")
    if encoder.d_model % encoder.n_heads:
        raise TensorError(f"encoder.d_model {encoder.d_model} must be a multiple of n_heads {encoder.n_heads}")
    sizes["A"] = encoder.d_model // encoder.n_heads
    sizes["E"] = encoder.d_model * _size("encoder.ff_expansion_factor", encoder.ff_expansion_factor)
    for _ in range(int(math.log2(encoder.subsampling_factor))):
        sizes["F"] = (sizes["F"] - 1) // 2 + 1
    rows = preprocessor_rows() + subsampling_rows(sizes["F"])
    for layer in range(_size("encoder.n_layers", encoder.n_layers, MAX_LAYERS)):
        rows += encoder_layer_rows(layer, encoder.use_bias)
    return rows, sizes


def _decoder_sizes(decoder: DecoderConfig, vocab_size: int) -> dict[str, int]:
    return {
        "M": _size("transf_decoder.hidden_size", decoder.hidden_size),
        "I": _size("transf_decoder.inner_size", decoder.inner_size),
        "L": _size("transf_decoder.num_layers", decoder.num_layers, MAX_LAYERS),
        "S": _size("transf_decoder.max_sequence_length", decoder.max_sequence_length),
        "V": _size("vocab_size", vocab_size),
    }


def _size(name: str, value: Any, maximum: int = MAX_SIZE) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= maximum:
        raise TensorError(f"{name}: {value!r} is not an integer from 1 to {maximum}")
    return value


# ---- conversion ----


def dtype_of(target: str, dtype: str) -> str:
    """A target's dtype. The preprocessor stays in float32: a lower precision would lose quiet sounds in log-mel."""
    return "float32" if target.startswith("preprocessor.") else dtype


def convert_tensors(tensors: Mapping[str, LazyTensor], table: Table, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """(target, array) row by row, so that only one row's tensors are in memory at a time.

    dtype: "float32", "bfloat16" or "float16"; `preprocessor.*` is always float32. Arithmetic is float32.
    Raises TensorError if the tensors do not match the table, or if a value is not finite in the dtype.
    """
    table.check(tensors)
    for row in table.rows:
        # A value too large for the dtype becomes infinite, which is an error below.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            result = row.layout(*(tensors[name].load().astype(np.float32, copy=False) for name, _ in row.sources))
            assert result.shape == table.shape(row.shape), row.target
            result = np.ascontiguousarray(result.astype(DTYPES[dtype_of(row.target, dtype)], copy=False))
        if not np.isfinite(result).all():
            raise TensorError(f"{row.sources[0][0]} has a value that is not finite in {dtype}")
        yield row.target, result
