"""Parakeet's archives: what they are is read from their tensors, and what is not supported is refused by name."""

import json
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from convert.convert import ConversionConfig, convert
from convert.download import EUROPEAN, MODELS
from convert.errors import ConversionError
from convert.parakeet import parakeet_table
from convert.weights import DROPPED
from model import memory
from model.config import EncoderConfig, PreprocessorConfig, TokenizerConfig, read_config
from model.cpu.products import ProductLinear
from model.parakeet.config import JointConfig, ParakeetConfig, PredictionConfig
from model.parakeet.model import ParakeetModel
from model.task import AUTO, Task, TaskError
from tests import parakeet_archives
from tests.archives import weights
from tests.parakeet_archives import PUBLISHED, VARIANTS, Shape, archive

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))


def converted(tmp_path: Path, variant: str = "tdt_ctc", name: str = "parakeet", **options) -> Path:
    replaced = {key: options.pop(key) for key in ("config", "tensors") if key in options}
    source = archive(tmp_path, VARIANTS[variant], name, **replaced)
    return convert(ConversionConfig(source=source, output=tmp_path / "out", **options))


def error_of(tmp_path: Path, variant: str = "tdt_ctc", **replaced) -> str:
    with pytest.raises(ConversionError) as error:
        converted(tmp_path, variant, **replaced)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def config_of(shape: Shape) -> ParakeetConfig:
    """The configuration that a shape's archive would be converted to."""
    encoder = EncoderConfig(
        shape.bands,
        shape.layers,
        shape.d,
        shape.encoder_heads,
        shape.channels,
        use_bias=shape.bias,
        conv_kernel_size=shape.kernel,
    )
    is_transducer = "transducer" in shape.heads
    return ParakeetConfig(
        name="parakeet",
        dtype="float32",
        kind=("tdt" if shape.durations else "rnnt") if is_transducer else "ctc",
        languages=(),
        vocab_size=shape.vocab or 40,
        preprocessor=PreprocessorConfig(features=shape.bands),
        encoder=encoder,
        tokenizer=TokenizerConfig("bpe", {}),
        prediction=PredictionConfig(shape.prediction, shape.lstm_layers) if is_transducer else None,
        joint=JointConfig(shape.joint) if is_transducer else None,
        durations=shape.durations or (),
        auxiliary_ctc=is_transducer and "ctc" in shape.heads,
    )


# ---- what an archive is ----


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_has_as_many_tensors_and_parameters_as_the_published_model(name):
    shape, parameters, tensors = PUBLISHED[name]
    table = parakeet_table(config_of(shape), {})
    sources = {source: table.shape(symbols) for row in table.rows for source, symbols in row.sources}
    counted = [size for source, size in sources.items() if "preprocessor." not in source and "running_" not in source]
    assert sum(map(math.prod, counted)) == parameters
    assert len(sources) + shape.layers == tensors
    assert MODELS[name].repo == f"nvidia/{name}"


@every_variant
def test_every_tensor_of_every_variant_is_used_or_dropped_by_name(tmp_path, variant):
    tensors = parakeet_archives.tensors(VARIANTS[variant])
    table = parakeet_table(read_config(converted(tmp_path, variant), ParakeetConfig), {})
    used = {name for row in table.rows for name, _ in row.sources}
    assert {name for name in tensors if name not in used} == {name for name in tensors if DROPPED.fullmatch(name)}


@pytest.mark.parametrize(
    ("variant", "kind", "heads", "durations"),
    [
        ("ctc", "ctc", ("ctc",), ()),
        ("rnnt", "rnnt", ("rnnt",), ()),
        ("tdt", "tdt", ("tdt",), (0, 1, 2, 3, 4)),
        ("tdt_ctc", "tdt", ("tdt", "ctc"), (0, 1, 2, 3, 4)),
        ("tdt_ctc-local", "tdt", ("tdt", "ctc"), (0, 1, 2, 4)),
    ],
)
def test_kind_heads_and_sizes_come_from_the_tensors(tmp_path, variant, kind, heads, durations):
    shape = VARIANTS[variant]
    config = read_config(converted(tmp_path, variant), ParakeetConfig)
    assert (config.kind, config.heads, config.durations) == (kind, heads, durations)
    assert config.vocab_size == parakeet_archives.vocabulary(shape)
    is_transducer = kind != "ctc"
    assert config.prediction == (PredictionConfig(shape.prediction, shape.lstm_layers) if is_transducer else None)
    assert config.joint == (JointConfig(shape.joint) if is_transducer else None)
    assert config.max_symbols == (7 if is_transducer else 10)
    encoder = config.encoder
    assert (encoder.use_bias, encoder.conv_kernel_size, encoder.feat_in) == (shape.bias, shape.kernel, shape.bands)
    # NeMo scales unless the configuration says otherwise, and says nothing where it does.
    assert encoder.xscaling is shape.xscaling
    assert encoder.local_context == ((16, 16) if shape.local_context else None)


def test_a_section_for_a_ctc_head_does_not_make_one(tmp_path):
    """As in parakeet-tdt-0.6b-v2 and -v3."""
    assert "aux_ctc" in parakeet_archives.config(VARIANTS["tdt"])
    folder = converted(tmp_path, "tdt")
    assert read_config(folder, ParakeetConfig).auxiliary_ctc is False
    assert not [name for name in weights(folder) if name.startswith("ctc")]


def test_the_streaming_style_of_a_unified_model_is_full_attention_for_whole_audio(tmp_path):
    config = parakeet_archives.config(VARIANTS["rnnt"])
    config["encoder"] |= {"att_context_style": "chunked_limited_with_rc", "att_context_size": [-1, -1, -1]}
    encoder = read_config(converted(tmp_path, "rnnt", config=config), ParakeetConfig).encoder
    assert (encoder.att_context_size, encoder.local_context) == ((-1, -1), None)


def test_the_first_of_several_contexts_is_the_default(tmp_path):
    config = parakeet_archives.config(VARIANTS["rnnt"])
    config["encoder"]["att_context_size"] = [[70, 13], [70, 6]]
    assert read_config(converted(tmp_path, "rnnt", config=config), ParakeetConfig).encoder.local_context == (70, 13)


@pytest.mark.parametrize("output", ["joint.joint_net.2", "joint.joint_net.1"])
def test_the_joint_networks_last_layer_is_the_second_or_the_third(tmp_path, output):
    tensors = parakeet_archives.tensors(VARIANTS["tdt"])
    for part in ("weight", "bias"):
        tensors[f"{output}.{part}"] = tensors.pop(f"joint.joint_net.2.{part}")
    written = weights(converted(tmp_path, "tdt", tensors=tensors))
    assert torch.equal(written["joint.out.weight"], tensors[f"{output}.weight"])


# ---- weights ----


def test_an_lstm_layer_is_one_matrix_for_its_input_and_its_last_output_with_both_biases_added(tmp_path):
    nemo = parakeet_archives.tensors(VARIANTS["rnnt"])
    written = weights(converted(tmp_path, "rnnt"))
    lstm = "decoder.prediction.dec_rnn.lstm"
    for k in (0, 1):
        both = torch.cat([nemo[f"{lstm}.weight_ih_l{k}"], nemo[f"{lstm}.weight_hh_l{k}"]], dim=1)
        assert torch.equal(written[f"prediction.layers.{k}.weight"], both)
        assert torch.equal(
            written[f"prediction.layers.{k}.bias"], nemo[f"{lstm}.bias_ih_l{k}"] + nemo[f"{lstm}.bias_hh_l{k}"]
        )
    assert torch.equal(written["prediction.embedding.weight"], nemo["decoder.prediction.embed.weight"])
    assert torch.equal(written["joint.encoder.weight"], nemo["joint.enc.weight"])
    assert torch.equal(written["joint.prediction.bias"], nemo["joint.pred.bias"])


def test_only_the_encoder_and_the_ctc_head_are_stored_and_computed_in_16_bits(tmp_path):
    folder = converted(tmp_path, dtype="bfloat16")
    kept = {"preprocessor": torch.float32, "prediction": torch.float32, "joint": torch.float32}
    for name, tensor in weights(folder).items():
        assert tensor.dtype == kept.get(name.partition(".")[0], torch.bfloat16), name
    parakeet = ParakeetModel.load(folder, "bfloat16")
    assert parakeet.dtype == "bfloat16"
    assert parakeet.joint.out.weight.dtype == parakeet.prediction.layers[0].weight.dtype == mx.float32
    assert parakeet.ctc.weight.dtype == mx.bfloat16


def test_quantizing_packs_the_encoder_and_leaves_the_heads(tmp_path):
    folder = converted(tmp_path, quantize=8, group_size=32)
    packed = {name.removesuffix(".scales") for name in weights(folder) if name.endswith(".scales")}
    assert len(packed) == 16
    assert all(name.startswith("encoder.layers.") for name in packed)
    assert ParakeetModel.load(folder, "float32").config.quantization is not None


def test_a_cpu_that_is_fast_at_8_bits_computes_what_a_token_takes_in_them_too(tmp_path, monkeypatch):
    folder = converted(tmp_path, quantize=8, group_size=32)
    monkeypatch.setattr("model.arrays.on_cpu", lambda: True)
    monkeypatch.setenv("CANARY_ARRAYS", "numpy")
    monkeypatch.setattr("model.cpu.int8._instructions", lambda: {"avx_vnni"})
    parakeet = ParakeetModel.load(folder, "float32")
    in_8_bits = {name for name, layer in parakeet.named_modules() if isinstance(layer, ProductLinear)}
    assert {name for name in in_8_bits if not name.startswith("encoder.")} == {
        "prediction.layers.0",
        "joint.prediction",
        "joint.out",
    }
    assert len(in_8_bits) == 16 + 3
    monkeypatch.setattr("model.cpu.int8._instructions", set)
    slow = ParakeetModel.load(folder, "float32")
    frames, texts = (np.random.default_rng(k).standard_normal((5, slow.config.joint.hidden)) for k in (1, 2))
    logits = slow.joint(frames.astype(np.float32), texts.astype(np.float32))
    found = parakeet.joint(frames.astype(np.float32), texts.astype(np.float32))
    assert 0 < np.abs(found - logits).max() < 0.02 * np.abs(logits).max()


def test_preserve_keys_keeps_nemos_names_and_layouts(tmp_path):
    nemo = parakeet_archives.tensors(VARIANTS["tdt_ctc"])
    written = weights(converted(tmp_path, preserve_keys=True))
    assert set(written) == {name for name in nemo if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(written[name], nemo[name]) for name in written)


def test_encoder_only_leaves_the_heads_out_of_weights_and_configuration(tmp_path):
    folder = converted(tmp_path, encoder_only=True)
    assert {name.partition(".")[0] for name in weights(folder)} == {"preprocessor", "encoder"}
    values = json.loads((folder / "config.json").read_text())
    assert values["family"] == "parakeet"
    assert not {"prediction", "joint", "durations", "max_symbols", "auxiliary_ctc"} & set(values)


@pytest.mark.parametrize("library", ["numpy", "mlx"])
@every_variant
def test_every_variant_is_loaded_and_encodes_a_padded_batch_as_each_by_itself(tmp_path, monkeypatch, variant, library):
    monkeypatch.setenv("CANARY_ARRAYS", library)
    parakeet = ParakeetModel.load(converted(tmp_path, variant), "float32")
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.standard_normal(n).astype(np.float32) for n in (50_000, 800, 23_456)]
    batch = parakeet.encoded_together([waveforms[0], waveforms[2]])
    alone = [parakeet.encodings([waveform])[0] for waveform in waveforms]
    # Shorter than an encoder step: padded to one.
    assert [each.vectors.shape for each in alone] == [(39, 32), (1, 32), (19, 32)]
    for one, both in ((alone[0], batch[0]), (alone[2], batch[1])):
        np.testing.assert_allclose(np.array(both.vectors), np.array(one.vectors), rtol=1e-3, atol=2e-4)
    assert all(np.isfinite(np.array(each.vectors)).all() for each in alone)


@pytest.mark.parametrize("quantize", [None, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_weights_are_said_to_take_is_what_they_take_once_loaded(tmp_path, monkeypatch, quantize, dtype):
    monkeypatch.setenv("CANARY_ARRAYS", "mlx")
    folder = converted(tmp_path, quantize=quantize, group_size=32 if quantize else None)
    parakeet = ParakeetModel.load(folder, dtype)
    loaded = sum(value.nbytes for _, value in tree_flatten(parakeet.parameters()))
    assert memory.weights_size(folder / "model.safetensors", dtype, parakeet.config.quantization) == loaded
    need = ParakeetModel.memory_need(folder, dtype)
    assert need.weights == loaded
    assert need.cache == 500 * VARIANTS["tdt_ctc"].joint * memory.ITEM_SIZES[dtype]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "encoder",
            {"att_context_style": "chunked_limited", "att_context_size": [70, 13]},
            "encoder.att_context_style: 'chunked_limited' is not supported (cache-aware streaming)",
        ),
        ("encoder", {"causal_downsampling": True}, "encoder.causal_downsampling: True is not supported"),
        ("encoder", {"conv_norm_type": "layer_norm"}, "encoder.conv_norm_type: 'layer_norm' is not supported"),
        ("encoder", {"conv_context_size": "causal"}, "encoder.conv_context_size: 'causal' is not supported"),
        ("encoder", {"self_attention_model": "abs_pos"}, "encoder.self_attention_model: 'abs_pos' is not supported"),
        ("encoder", {"att_context_size": [70, -1]}, "encoder.att_context_size: (70, -1) is not supported"),
        ("encoder", {"att_context_size": "all"}, "encoder.att_context_size: 'all' is not supported"),
        ("encoder", {"global_tokens": 1}, "encoder.global_tokens: 1 is not supported; must be 0"),
        (
            "encoder",
            {"self_attention_model": "rel_pos_local_attn"},
            "encoder.att_context_size: (-1, -1) is not supported; must be two numbers of steps",
        ),
        ("preprocessor", {"normalize": "NA"}, "preprocessor.normalize: 'NA' is not supported"),
        ("decoder", {"blank_as_pad": False}, "decoder.blank_as_pad: False is not supported; must be True"),
        ("joint", {"jointnet": {"activation": "tanh"}}, "joint.jointnet.activation: 'tanh' is not supported"),
        ("decoding", {"durations": [0, "one"]}, "decoding.durations: [0, 'one'] is not a list of steps"),
        ("decoding", {"durations": [0, 1]}, "the joint network has 46 outputs; expected 41 tokens and 2 durations"),
        ("decoding", {"greedy": {"max_symbols": -1}}, "decoding.greedy.max_symbols: -1 is not a positive number"),
        ("tokenizer", {"type": "agg", "langs": {}}, "tokenizer.type: 'agg' is not supported; must be 'bpe'"),
    ],
)
def test_an_unsupported_setting_is_an_error_that_names_it(tmp_path, section, values, message):
    config = parakeet_archives.config(VARIANTS["tdt_ctc"])
    config[section] |= values
    assert message in error_of(tmp_path, config=config)


def test_a_model_that_needs_a_language_prompt_is_refused_by_name(tmp_path):
    config = parakeet_archives.config(VARIANTS["rnnt"])
    config["target"] = "nemo.collections.asr.models.EncDecRNNTBPEModelWithPrompt"
    message = "EncDecRNNTBPEModelWithPrompt is not supported: its encoder needs a language prompt"
    assert message in error_of(tmp_path, "rnnt", config=config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_kernel.0.weight": torch.zeros(2, 3)}, "unexpected tensor prompt_kernel.0.weight (2, 3)"),
        ({"joint.enc.bias": None}, "missing tensor joint.enc.bias (28,)"),
        ({"joint.joint_net.2.weight": None}, "missing tensor joint.joint_net.2.weight (46, 28)"),
        ({"decoder.prediction.dec_rnn.lstm.bias_hh_l0": None}, "missing tensor decoder.prediction.dec_rnn.lstm.bias"),
        ({"ctc_decoder.decoder_layers.0.bias": torch.zeros(40)}, "bias has shape (40,), expected (41,)"),
        ({"ctc_decoder.decoder_layers.0.weight": torch.zeros(99, 32, 1)}, "tokenizer has 40 pieces, but ctc_decoder"),
        ({"encoder.layers.1.conv.pointwise_conv1.bias": None}, "missing tensor encoder.layers.1.conv.pointwise_conv1"),
    ],
)
def test_tensors_that_do_not_belong_together_are_errors_that_name_them(tmp_path, change, message):
    tensors = parakeet_archives.tensors(VARIANTS["tdt_ctc"])
    tensors.update({name: value for name, value in change.items() if value is not None})
    for name in [name for name, value in change.items() if value is None]:
        del tensors[name]
    assert message in error_of(tmp_path, tensors=tensors)


# ---- languages and tasks ----


@pytest.mark.parametrize(
    ("variant", "name", "languages"),
    [
        ("tdt", "fine-tuned", ("en", "uk")),  # zu has a token, but no model was trained on it
        ("ctc", "fine-tuned", ()),
        ("ctc", "parakeet-ctc-0.6b", ("en",)),
        ("tdt", "parakeet-tdt-0.6b-v3", EUROPEAN),
    ],
)
def test_languages_are_those_of_a_known_model_or_those_it_has_tokens_for(tmp_path, variant, name, languages):
    assert read_config(converted(tmp_path, variant, name), ParakeetConfig).languages == languages


def test_a_language_is_checked_if_the_model_says_its_own_and_a_task_it_cannot_do_is_refused():
    shape, _, _ = PUBLISHED["parakeet-ctc-0.6b"]
    anything = config_of(shape)
    for language in ("en", "ja", AUTO):
        anything.check(Task(language))
    english = ParakeetConfig(**{**vars(anything), "languages": ("en",)})
    english.check(Task("en", timestamps="word"))
    for task, param, message in (
        (Task("de"), "language", "language 'de' is not supported by parakeet; must be one of en"),
        (Task("en", "de"), "target_language", "parakeet does not translate; a Canary model does"),
        (Task("en", context="names"), "prompt", "parakeet does not support a context"),
        (Task("en", timestamps="char"), "timestamps", "timestamps 'char' is not supported"),
    ):
        with pytest.raises(TaskError, match=message) as error:
            english.check(task)
        assert error.value.param == param
