"""Packed weights: written as asked, read strictly, and close to what they stand for."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.convert import ConversionConfig, convert
from convert.quantize import is_large
from model.canary.config import CanaryConfig
from model.canary.model import CanaryModel
from model.config import ConfigError, QuantizationConfig, WeightsError, read_config
from model.cpu import int8
from model.cpu.products import ProductEmbedding, ProductLinear
from tests import archives

# The encoder is 32 wide, which groups of 32 fill; the decoder 48, which they do not, but for its inner layer of 192.
PACKED = "encoder.layers.0.feed_forward1.linear1"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))
    # The small archives' tokenizers have no padding; nothing here writes text.
    monkeypatch.setattr("model.canary.model.load_tokenizer", lambda *_: None)


def converted(folder: Path, **options) -> Path:
    folder.mkdir(exist_ok=True)
    archive = archives.tiny_archive(folder)
    return convert(ConversionConfig(source=archive, output=folder / "out", **options))


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    config = ConversionConfig(source=archives.tiny_archive(folder), output=folder / "out", quantize=8, group_size=32)
    return convert(config, folder / "cache")


@pytest.fixture
def packed(tmp_path, packed_once) -> Path:
    """A copy, which the test may change."""
    return shutil.copytree(packed_once, tmp_path / "packed" / "out")


def mel() -> mx.array:
    return mx.array(np.random.default_rng(1).standard_normal((1, 80, 128)).astype(np.float32))


def rewrite(folder: Path, **changed: np.ndarray) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path) | {name.replace("__", "."): value for name, value in changed.items()}
    save_file(tensors, path)


def configured(folder: Path, quantization: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization": quantization}))
    return folder


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_weight_is_whole_numbers_with_a_scale_and_an_offset_a_group(tmp_path, bits):
    folder = converted(tmp_path, quantize=bits, group_size=32)
    weights = load_file(folder / "model.safetensors")
    whole = archives.tensors("180m-flash")[f"{PACKED}.weight"].numpy()
    outputs, inputs = whole.shape
    assert weights[f"{PACKED}.weight"].dtype == np.uint32
    assert weights[f"{PACKED}.weight"].shape == (outputs, inputs * bits // 32)
    assert weights[f"{PACKED}.scales"].shape == weights[f"{PACKED}.biases"].shape == (outputs, inputs // 32)
    parts = [mx.array(weights[f"{PACKED}.{part}"]) for part in ("weight", "scales", "biases")]
    off = np.abs(np.array(mx.dequantize(*parts, 32, bits)) - whole)
    groups = whole.reshape(outputs, -1, 32)
    step = (groups.max(-1) - groups.min(-1)).max() / (2**bits - 1)
    assert 0 < off.max() <= step
    assert read_config(folder, CanaryConfig).quantization == QuantizationConfig(bits, 32)


def test_embedding_norms_subsampling_and_positions_are_never_packed():
    kept = [
        "decoder.token_embedding.weight",
        "decoder.position_encoding",
        "decoder.layers.0.layer_norm_1.weight",
        "encoder.subsampling.out.weight",
        "encoder.subsampling.pointwise1.weight",
        "encoder.layers.0.self_attn.linear_pos.weight",
        "encoder.layers.0.conv.depthwise_conv.weight",
        "encoder.layers.0.self_attn.linear_qkv.bias",
        "encoder_decoder_proj.weight",
        "head.bias",
    ]
    assert [name for name in kept if is_large(name)] == []
    assert is_large("decoder.cross_kv.weight")
    assert is_large("encoder.layers.16.conv.pointwise_conv2.weight")


def test_layers_that_groups_do_not_fill_are_kept_which_is_said(tmp_path, caplog):
    folder = converted(tmp_path, quantize=8, group_size=32)
    weights = load_file(folder / "model.safetensors")
    kept = {name for name in weights if is_large(name) and weights[name].dtype == np.float32}
    decoder = {name for name in weights if is_large(name) and name.startswith("decoder.")}
    assert kept == {name for name in decoder if not name.endswith("dense_out.weight")}
    assert "decoder.cross_kv.weight" in kept
    assert f"{len(kept)} of " in caplog.text
    assert "groups of 32 do not fill a row of decoder.cross_kv.weight (192, 48)" in caplog.text


def test_scales_are_stored_in_the_chosen_precision(tmp_path):
    weights = mx.load(str(converted(tmp_path, quantize=4, group_size=32, dtype="bfloat16") / "model.safetensors"))
    assert weights[f"{PACKED}.scales"].dtype == weights[f"{PACKED}.biases"].dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group_size": 32}, "only with quantize"),
        ({"quantize": 8, "preserve_keys": True}, "exclude each other"),
        ({"quantize": 5}, "4 or 8"),
        ({"quantize": 8, "group_size": 16}, "32, 64 or 128"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        ConversionConfig(source=tmp_path, **options)


@pytest.fixture
def cpu(monkeypatch):
    """Whatever this machine has, compute as on a CPU."""
    monkeypatch.setattr("model.arrays.on_cpu", lambda: True)
    monkeypatch.setenv("CANARY_ARRAYS", "numpy")


@pytest.fixture
def slow_cpu(monkeypatch, cpu):
    """A CPU without instructions for 8-bit products."""
    monkeypatch.setattr("model.cpu.int8._instructions", lambda: {"avx2", "avx512f"})


@pytest.fixture
def fast_cpu(monkeypatch, cpu):
    monkeypatch.setattr("model.cpu.int8._instructions", lambda: {"avx2", "avx_vnni"})


@pytest.mark.usefixtures("slow_cpu")
def test_a_slow_cpu_unpacks_which_is_said_and_computes_what_the_packed_numbers_stand_for(packed, caplog):
    canary = CanaryModel.load(packed, "float32")
    assert "layers of 8 bits are unpacked" in caplog.text
    assert not [layer for layer in canary.modules() if isinstance(layer, nn.QuantizedLinear)]
    weights = load_file(packed / "model.safetensors")
    parts = [mx.array(weights[f"{PACKED}.{part}"]) for part in ("weight", "scales", "biases")]
    linear = canary.encoder.layers[0].feed_forward1.linear1
    np.testing.assert_array_equal(linear.weight, np.array(mx.dequantize(*parts, 32, 8)))


@pytest.mark.usefixtures("fast_cpu")
def test_a_fast_cpu_computes_in_8_bits_what_the_packed_numbers_stand_for(packed, caplog, monkeypatch):
    caplog.set_level("INFO", "model")
    canary = CanaryModel.load(packed, "float32")
    assert "18 layers of 8 bits and 1 of more are computed in 8 bits" in caplog.text
    replaced = {name for name, layer in canary.named_modules() if isinstance(layer, ProductLinear)}
    weights = load_file(packed / "model.safetensors")
    assert replaced == {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    found = canary.encode(mel())
    monkeypatch.setattr("model.cpu.int8._instructions", set)
    unpacked = CanaryModel.load(packed, "float32").encode(mel())
    assert 0 < mx.abs(found - unpacked).mean() < 0.02 * mx.abs(unpacked).mean()


@pytest.mark.parametrize("on_cpu", [False, True], ids=["a GPU", "as a GPU, on a CPU"])
@pytest.mark.usefixtures("slow_cpu")
def test_a_gpu_computes_with_packed_numbers_and_gets_the_same(packed, monkeypatch, caplog, on_cpu):
    unpacked = CanaryModel.load(packed, "float32")
    caplog.clear()
    monkeypatch.setattr("model.arrays.on_cpu", lambda: on_cpu)
    monkeypatch.setenv("CANARY_ARRAYS", "mlx")
    as_is = CanaryModel.load(packed, "float32")
    assert isinstance(as_is.encoder.layers[0].feed_forward1.linear1, nn.QuantizedLinear)
    assert isinstance(as_is.decoder.layers[0].self_attn.linear_qkv, nn.Linear)
    assert not caplog.text
    difference = mx.abs(as_is.encode(mel()) - unpacked.encode(mel())).max().item()
    assert difference < 1e-4


@pytest.mark.usefixtures("slow_cpu")
def test_eight_bits_change_less_than_four(tmp_path):
    whole = CanaryModel.load(converted(tmp_path / "whole"), "float32").encode(mel())
    off = [
        mx.abs(
            CanaryModel.load(converted(tmp_path / f"{bits}", quantize=bits, group_size=32), "float32").encode(mel())
            - whole
        )
        for bits in (8, 4)
    ]
    eight, four = (each.mean().item() for each in off)
    assert 0 < eight < four / 4
    assert eight < 0.01 * mx.abs(whole).mean().item()


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"bits": 3, "group_size": 32}, "quantization.bits: 3 is not supported; must be one of 4, 8"),
        ({"bits": 8, "group_size": 16}, "quantization.group_size: 16 is not supported; must be one of 32, 64, 128"),
        ({"bits": 8}, "quantization: missing 1 required positional argument: 'group_size'"),
        ("8 bits", "quantization: '8 bits' is not a section"),
    ],
)
def test_a_quantization_that_is_not_possible_is_refused(packed, quantization, said):
    with pytest.raises(ConfigError, match=said):
        CanaryModel.load(configured(packed, quantization))


def test_packed_weights_without_a_word_of_it_in_the_configuration_are_refused(packed):
    with pytest.raises(WeightsError, match=r"scales|biases|feed_forward|dense|linear|conv"):
        CanaryModel.load(configured(packed, None))


def test_groups_of_another_size_than_the_configuration_says_are_refused(packed):
    with pytest.raises(WeightsError, match=r"has shape .* expected"):
        CanaryModel.load(configured(packed, {"bits": 4, "group_size": 32}))


def test_a_packed_weight_that_holds_other_numbers_is_refused(packed):
    shape = load_file(packed / "model.safetensors")[f"{PACKED}.weight"].shape
    rewrite(packed, **{f"{PACKED}.weight": np.zeros(shape, np.float32)})
    with pytest.raises(WeightsError, match=rf"{PACKED}\.weight holds"):
        CanaryModel.load(packed)


def test_a_packed_weight_without_its_offsets_is_refused(packed):
    path = packed / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != f"{PACKED}.biases"}, path)
    with pytest.raises(WeightsError, match=rf"missing tensor {PACKED}\.biases"):
        CanaryModel.load(packed)


def in_8_bits(weight: np.ndarray | mx.array, bias: np.ndarray | None = None) -> ProductLinear:
    """For MLX's arrays."""
    return ProductLinear(int8.product(*int8.quantized(mx.array(weight)), bias))


def test_a_product_in_8_bits_is_exact_where_whole_numbers_are_asked_for():
    rng = np.random.default_rng(2)
    weight, x = (rng.integers(-127, 128, shape).astype(np.float32) for shape in ((48, 32), (2, 5, 32)))
    # The largest number of a row is what its others are rounded against.
    weight[:, 0] = x[..., 0] = 127
    bias = rng.standard_normal(48).astype(np.float32)
    found = in_8_bits(weight, bias)(mx.array(x))
    np.testing.assert_allclose(np.array(found), x @ weight.T + bias, rtol=1e-6)


def test_a_row_in_8_bits_gets_what_it_gets_alone_whatever_its_company():
    rng = np.random.default_rng(3)
    layer = in_8_bits(rng.standard_normal((48, 32)).astype(np.float32))
    rows = rng.standard_normal((80, 32)).astype(np.float32) * np.logspace(-6, 6, 80, dtype=np.float32)[:, None]
    alone = np.concatenate([np.array(layer(mx.array(row[None]))) for row in rows])
    for count in (2, 5, 16, 33, 80):
        assert np.array_equal(np.array(layer(mx.array(rows[:count]))), alone[:count])


def test_rows_of_zeros_are_the_bias_in_8_bits():
    bias = np.arange(48, dtype=np.float32)
    weight = np.ones((48, 32), np.float32)
    weight[3] = 0
    layer = in_8_bits(weight, bias)
    assert np.array_equal(np.array(layer(mx.zeros((2, 32)))), np.stack([bias, bias]))
    assert np.array_equal(np.array(layer(mx.ones((1, 32))))[0, 2:5], [2 + 32, 3, 4 + 32])


def test_other_types_of_numbers_go_through_a_layer_of_8_bits_as_they_came():
    layer = in_8_bits(mx.ones((48, 32), mx.bfloat16), np.ones(48, np.float32))
    found = layer(mx.ones((3, 32), mx.bfloat16))
    assert found.dtype == mx.bfloat16
    assert np.array_equal(np.array(found.astype(mx.float32)), np.full((3, 48), 33))


def test_the_scores_of_a_head_in_8_bits_are_float32_whatever_the_vectors_are():
    weight = mx.ones((48, 32), mx.bfloat16)
    head = ProductEmbedding(weight, int8.product(*int8.quantized(weight)))
    scores = head.scores(mx.ones((3, 32), mx.bfloat16), mx.full((48,), 0.001))
    assert scores.dtype == mx.float32
    np.testing.assert_allclose(np.array(scores), np.full((3, 48), 32.001), rtol=1e-6)


@pytest.mark.usefixtures("fast_cpu")
def test_in_16_bits_on_a_cpu_weights_are_packed_while_the_model_is_loaded(packed, monkeypatch):
    monkeypatch.delenv("CANARY_ARRAYS")
    canary = CanaryModel.load(packed, "bfloat16")
    products = [layer.product for layer in canary.modules() if isinstance(layer, ProductLinear | ProductEmbedding)]
    assert len(products) == 19
    assert all(product.is_packed for product in products)


@pytest.mark.parametrize(
    ("instructions", "gpu", "fast"),
    [
        ({"sse2", "avx512_vnni"}, False, True),
        ({"avx_vnni"}, False, True),
        ({"avx2", "avx512f"}, False, False),
        (set(), False, False),
        ({"avx512_vnni"}, True, False),
    ],
)
def test_8_bits_are_for_cpus_that_multiply_them_at_once(monkeypatch, instructions, gpu, fast):
    monkeypatch.setattr("model.cpu.int8._instructions", lambda: instructions)
    monkeypatch.setattr("model.arrays.on_cpu", lambda: not gpu)
    assert int8.is_fast() is fast
