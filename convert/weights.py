"""NeMo's tensors → this project's: one table of names, shapes and layout changes.

Shapes are written in symbols, `3D D` being (3·D, D):
    W window samples, B mel bands, P = n_fft/2 + 1
    D encoder width, H heads, A = D/H, E feed-forward width, K convolution kernel, C subsampling channels, F bands left
    M decoder width, I feed-forward width, L layers, S longest sequence, V vocabulary rows; N = V + 1 with the CTC blank

A tensor that no row asks for, one that is missing, and one of another shape are errors that name it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from convert.errors import TensorError
from model.canary.config import CanaryConfig, DecoderConfig
from model.config import AlignerConfig, EncoderConfig, PreprocessorConfig

BATCH_NORM_EPS = 1e-5
MAX_LAYERS = 256
MAX_SIZE = 2**20


class Stored(Protocol):
    """A tensor that is read when it is loaded, as `nemo.StoredTensor`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def load(self) -> Any: ...


@dataclass(frozen=True)
class Row:
    """target with its shape ← NeMo's tensors with theirs, through `layout`, a function of torch tensors."""

    target: str
    shape: str
    sources: tuple[tuple[str, str], ...]
    layout: Callable[..., Any]


# ---- layouts: float32 torch tensors in, one out ----


def same(tensor: Any) -> Any:
    return tensor


def squeezed(tensor: Any) -> Any:
    """(1, B, P) → (B, P)."""
    return tensor[0]


def joined(*tensors: Any) -> Any:
    """Several (O, I) → one (n·O, I), in the order of the row."""
    import torch

    return torch.cat(tensors)


def channels_last(kernel: Any) -> Any:
    """torch (O, I, time, freq) → MLX (O, time, freq, I)."""
    return kernel.permute(0, 2, 3, 1)


def pointwise(kernel: Any) -> Any:
    """A convolution of kernel 1, (O, I, 1) or (O, I, 1, 1) → the linear layer (O, I) that it is."""
    return kernel.flatten(1)


def frequency_major(bands: int) -> Callable[[Any], Any]:
    """(D, C·F) with columns c·F + f → f·C + c, as channels-last data is flattened. bands: F."""
    return lambda weight: weight.unflatten(1, (-1, bands)).transpose(1, 2).flatten(1)


def folded_weight(kernel: Any, scale: Any, variance: Any) -> Any:
    """Depthwise (D, 1, K) with the batch norm's scale folded in → (D, K, 1)."""
    return (kernel * _gain(scale, variance)[:, None, None]).transpose(1, 2)


def folded_bias(scale: Any, shift: Any, mean: Any, variance: Any, bias: Any = 0.0) -> Any:
    """The batch norm's shift with the convolution's own bias, where it has one, folded in."""
    return (bias - mean) * _gain(scale, variance) + shift


def _gain(scale: Any, variance: Any) -> Any:
    return scale / (variance + BATCH_NORM_EPS).sqrt()


def tied(embedding: Any, head: Any) -> Any:
    """The one matrix that embeds tokens and scores them."""
    import torch

    if not torch.equal(embedding, head):
        raise TensorError(
            "log_softmax.mlp.layer0.weight differs from the token embedding; only a tied head is supported"
        )
    return embedding


# ---- the table ----


def module(
    target: str, shape: str, *nemo: str, stored: str = "", layout: Callable[..., Any] = same, bias: bool = True
) -> list[Row]:
    """The weight of a layer, stored in NeMo with another shape or in several parts, and its bias."""
    stored = stored or shape
    rows = [Row(f"{target}.weight", shape, tuple((f"{name}.weight", stored) for name in nemo), layout)]
    if bias:
        parts = tuple((f"{name}.bias", stored.split()[0]) for name in nemo)
        rows.append(Row(f"{target}.bias", shape.split()[0], parts, joined if len(nemo) > 1 else same))
    return rows


def preprocessor_rows() -> list[Row]:
    return [
        Row("preprocessor.window", "W", (("preprocessor.featurizer.window", "W"),), same),
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
    """bias: NeMo's `use_bias`, of the linear and convolution layers; norms always have theirs."""
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
        module(f"{attention}.linear_qkv", "3D D", *query_key_value, stored="D D", layout=joined, bias=bias),
        module(f"{attention}.linear_pos", "D D", f"{attention}.linear_pos", bias=False),
        [Row(f"{attention}.pos_bias_u", "H A", ((f"{attention}.pos_bias_u", "H A"),), same)],
        [Row(f"{attention}.pos_bias_v", "H A", ((f"{attention}.pos_bias_v", "H A"),), same)],
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
    # Every layer's keys and values of the encoded audio, so that one product computes them all.
    cross = [f"{decoder}.layers.{n}.second_sub_layer.{net}" for n in range(layers) for net in ("key_net", "value_net")]
    rows = [
        [Row("decoder.token_embedding.weight", "V M", ((tokens, "V M"), (f"{head}.weight", "V M")), tied)],
        [Row("decoder.position_encoding", "S M", ((positions, "S M"),), same)],
        module("decoder.embedding_layer_norm", "M", f"{embedding}.layer_norm"),
        *(decoder_layer_rows(f"decoder.layers.{n}", f"{decoder}.layers.{n}") for n in range(layers)),
        module("decoder.cross_kv", "2LM M", *cross, stored="M M", layout=joined),
        module("decoder.final_layer_norm", "M", f"{decoder}.final_layer_norm"),
        [Row("head.bias", "V", ((f"{head}.bias", "V"),), same)],
    ]
    return list(chain.from_iterable(rows))


def decoder_layer_rows(to: str, of: str) -> list[Row]:
    self_attention = [f"{of}.first_sub_layer.{net}" for net in ("query_net", "key_net", "value_net")]
    rows = [
        module(f"{to}.layer_norm_1", "M", f"{of}.layer_norm_1"),
        module(f"{to}.self_attn.linear_qkv", "3M M", *self_attention, stored="M M", layout=joined),
        module(f"{to}.self_attn.linear_out", "M M", f"{of}.first_sub_layer.out_projection"),
        module(f"{to}.layer_norm_2", "M", f"{of}.layer_norm_2"),
        module(f"{to}.cross_attn.linear_q", "M M", f"{of}.second_sub_layer.query_net"),
        module(f"{to}.cross_attn.linear_out", "M M", f"{of}.second_sub_layer.out_projection"),
        module(f"{to}.layer_norm_3", "M", f"{of}.layer_norm_3"),
        module(f"{to}.dense_in", "I M", f"{of}.third_sub_layer.dense_in"),
        module(f"{to}.dense_out", "M I", f"{of}.third_sub_layer.dense_out"),
    ]
    return list(chain.from_iterable(rows))


def aligner_head_rows() -> list[Row]:
    return module("head", "N D", "decoder.decoder_layers.0", stored="N D 1", layout=pointwise)


# In the archive, of no use once the batch norm is folded.
DROPPED = re.compile(r"encoder\.layers\.\d+\.conv\.batch_norm\.num_batches_tracked")


# ---- the table for one configuration ----


@dataclass(frozen=True)
class Table:
    """The rows for one configuration, and what its symbols stand for."""

    rows: tuple[Row, ...]
    sizes: dict[str, int]

    def shape(self, symbols: str) -> tuple[int, ...]:
        """`"3D D"` in numbers."""
        return tuple(
            math.prod(
                int(factor) if factor.isdigit() else self.sizes[factor] for factor in re.findall(r"\d+|[A-Z]", size)
            )
            for size in symbols.split()
        )

    def check(self, tensors: Mapping[str, Stored]) -> None:
        """Raises TensorError naming the first tensor that is misshapen, missing or unknown."""
        expected = {name: self.shape(symbols) for row in self.rows for name, symbols in row.sources}
        for name, shape in expected.items():
            if name in tensors and tuple(tensors[name].shape) != shape:
                raise TensorError(f"{name} has the shape {tuple(tensors[name].shape)}, expected {shape}")
            if name in tensors and not tensors[name].dtype.is_floating_point:
                raise TensorError(f"{name} holds {tensors[name].dtype}, expected floating-point numbers")
        missing = [name for name in expected if name not in tensors]
        if missing:
            raise TensorError(f"{missing[0]} {expected[missing[0]]} is missing{_and_more(missing)}")
        unknown = [name for name in tensors if name not in expected and not DROPPED.fullmatch(name)]
        if unknown:
            shape = tuple(tensors[unknown[0]].shape)
            raise TensorError(f"{unknown[0]} {shape} is not a tensor of this model{_and_more(unknown)}")

    def preserved(self) -> "Table":
        """The same tensors under NeMo's names, in NeMo's layouts."""
        kept = {name: symbols for row in self.rows for name, symbols in row.sources}
        rows = tuple(Row(name, symbols, ((name, symbols),), same) for name, symbols in kept.items())
        return Table(rows, self.sizes)


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def canary_table(config: CanaryConfig, encoder_only: bool = False) -> Table:
    """The table of a Canary model; with encoder_only, without projection, decoder and head."""
    rows, sizes = _encoder_table(config.preprocessor, config.encoder)
    if encoder_only:
        return Table(tuple(rows), sizes)
    sizes |= _decoder_sizes(config.decoder, config.vocab_size)
    if sizes["D"] != sizes["M"]:
        rows += module("encoder_decoder_proj", "M D", "encoder_decoder_proj")
    return Table((*rows, *decoder_rows(sizes["L"])), sizes)


def aligner_table(config: AlignerConfig) -> Table:
    """The table of 1b-v2's timestamps model."""
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
        raise TensorError(f"encoder.feat_in {encoder.feat_in} differs from preprocessor.features {sizes['B']}")
    if encoder.d_model % encoder.n_heads:
        raise TensorError(f"encoder.d_model {encoder.d_model} is not a multiple of n_heads {encoder.n_heads}")
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


def _size(name: str, value: Any, most: int = MAX_SIZE) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise TensorError(f"{name}: {value!r} is not a whole number from 1 to {most}")
    return value


# ---- the tensors themselves ----


def dtype_of(target: str, dtype: str) -> str:
    """The type a target is stored in. The preprocessor's stay float32: log-mel in less loses quiet sounds."""
    return "float32" if target.startswith("preprocessor.") else dtype


def convert_tensors(tensors: Mapping[str, Stored], table: Table, dtype: str) -> Iterator[tuple[str, Any]]:
    """(target, torch tensor) row by row, so that only one row's tensors are in memory at a time.

    Arithmetic is float32; dtype is "float32", "bfloat16" or "float16", except for `preprocessor.*`, float32.
    Raises TensorError for tensors that do not fit the table, and for a number that is not finite in the dtype.
    """
    import torch

    table.check(tensors)
    for row in table.rows:
        result = row.layout(*(tensors[name].load().float() for name, _ in row.sources))
        assert tuple(result.shape) == table.shape(row.shape), row.target
        result = result.to(getattr(torch, dtype_of(row.target, dtype))).contiguous()
        if not torch.isfinite(result).all():
            raise TensorError(f"{row.sources[0][0]} holds a number that is not finite as {dtype}")
        yield row.target, result
