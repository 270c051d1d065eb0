"""A path on this machine is resolved to a converted folder, once. For the Hub see tests/process."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from convert.cache import default_cache_dir
from convert.errors import ConversionError, HubError
from convert.hub import MODELS, resolve
from convert.upload import model_card
from model.canary.config import CanaryConfig
from model.config import QuantizationConfig, read_config
from tests import archives

REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return archives.tiny_archive(tmp_path_factory.mktemp("archive"))


def test_an_archive_is_converted_once_per_precision_and_again_when_it_changes(tmp_path, archive):
    path = tmp_path / "mine.nemo"
    path.write_bytes(archive.read_bytes())
    first = resolve(path)
    written_at = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(path)) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written_at
    assert resolve(path, dtype="bfloat16") != first
    os.utime(path, (1, 1))
    assert resolve(path) != first


def test_a_converted_folder_is_returned_as_it_is(archive):
    folder = resolve(archive)
    assert resolve(folder) == folder
    assert resolve(str(folder), dtype="bfloat16") == folder


def test_a_path_means_the_folder_and_a_bare_name_the_known_model_of_the_same_name(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convert.convert.nemo_file", lambda *_: archive)
    resolve(archive).rename("canary-1b-v2")
    assert resolve("./canary-1b-v2") == resolve(Path("canary-1b-v2")) == Path("canary-1b-v2")
    assert resolve("canary-1b-v2").parent == tmp_path / "cache" / "models"


def test_quantized_weights_go_to_a_folder_of_their_own(archive):
    plain, quantized = resolve(archive), resolve(archive, quantize=8)
    assert resolve(archive, quantize=8) == quantized != plain
    assert read_config(quantized, CanaryConfig).quantization == QuantizationConfig(8, 64)
    assert read_config(plain, CanaryConfig).quantization is None
    assert resolve(quantized) == resolve(quantized, quantize=8) == quantized


def test_a_converted_folder_with_another_quantization_is_an_error(archive):
    plain, quantized = resolve(archive), resolve(archive, quantize=8)
    with pytest.raises(ConversionError, match=r"already converted and not quantized; for 4 bits, convert the .nemo"):
        resolve(plain, quantize=4)
    with pytest.raises(ConversionError, match=r"quantized to 8 bits; for 4 bits, convert the .nemo"):
        resolve(quantized, quantize=4)


def test_unsupported_bits_are_an_error_that_lists_the_supported_ones(archive):
    with pytest.raises(ConversionError, match="quantize 5 is not supported; must be 4 or 8"):
        resolve(archive, quantize=5)


def test_the_toy_is_the_archive_shipped_with_the_package(archive, monkeypatch):
    from dataclasses import replace

    assert MODELS["toy"].path is not None
    assert MODELS["toy"].path.parts[-3:] == ("convert", "toy", "toy.nemo")
    monkeypatch.setitem(MODELS, "toy", replace(MODELS["toy"], path=archive))
    assert json.loads((resolve("toy") / "config.json").read_text())["name"] == "canary-180m-flash"


def test_a_non_commercial_licence_is_logged_as_a_warning(caplog, monkeypatch, archive):
    monkeypatch.setattr("convert.convert.nemo_file", lambda *_: archive)
    caplog.set_level(logging.INFO)
    resolve("canary-1b")
    records = [record for record in caplog.records if "licensed" in record.message]
    assert [record.levelname for record in records] == ["WARNING"]
    assert records[0].message == "nvidia/canary-1b is licensed CC-BY-NC-4.0 (non-commercial use only)"
    caplog.clear()
    resolve("canary-1b")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "whisper",
            "unknown model 'whisper': must be one of canary-180m-flash, canary-1b-flash, canary-1b, canary-1b-v2, "
            "parakeet-tdt-0.6b-v3, parakeet-tdt-0.6b-v2, parakeet-tdt_ctc-110m, parakeet-tdt_ctc-1.1b, "
            "parakeet-tdt-1.1b, parakeet-rnnt-0.6b, parakeet-rnnt-1.1b, parakeet-ctc-0.6b, parakeet-ctc-1.1b, "
            "parakeet-unified-en-0.6b, toy, toy-parakeet, a Hub repository",
        ),
        ("", "unknown model ''"),
        ("no/such/model.nemo", "no/such/model.nemo: no such file"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_what_is_supported(name, message):
    with pytest.raises(HubError) as error:
        resolve(name)
    assert str(error.value).startswith(message)


def test_a_folder_without_a_model_is_an_error_that_says_what_it_must_contain(tmp_path):
    with pytest.raises(HubError, match=r"not a converted model: it must contain config.json and model.safetensors"):
        resolve(tmp_path)


def test_an_unknown_precision_is_an_error_that_lists_the_supported_ones(archive):
    with pytest.raises(ConversionError, match="'int4' is not supported; must be one of float32, bfloat16, float16"):
        resolve(archive, dtype="int4")


def test_the_cache_is_at_canary_cache_or_in_the_platforms_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("CANARY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_cache_dir() == Path("/home/someone/.cache/canary-server")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/xdg")
    assert default_cache_dir() == Path("/var/tmp/xdg/canary-server")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_cache_dir() == Path("/home/someone/Library/Caches/canary-server")


def test_a_cache_that_cannot_be_written_is_a_one_line_error(tmp_path, archive, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConversionError, match="set CANARY_CACHE to a writable folder"):
        resolve(archive)


# ---- to the Hub ----


@pytest.mark.parametrize(
    ("source", "tag", "licence"),
    [
        ("canary-1b", "cc-by-nc-4.0", "Licence: CC-BY-NC-4.0 (non-commercial use only)."),
        ("nvidia/canary-1b-v2", "cc-by-4.0", "Licence: CC-BY-4.0."),
        ("mine.nemo", "other", "Licence: as stated by the source."),
    ],
)
def test_a_model_card_names_the_licence_of_the_source(source, tag, licence):
    card = model_card("someone/canary-mlx", source)
    assert f"\nlicense: {tag}\n" in card
    assert licence in card
    assert ("base_model: nvidia/" in card) == (source != "mine.nemo")


def test_upload_sends_the_folder_and_a_model_card_to_the_repository(archive, tmp_path, monkeypatch):
    import huggingface_hub

    from convert.convert import ConversionConfig, convert

    calls = []
    for name in ("create_repo", "upload_file", "upload_folder"):
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda self, *args, _name=name, **options: calls.append((_name, args, options))
        )
    convert(ConversionConfig(source=archive, output=tmp_path / "out", upload_repo="someone/mine"))
    assert [name for name, *_ in calls] == ["create_repo", "upload_file", "upload_folder"]
    assert calls[1][2]["path_in_repo"] == "README.md"
    assert calls[2][2]["folder_path"] == tmp_path / "out"


def test_upload_without_permission_keeps_the_folder_and_says_what_to_do(archive, tmp_path, monkeypatch):
    import huggingface_hub

    from convert.convert import ConversionConfig, convert

    def refuse(*_, **__):
        raise huggingface_hub.errors.HfHubHTTPError("401 Unauthorized", response=None)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(HubError, match="was converted but could not be uploaded to someone/mine"):
        convert(ConversionConfig(source=archive, output=tmp_path / "out", upload_repo="someone/mine"))
    assert (tmp_path / "out" / "config.json").is_file()
