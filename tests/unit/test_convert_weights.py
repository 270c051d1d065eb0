"""The tensor table: converted tensors compute what NeMo's do."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from convert.canary import aligner_table, canary_table
from convert.errors import TensorError
from convert.weights import DROPPED, convert_tensors
from model.canary.config import CanaryConfig
from model.config import AlignerConfig, section_from
from tests import archives

PUBLISHED = {
    "180m-flash": {"n_layers": 17, "d_model": 512, "num_layers": 4, "longest": 1024, "rows": 5248},
    "1b-flash": {"n_layers": 32, "d_model": 1024, "num_layers": 4, "longest": 1024, "rows": 5248},
    "1b": {"n_layers": 24, "d_model": 1024, "num_layers": 24, "longest": 512, "rows": 4128},
    "1b-v2": {"n_layers": 32, "d_model": 1024, "num_layers": 8, "longest": 1024, "rows": 16384},
}


class Loaded:
    """A tensor in memory in place of one in an archive."""

    def __init__(self, tensor: torch.Tensor):
        self._array = tensor.numpy()
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def load(self) -> np.ndarray:
        return self._array


def canary_config(variant: str = "180m-flash", encoder: dict | None = None) -> CanaryConfig:
    nemo = archives.config(variant)
    values = {
        "name": variant,
        "dtype": "float32",
        "prompt_format": nemo["prompt_format"],
        "prompt_defaults": [],
        "languages": ["en"],
        "vocab_size": nemo["head"]["num_classes"],
        "preprocessor": nemo["preprocessor"],
        "encoder": encoder or nemo["encoder"],
        "decoder": nemo["transf_decoder"]["config_dict"],
        "decoding": {},
        "tokenizer": {"type": "bpe", "models": {}},
    }
    return section_from(CanaryConfig, values)


def aligner_config() -> AlignerConfig:
    return section_from(
        AlignerConfig,
        {
            "dtype": "float32",
            "vocab_size": archives.vocabulary_rows("1b-v2"),
            "preprocessor": {},
            "encoder": archives.encoder_config(use_bias=False),
            "tokenizer": {"type": "bpe", "models": {}},
        },
    )


def converted(tensors: dict, config: CanaryConfig | AlignerConfig, dtype: str = "float32") -> dict[str, torch.Tensor]:
    table = canary_table(config) if isinstance(config, CanaryConfig) else aligner_table(config)
    arrays = convert_tensors({name: Loaded(tensor) for name, tensor in tensors.items()}, table, dtype)
    return {name: as_torch(array) for name, array in arrays}


def as_torch(array: np.ndarray) -> torch.Tensor:
    """The same values in the same type; torch does not take bfloat16 from numpy."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.fixture(scope="module")
def nemo() -> dict[str, torch.Tensor]:
    return archives.tensors("180m-flash")


@pytest.fixture(scope="module")
def weights(nemo) -> dict[str, torch.Tensor]:
    """The same tensors, converted."""
    return converted(nemo, canary_config())


def test_the_table_has_as_many_tensors_and_parameters_as_each_published_model():
    counts = {}
    for variant, size in PUBLISHED.items():
        config = canary_config(variant)
        encoder = {**archives.encoder_config(), "n_layers": size["n_layers"], "d_model": size["d_model"], "n_heads": 8}
        decoder = archives.config(variant)["transf_decoder"]["config_dict"] | {
            "hidden_size": 1024,
            "inner_size": 4096,
            "num_layers": size["num_layers"],
            "max_sequence_length": size["longest"],
        }
        values = vars(config) | {"preprocessor": {}, "decoding": {}, "tokenizer": {"type": "bpe", "models": {}}}
        encoder["subsampling_conv_channels"] = 256
        table = canary_table(
            section_from(CanaryConfig, values | {"encoder": encoder, "decoder": decoder, "vocab_size": size["rows"]})
        )
        sources = {name: table.shape(symbols) for row in table.rows for name, symbols in row.sources}
        buffers = ("preprocessor.", "pos_enc", "running_")
        parameters = {name: shape for name, shape in sources.items() if not any(part in name for part in buffers)}
        del parameters["log_softmax.mlp.layer0.weight"]  # the embedding's
        counts[variant] = (len(sources) + size["n_layers"], sum(map(math.prod, parameters.values())))
    assert counts == {
        "180m-flash": (808, 182_643_840),
        "1b-flash": (1406, 883_554_432),
        "1b": (1606, 1_016_677_408),
        "1b-v2": (1510, 962_155_520),
    }


@pytest.mark.parametrize("variant", archives.VARIANTS)
def test_every_tensor_of_every_variant_is_used_or_dropped_by_name(variant):
    tensors = archives.tensors(variant)
    table = canary_table(canary_config(variant))
    used = {name for row in table.rows for name, _ in row.sources}
    assert {name for name in tensors if name not in used} == {name for name in tensors if DROPPED.fullmatch(name)}
    assert len(converted(tensors, canary_config(variant))) == len(table.rows)


def test_the_folded_depthwise_convolution_equals_the_convolution_and_its_batch_norm(nemo, weights):
    at = "encoder.layers.1.conv"
    sound = torch.randn(2, archives.D, 30, generator=torch.Generator().manual_seed(3))
    expected = functional.conv1d(
        sound, nemo[f"{at}.depthwise_conv.weight"], nemo[f"{at}.depthwise_conv.bias"], padding=4, groups=archives.D
    )
    norm = {key: nemo[f"{at}.batch_norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
    expected = functional.batch_norm(expected, **norm, eps=1e-5)
    weight, bias = weights[f"{at}.depthwise_conv.weight"], weights[f"{at}.depthwise_conv.bias"]
    actual = functional.conv1d(sound, weight.transpose(1, 2), bias, padding=4, groups=archives.D)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_the_subsampling_output_takes_channels_last_data(nemo, weights):
    nemo_data = torch.randn(archives.CHANNELS, 16, generator=torch.Generator().manual_seed(4))
    expected = nemo["encoder.pre_encode.out.weight"] @ nemo_data.flatten()
    torch.testing.assert_close(weights["encoder.subsampling.out.weight"] @ nemo_data.T.flatten(), expected)


def test_the_input_channel_of_convolution_kernels_is_moved_last(nemo, weights):
    assert torch.equal(
        weights["encoder.subsampling.conv_in.weight"][:, 1, 2, 0], nemo["encoder.pre_encode.conv.0.weight"][:, 0, 1, 2]
    )
    assert torch.equal(
        weights["encoder.subsampling.depthwise2.weight"][:, 0, 2, 0],
        nemo["encoder.pre_encode.conv.5.weight"][:, 0, 0, 2],
    )
    assert torch.equal(
        weights["encoder.subsampling.pointwise2.weight"], nemo["encoder.pre_encode.conv.6.weight"][:, :, 0, 0]
    )
    at = "encoder.layers.0.conv.pointwise_conv1.weight"
    assert torch.equal(weights[at], nemo[at][:, :, 0])


def test_queries_keys_and_values_are_concatenated_in_that_order(nemo, weights):
    d, m = archives.D, archives.HIDDEN
    for part, name in enumerate("qkv"):
        fused = weights["encoder.layers.1.self_attn.linear_qkv.weight"][part * d : (part + 1) * d]
        assert torch.equal(fused, nemo[f"encoder.layers.1.self_attn.linear_{name}.weight"])
    for part, name in enumerate(("query_net", "key_net", "value_net")):
        fused = weights["decoder.layers.1.self_attn.linear_qkv.bias"][part * m : (part + 1) * m]
        assert torch.equal(fused, nemo[f"transf_decoder._decoder.layers.1.first_sub_layer.{name}.bias"])


def test_the_cross_attention_keys_and_values_of_all_layers_are_one_matrix(nemo, weights):
    m = archives.HIDDEN
    for part, name in enumerate(("0:key_net", "0:value_net", "1:key_net", "1:value_net")):
        layer, net = name.split(":")
        stored = f"transf_decoder._decoder.layers.{layer}.second_sub_layer.{net}"
        assert torch.equal(weights["decoder.cross_kv.weight"][part * m : (part + 1) * m], nemo[f"{stored}.weight"])
        assert torch.equal(weights["decoder.cross_kv.bias"][part * m : (part + 1) * m], nemo[f"{stored}.bias"])


def test_there_is_a_projection_only_if_encoder_and_decoder_differ_in_width(weights):
    assert weights["encoder_decoder_proj.weight"].shape == (archives.HIDDEN, archives.D)
    assert "encoder_decoder_proj.weight" not in converted(archives.tensors("1b"), canary_config("1b"))


def test_an_encoder_without_biases_still_has_the_folded_bias():
    nemo = archives.aligner_tensors()
    weights = converted(nemo, aligner_config())
    at, norm = "encoder.layers.0.conv.depthwise_conv", "encoder.layers.0.conv.batch_norm"
    gain = nemo[f"{norm}.weight"] / (nemo[f"{norm}.running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(weights[f"{at}.bias"], nemo[f"{norm}.bias"] - nemo[f"{norm}.running_mean"] * gain)
    assert "encoder.layers.0.feed_forward1.linear1.bias" not in weights
    assert "encoder.layers.0.norm_out.bias" in weights
    assert torch.equal(weights["head.weight"], nemo["decoder.decoder_layers.0.weight"][:, :, 0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_rounds_once_and_leaves_the_preprocessor_in_float32(nemo, weights, dtype):
    lower = converted(nemo, canary_config(), dtype)
    folded = "encoder.layers.0.conv.depthwise_conv.weight"
    assert torch.equal(lower[folded], weights[folded].to(getattr(torch, dtype)))
    assert lower["preprocessor.fb"].dtype == torch.float32
    assert {value.dtype for name, value in lower.items() if "preproc" not in name} == {getattr(torch, dtype)}


def test_a_number_too_large_for_float16_is_an_error_that_names_its_tensor(nemo):
    large = nemo | {"log_softmax.mlp.layer0.bias": nemo["log_softmax.mlp.layer0.bias"] + 1e6}
    with pytest.raises(TensorError, match=r"log_softmax.mlp.layer0.bias has a value that is not finite in float16"):
        converted(large, canary_config(), "float16")


def test_a_head_that_is_not_tied_is_an_error(nemo):
    untied = nemo | {"log_softmax.mlp.layer0.weight": nemo["log_softmax.mlp.layer0.weight"] + 1}
    with pytest.raises(TensorError, match="differs from the token embedding"):
        converted(untied, canary_config())


def test_an_unexpected_tensor_is_an_error_that_names_it(nemo):
    with pytest.raises(TensorError, match=r"^unexpected tensor encoder.extra \(2, 3\)$"):
        converted(nemo | {"encoder.extra": torch.zeros(2, 3)}, canary_config())


def test_a_missing_tensor_is_an_error_that_names_it_and_counts_the_others(nemo):
    without = {name: value for name, value in nemo.items() if "layers.1.norm_out" not in name or "transf" in name}
    message = r"^missing tensor encoder.layers.1.norm_out.weight \(32,\) \(and 1 more\)$"
    with pytest.raises(TensorError, match=message):
        converted(without, canary_config())


def test_a_tensor_of_the_wrong_shape_is_an_error_with_both_shapes(nemo):
    wrong = nemo | {"encoder.layers.0.self_attn.pos_bias_u": torch.zeros(8, 4)}
    with pytest.raises(TensorError, match=r"pos_bias_u has shape \(8, 4\), expected \(4, 8\)"):
        converted(wrong, canary_config())


def test_an_integer_tensor_is_an_error(nemo):
    with pytest.raises(TensorError, match=r"pos_bias_u has dtype int64, expected floating point"):
        converted(nemo | {"encoder.layers.0.self_attn.pos_bias_u": torch.zeros(4, 8).long()}, canary_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 10**9}, "encoder.n_layers: 1000000000 is not an integer from 1 to 256"),
        ({"d_model": 0}, "encoder.d_model: 0 is not an integer from 1"),
        ({"n_heads": 5}, "encoder.d_model 32 must be a multiple of n_heads 5"),
        ({"feat_in": 80}, "encoder.feat_in 80 must equal preprocessor.features 128"),
    ],
)
def test_invalid_sizes_are_errors_before_a_table_is_built(change, message):
    with pytest.raises(TensorError, match=message):
        canary_table(canary_config(encoder=archives.encoder_config(**change)))
