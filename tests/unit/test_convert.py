"""An archive is converted to a complete folder, or to none."""

import json
from pathlib import Path

import pytest
import torch

from convert.convert import ConversionConfig, convert
from convert.errors import ConversionError
from model.canary.config import CanaryConfig
from model.config import ALIGNER_DIR, AlignerConfig, read_config
from tests import archives
from tests.archives import weights


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))


def converted(tmp_path: Path, variant: str = "180m-flash", **options) -> Path:
    archive = archives.tiny_archive(tmp_path, variant)
    return convert(ConversionConfig(source=archive, output=tmp_path / "out", **options))


def test_a_flash_archive_is_converted_to_a_configuration_weights_and_five_tokenizers(tmp_path):
    folder = converted(tmp_path)
    config = read_config(folder, CanaryConfig)
    assert config.name == "canary-180m-flash"
    assert config.languages == ("en", "de", "es", "fr")
    assert list(config.tokenizer.models) == ["spl_tokens", "en", "de", "es", "fr"]
    assert config.prompt_defaults[0]["slots"]["pnc"] == "<|pnc|>"
    assert config.vocab_size == archives.vocabulary_rows("180m-flash")
    assert config.decoding.max_generation_delta == 50
    assert config.decoding.length_penalty == 0.0  # NeMo does not read len_pen
    for language, model in archives.tokenizers("180m-flash").items():
        assert (folder / config.tokenizer.models[language]).read_bytes() == model
    written, nemo = weights(folder), archives.tensors("180m-flash")
    assert torch.equal(written["head.bias"], nemo["log_softmax.mlp.layer0.bias"])
    assert torch.equal(written["preprocessor.fb"], nemo["preprocessor.featurizer.fb"][0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "canary-180m-flash.nemo", "out"]


def test_the_first_canary_has_its_own_prompt_format_and_no_defaults(tmp_path):
    config = read_config(converted(tmp_path, "1b"), CanaryConfig)
    assert (config.prompt_format, config.prompt_defaults) == ("canary", ())
    assert (config.decoder.num_layers, config.decoder.hidden_size) == (3, archives.D)


def test_the_unified_model_keeps_its_aligner_and_the_languages_it_has_tokens_for(tmp_path):
    folder = converted(tmp_path, "1b-v2")
    config, aligner = read_config(folder, CanaryConfig), read_config(folder / ALIGNER_DIR, AlignerConfig)
    assert config.tokenizer.models == {"": "tokenizer.model"}
    assert config.languages == ("en", "uk")  # zu has a token, but the model was not trained on it
    assert aligner.vocab_size == archives.vocabulary_rows("1b-v2")
    assert aligner.encoder.use_bias is False
    assert weights(folder / ALIGNER_DIR)["head.weight"].shape == (aligner.vocab_size + 1, archives.D)
    main, embedded = folder / "tokenizer.model", folder / ALIGNER_DIR / "tokenizer.model"
    assert main.read_bytes() == archives.tokenizers("1b-v2")[""]
    assert embedded.read_bytes() != main.read_bytes()


@pytest.mark.parametrize("options", [{"gzipped": True}, {"prefix": ""}, {"gzipped": True, "prefix": ""}])
def test_gzipped_archives_and_names_without_a_prefix_give_the_same_bytes(tmp_path, options):
    plain = converted(tmp_path)
    (tmp_path / "other").mkdir()
    archive = archives.tiny_archive(tmp_path / "other", **options)
    other = convert(ConversionConfig(source=archive, output=tmp_path / "other" / "out"))
    assert {path.name for path in plain.iterdir()} == {path.name for path in other.iterdir()}
    for path in plain.iterdir():
        # This one names its archive.
        if path.name != "digests.json":
            assert (other / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_weights_are_stored_in_the_chosen_precision(tmp_path):
    folder = converted(tmp_path, dtype="bfloat16")
    assert read_config(folder, CanaryConfig).dtype == "bfloat16"
    assert weights(folder)["head.bias"].dtype == torch.bfloat16
    assert weights(folder)["preprocessor.window"].dtype == torch.float32


def test_preserve_keys_keeps_nemos_names_and_layouts(tmp_path):
    folder, nemo = converted(tmp_path, preserve_keys=True), archives.tensors("180m-flash")
    written = weights(folder)
    assert set(written) == {name for name in nemo if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(written[name], nemo[name]) for name in written)
    assert json.loads((folder / "config.json").read_text())["preserved_keys"] is True


def test_encoder_only_leaves_the_decoder_out_of_weights_and_configuration(tmp_path):
    folder = converted(tmp_path, "1b-v2", encoder_only=True)
    assert {name.partition(".")[0] for name in weights(folder)} == {"preprocessor", "encoder"}
    assert not {"decoder", "decoding"} & set(json.loads((folder / "config.json").read_text()))
    assert not (folder / ALIGNER_DIR).exists()


def test_mlx_reads_the_written_weights(tmp_path):
    import mlx.core as mx

    loaded = mx.load(str(converted(tmp_path, dtype="bfloat16") / "model.safetensors"))
    expected = archives.tensors("180m-flash")["log_softmax.mlp.layer0.bias"].bfloat16().float()
    assert loaded["head.bias"].astype(mx.float32).tolist() == expected.tolist()


def test_progress_counts_up_to_the_number_of_tensors(tmp_path):
    steps = []
    folder = converted(tmp_path, "1b-v2", progress=lambda *step: steps.append(step))
    total = len(weights(folder)) + len(weights(folder / ALIGNER_DIR))
    assert steps == [("converting", done, total) for done in range(1, total + 1)]


def test_verbose_prints_each_tensor_and_its_sources(tmp_path, capsys):
    converted(tmp_path, verbose=True)
    line = "encoder_decoder_proj.weight (48, 32) <- encoder_decoder_proj.weight"
    assert line in capsys.readouterr().err.splitlines()


def test_the_default_folder_is_named_after_the_model_and_its_precision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = archives.tiny_archive(tmp_path)
    assert convert(ConversionConfig(source=archive)) == tmp_path / "canary-180m-flash-float32"
    quantized = convert(ConversionConfig(source=str(archive), dtype="bfloat16", quantize=8, group_size=32))
    assert quantized == tmp_path / "canary-180m-flash-bfloat16-q8"


def test_a_folder_with_files_in_it_is_left_untouched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(ConversionError, match="already exists; remove it or choose another folder"):
        converted(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("transf_encoder", "num_layers", 2, "transf_encoder.num_layers: 2 is not supported; must be 0"),
        ("encoder", "subsampling", "striding", "encoder.subsampling: 'striding' is not supported"),
        ("preprocessor", "window", "hamming", "preprocessor.window: 'hamming' is not supported; must be 'hann'"),
        ("head", "num_classes", 8, "but the head has 8 classes"),
        ("head", "num_classes", 4096, "expected (4096,"),
        ("tokenizer", "langs", None, "langs is missing"),
        ("decoding", "beam", {"beam_size": "wide"}, "decoding.beam.beam_size: 'wide' is not a number"),
    ],
)
def test_an_unsupported_setting_is_an_error_that_names_it(tmp_path, section, key, value, message):
    config = archives.config("180m-flash")
    config[section][key] = value
    archive = archives.tiny_archive(tmp_path, config=config)
    with pytest.raises(ConversionError) as error:
        convert(ConversionConfig(source=archive, output=tmp_path / "out"))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_an_error_that_names_it(tmp_path):
    config = archives.config("180m-flash") | {"target": "nemo.collections.asr.models.EncDecSpeakerLabelModel"}
    archive = archives.tiny_archive(tmp_path, config=config)
    with pytest.raises(ConversionError, match="unsupported model EncDecSpeakerLabelModel; must be a Canary"):
        convert(ConversionConfig(source=archive, output=tmp_path / "out"))


def test_the_rows_of_the_head_are_counted_if_the_configuration_leaves_them_open(tmp_path):
    config = archives.config("180m-flash")
    config["head"]["num_classes"] = None
    folder = convert(ConversionConfig(source=archives.tiny_archive(tmp_path, config=config), output=tmp_path / "out"))
    assert read_config(folder, CanaryConfig).vocab_size == archives.vocabulary_rows("180m-flash")


@pytest.mark.parametrize(
    ("strategy", "expected"), [("beam", (5, 1.0, 60)), ("greedy_batch", (1, 0.0, 50))], ids=["beam", "greedy"]
)
def test_the_search_settings_are_those_that_nemo_uses(tmp_path, strategy, expected):
    config = archives.config("1b")
    beam = {"beam_size": 5, "length_penalty": 1.0, "len_pen": 0.3, "max_generation_delta": 60}
    config["decoding"] = {"strategy": strategy, "beam": beam}
    archive = archives.tiny_archive(tmp_path, "1b", config=config)
    decoding = read_config(convert(ConversionConfig(source=archive, output=tmp_path / "out")), CanaryConfig).decoding
    assert (decoding.beam_size, decoding.length_penalty, decoding.max_generation_delta) == expected


# ---- conversions that fail ----


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path, progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "canary-180m-flash.nemo"]


def test_a_full_disk_is_a_one_line_error_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.safetensors_writer.os.fsync", full)
    with pytest.raises(ConversionError, match=r"cannot write .*out: No space left on device"):
        converted(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "canary-180m-flash.nemo"]
