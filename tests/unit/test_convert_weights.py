"""The tensor table: what each converted tensor computes is what NeMo's computes."""

import math

import pytest
import torch
from torch.nn import functional

from convert.errors import TensorError
from convert.weights import DROPPED, aligner_table, canary_table, convert_tensors
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
    """A tensor in memory that stands for one in an archive."""

    def __init__(self, tensor: torch.Tensor):
        self.shape, self.dtype, self._tensor = tuple(tensor.shape), tensor.dtype, tensor

    def load(self) -> torch.Tensor:
        return self._tensor


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
    return dict(convert_tensors({name: Loaded(tensor) for name, tensor in tensors.items()}, table, dtype))


@pytest.fixture(scope="module")
def nemo() -> dict[str, torch.Tensor]:
    return archives.tensors("180m-flash")


@pytest.fixture(scope="module")
def ours(nemo) -> dict[str, torch.Tensor]:
    return converted(nemo, canary_config())


def test_the_table_asks_for_as_many_tensors_and_parameters_as_each_published_model_has():
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


def test_the_folded_depthwise_convolution_is_the_convolution_and_its_batch_norm(nemo, ours):
    at = "encoder.layers.1.conv"
    sound = torch.randn(2, archives.D, 30, generator=torch.Generator().manual_seed(3))
    expected = functional.conv1d(
        sound, nemo[f"{at}.depthwise_conv.weight"], nemo[f"{at}.depthwise_conv.bias"], padding=4, groups=archives.D
    )
    norm = {key: nemo[f"{at}.batch_norm.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
    expected = functional.batch_norm(expected, **norm, eps=1e-5)
    weight, bias = ours[f"{at}.depthwise_conv.weight"], ours[f"{at}.depthwise_conv.bias"]
    got = functional.conv1d(sound, weight.transpose(1, 2), bias, padding=4, groups=archives.D)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_subsampling_output_takes_channels_last_data(nemo, ours):
    nemo_data = torch.randn(archives.CHANNELS, 16, generator=torch.Generator().manual_seed(4))
    expected = nemo["encoder.pre_encode.out.weight"] @ nemo_data.flatten()
    torch.testing.assert_close(ours["encoder.subsampling.out.weight"] @ nemo_data.T.flatten(), expected)


def test_convolution_kernels_move_their_input_channel_last(nemo, ours):
    assert torch.equal(
        ours["encoder.subsampling.conv_in.weight"][:, 1, 2, 0], nemo["encoder.pre_encode.conv.0.weight"][:, 0, 1, 2]
    )
    assert torch.equal(
        ours["encoder.subsampling.depthwise2.weight"][:, 0, 2, 0], nemo["encoder.pre_encode.conv.5.weight"][:, 0, 0, 2]
    )
    assert torch.equal(
        ours["encoder.subsampling.pointwise2.weight"], nemo["encoder.pre_encode.conv.6.weight"][:, :, 0, 0]
    )
    at = "encoder.layers.0.conv.pointwise_conv1.weight"
    assert torch.equal(ours[at], nemo[at][:, :, 0])


def test_queries_keys_and_values_are_joined_in_that_order(nemo, ours):
    d, m = archives.D, archives.HIDDEN
    for part, name in enumerate("qkv"):
        fused = ours["encoder.layers.1.self_attn.linear_qkv.weight"][part * d : (part + 1) * d]
        assert torch.equal(fused, nemo[f"encoder.layers.1.self_attn.linear_{name}.weight"])
    for part, name in enumerate(("query_net", "key_net", "value_net")):
        fused = ours["decoder.layers.1.self_attn.linear_qkv.bias"][part * m : (part + 1) * m]
        assert torch.equal(fused, nemo[f"transf_decoder._decoder.layers.1.first_sub_layer.{name}.bias"])


def test_the_cross_attention_keys_and_values_of_all_layers_are_one_matrix(nemo, ours):
    m = archives.HIDDEN
    for part, name in enumerate(("0:key_net", "0:value_net", "1:key_net", "1:value_net")):
        layer, net = name.split(":")
        stored = f"transf_decoder._decoder.layers.{layer}.second_sub_layer.{net}"
        assert torch.equal(ours["decoder.cross_kv.weight"][part * m : (part + 1) * m], nemo[f"{stored}.weight"])
        assert torch.equal(ours["decoder.cross_kv.bias"][part * m : (part + 1) * m], nemo[f"{stored}.bias"])


def test_the_projection_is_there_only_when_the_widths_differ(ours):
    assert ours["encoder_decoder_proj.weight"].shape == (archives.HIDDEN, archives.D)
    assert "encoder_decoder_proj.weight" not in converted(archives.tensors("1b"), canary_config("1b"))


def test_an_encoder_without_biases_still_has_the_folded_one():
    nemo = archives.aligner_tensors()
    ours = converted(nemo, aligner_config())
    at, norm = "encoder.layers.0.conv.depthwise_conv", "encoder.layers.0.conv.batch_norm"
    gain = nemo[f"{norm}.weight"] / (nemo[f"{norm}.running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(ours[f"{at}.bias"], nemo[f"{norm}.bias"] - nemo[f"{norm}.running_mean"] * gain)
    assert "encoder.layers.0.feed_forward1.linear1.bias" not in ours
    assert "encoder.layers.0.norm_out.bias" in ours
    assert torch.equal(ours["head.weight"], nemo["decoder.decoder_layers.0.weight"][:, :, 0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_rounds_once_and_spares_the_preprocessor(nemo, ours, dtype):
    lower = converted(nemo, canary_config(), dtype)
    fold = "encoder.layers.0.conv.depthwise_conv.weight"
    assert torch.equal(lower[fold], ours[fold].to(getattr(torch, dtype)))
    assert lower["preprocessor.fb"].dtype == torch.float32
    assert {value.dtype for name, value in lower.items() if "preproc" not in name} == {getattr(torch, dtype)}


def test_a_number_too_large_for_float16_is_an_error_that_names_its_tensor(nemo):
    large = nemo | {"log_softmax.mlp.layer0.bias": nemo["log_softmax.mlp.layer0.bias"] + 1e6}
    with pytest.raises(TensorError, match=r"log_softmax.mlp.layer0.bias holds a number that is not finite as float16"):
        converted(large, canary_config(), "float16")


def test_a_head_that_is_not_tied_is_an_error(nemo):
    untied = nemo | {"log_softmax.mlp.layer0.weight": nemo["log_softmax.mlp.layer0.weight"] + 1}
    with pytest.raises(TensorError, match="differs from the token embedding"):
        converted(untied, canary_config())


def test_a_tensor_without_a_row_is_an_error_that_names_it(nemo):
    with pytest.raises(TensorError, match=r"^encoder.extra \(2, 3\) is not a tensor of this model$"):
        converted(nemo | {"encoder.extra": torch.zeros(2, 3)}, canary_config())


def test_a_missing_tensor_is_an_error_that_names_it_and_counts_the_others(nemo):
    without = {name: value for name, value in nemo.items() if "layers.1.norm_out" not in name or "transf" in name}
    message = r"^encoder.layers.1.norm_out.weight \(32,\) is missing \(and 1 more\)$"
    with pytest.raises(TensorError, match=message):
        converted(without, canary_config())


def test_a_misshapen_tensor_is_an_error_with_both_shapes(nemo):
    bent = nemo | {"encoder.layers.0.self_attn.pos_bias_u": torch.zeros(8, 4)}
    with pytest.raises(TensorError, match=r"pos_bias_u has the shape \(8, 4\), expected \(4, 8\)"):
        converted(bent, canary_config())


def test_a_tensor_of_whole_numbers_is_an_error(nemo):
    with pytest.raises(TensorError, match=r"pos_bias_u holds torch.int64, expected floating-point numbers"):
        converted(nemo | {"encoder.layers.0.self_attn.pos_bias_u": torch.zeros(4, 8).long()}, canary_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 10**9}, "encoder.n_layers: 1000000000 is not a whole number from 1 to 256"),
        ({"d_model": "wide"}, "encoder.d_model: 'wide' is not a whole number"),
        ({"n_heads": 5}, "encoder.d_model 32 is not a multiple of n_heads 5"),
        ({"feat_in": 80}, "encoder.feat_in 80 differs from preprocessor.features 128"),
    ],
)
def test_impossible_sizes_are_refused_before_a_table_is_made(change, message):
    with pytest.raises(TensorError, match=message):
        canary_table(canary_config(encoder=archives.encoder_config(**change)))
