"""Damage to a converted model's files is found before it can change a text, and mended where that is possible."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from convert.convert import ConversionConfig, convert
from convert.errors import ConversionError, HubError
from convert.hub import resolve, resolve_again
from model import digests
from model.digests import DamagedError, checked
from model.loading import load
from server.__main__ import main
from server.engine.registry import load_model
from server.settings import Settings
from tests import archives
from tests.fault.damage import TOY, WAYS, flip_a_bit, remove, text_of

ROOT = Path(__file__).parents[2]
FILES = ("config.json", "digests.json", "model.safetensors", "tokenizer.en.model", "tokenizer.spl_tokens.model")
TEXT = "The woman sees ten new houses at school every day. The man sleeps."


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """The toy as it was converted."""
    return resolve("toy", dtype="float32", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(toy_folder, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(toy_folder, tmp_path / "my-toy")


@pytest.fixture
def settings(toy_folder, tmp_path) -> Settings:
    """Settings by which the toy is found in a cache of its own."""
    settings = Settings(_env_file=None, model=("toy",), dtype="float32", cache=tmp_path / "cache")  # type: ignore[call-arg]
    shutil.copytree(toy_folder.parent, tmp_path / "cache" / "models")
    return settings


@pytest.fixture
def cached(settings, toy_folder) -> Path:
    """The toy's folder in that cache."""
    return settings.cache / "models" / toy_folder.name


def run(*arguments: str | Path):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ---- a folder that the user names ----


@pytest.mark.parametrize(
    ("file", "way"),
    # For a folder without digests see below.
    [(file, way) for file in FILES for way in WAYS if (file, way) != ("digests.json", remove)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_folder_with_a_damaged_file_is_refused_in_one_line_that_names_the_file(folder, file, way):
    way(folder / file, random.Random(1))
    with pytest.raises(DamagedError) as error:
        load(folder, "float32")
    assert str(error.value).startswith(f"{folder / file} is ")
    assert "\n" not in str(error.value)


def test_a_damaged_configuration_is_found_before_its_quantization_is_compared(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"num_layers"', '"num_mayers"'))
    with pytest.raises(DamagedError, match=r"config\.json is damaged: its content is not what was converted; convert"):
        resolve(folder, quantize=8)


def test_damage_to_a_large_file_is_found_while_the_model_is_being_loaded(folder, monkeypatch):
    monkeypatch.setattr("model.digests.SMALL_BYTES", 10_000)
    flip_a_bit(folder / "model.safetensors", random.Random(1))
    loaded = []
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged: its content"), checked(folder):
        loaded.append("this block runs")
    assert loaded
    # What loading makes of the damage is not what the user has to know.
    with pytest.raises(DamagedError), checked(folder):
        raise ValueError("a tensor of no shape")


def test_a_failure_to_load_intact_files_is_told_as_it_is(folder):
    with pytest.raises(ValueError, match="does not fit into memory"), checked(folder):
        raise ValueError("does not fit into memory")


def test_a_file_that_was_cut_off_is_found_before_anything_reads_it(folder, monkeypatch):
    monkeypatch.setattr("model.digests.SMALL_BYTES", 10_000)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="has 5331871 bytes instead of 5331872"), checked(folder):
        pytest.fail("the model was loaded")


def test_a_command_says_what_to_do_about_a_damaged_folder(folder):
    flip_a_bit(folder / "tokenizer.en.model", random.Random(1))
    result = run("transcribe", TOY.parent / "samples" / "en.flac", "--model", folder)
    told = "tokenizer.en.model is damaged: its content is not what was converted; convert the model again"
    assert (result.exit_code, result.stderr) == (1, f"canary: {folder}/{told}\n")


def test_a_folder_that_was_converted_before_there_were_digests_is_loaded_with_a_note(folder, caplog):
    (folder / "digests.json").unlink()
    caplog.set_level("INFO", "model")
    assert text_of(folder, None, folder.parent) == TEXT
    note = f"{folder} has no digests.json, so damage would not be noticed; convert the model again"
    assert [record.getMessage() for record in caplog.records if record.name == "model.digests"] == [note]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("files"),
        lambda values: values.update(algorithm="sha256"),
        lambda values: values["files"].pop("tokenizer.en.model"),
        lambda values: values["files"].update({"../elsewhere": {"size": 0, "digest": ""}}),
        lambda values: values.update(files=[]),
    ],
)
def test_digests_that_were_changed_are_refused(folder, change):
    path = folder / "digests.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DamagedError, match=r"digests\.json is damaged: it is not a list of xxh3_128 digests"):
        digests.read(folder)


def test_files_that_are_not_from_the_conversion_do_no_harm(folder):
    (folder / "README.md").write_text("mine")
    assert digests.is_intact(folder)


# ---- a folder in the cache ----


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.en.model"])
def test_a_damaged_model_in_the_cache_is_converted_again(settings, cached, file, way):
    way(cached / file, random.Random(1))
    assert load_model(settings).config.name == "toy"
    assert digests.is_intact(cached)
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_that_it_is_converted_again_is_one_line_in_the_log(settings, cached, caplog):
    flip_a_bit(cached / "model.safetensors", random.Random(1))
    load_model(settings)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [
        f"{cached}/model.safetensors is damaged: its content is not what was converted; converting toy again"
    ]


def test_a_model_that_another_process_has_mended_meanwhile_is_not_converted_once_more(settings, cached, monkeypatch):
    flip_a_bit(cached / "model.safetensors", random.Random(1))
    found_by_both = digests.damage(cached, "model.safetensors", digests.read(cached).files["model.safetensors"])
    load_model(settings)
    monkeypatch.setattr("convert.convert._write_folder", lambda *_: pytest.fail("it was converted again"))
    assert resolve_again("toy", found_by_both, dtype="float32", cache_dir=settings.cache) == cached


def test_a_damaged_model_that_cannot_be_converted_again_is_an_error_with_both_reasons(settings, cached, monkeypatch):
    def offline(*_):
        raise HubError("Hub repository x is not on this machine")

    flip_a_bit(cached / "model.safetensors", random.Random(1))
    monkeypatch.setattr("convert.convert.nemo_file", offline)
    with pytest.raises(ConversionError) as error:
        load_model(settings)
    assert str(error.value) == (
        f"{cached}/model.safetensors is damaged: its content is not what was converted, and toy cannot be converted "
        "again: Hub repository x is not on this machine"
    )
    assert cached.is_dir()


# ---- conversion ----


def test_digests_are_of_every_file_and_of_the_archive(tmp_path):
    archive = archives.tiny_archive(tmp_path, "1b-v2")
    folder = convert(ConversionConfig(source=archive, output=tmp_path / "out"), tmp_path)
    listed = digests.read(folder)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert "aligner/model.safetensors" in files
    assert listed.files.keys() == files.keys() - {"digests.json"}
    assert all(listed.files[name] == digests.digest_of(files[name]) for name in listed.files)
    assert listed.source == {archive.name: digests.digest_of(archive)}


def test_a_model_whose_tokenizer_cannot_be_loaded_is_never_left_finished(tmp_path):
    files = archives.members("180m-flash")
    # It has another vocabulary, and no special tokens.
    files[f"{archives.md5('spl_tokens')}_tokenizer.model"] = archives.sentencepiece_model("plain")
    archive = archives.write_archive(tmp_path / "plain.nemo", files)
    with pytest.raises(ConversionError, match=r"the converted model cannot be loaded: the tokenizer has no <\|startof"):
        convert(ConversionConfig(source=archive, output=tmp_path / "models" / "out"), tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


# ---- canary verify ----


def test_verify_names_each_damaged_file_and_exits_with_1(folder, toy_folder):
    flip_a_bit(folder / "model.safetensors", random.Random(1))
    remove(folder / "tokenizer.de.model", random.Random(1))
    result = run("verify", toy_folder, folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"ok       {toy_folder}",
        f"FAILED   {folder}/model.safetensors is damaged: its content is not what was converted",
        f"FAILED   {folder}/tokenizer.de.model is missing",
    ]


def test_verify_checks_the_whole_cache_by_default(settings, cached):
    assert run("verify", "--cache", settings.cache).stdout == f"ok       {cached}\n"
    flip_a_bit(cached / "digests.json", random.Random(1))
    result = run("verify", "--cache", settings.cache)
    assert (result.exit_code, result.stdout.partition(" is ")[0]) == (1, f"FAILED   {cached}/digests.json")
    shutil.rmtree(settings.cache)
    nothing = run("verify", "--cache", settings.cache)
    assert (nothing.exit_code, nothing.stderr) == (0, "canary: there are no converted models in the cache\n")


def test_verify_says_of_a_folder_without_digests_that_it_cannot_be_checked(folder):
    (folder / "digests.json").unlink()
    result = run("verify", folder)
    assert result.exit_code == 1
    assert result.stdout == (
        f"FAILED   {folder} has no digests.json, so damage cannot be found; convert the model again to add them\n"
    )


def test_verify_writes_json(folder, toy_folder):
    flip_a_bit(folder / "config.json", random.Random(1))
    result = run("verify", folder, toy_folder, "--json")
    damaged, whole = json.loads(result.stdout)["folders"]
    source = {"toy.nemo": {"size": TOY.stat().st_size, "digest": digests.digest_of(TOY).digest}}
    assert whole == {"folder": str(toy_folder), "damage": [], "source": source, "status": "ok"}
    assert (damaged["status"], len(damaged["damage"])) == ("damaged", 1)
    assert (result.exit_code, run("verify", toy_folder, "--json").exit_code) == (1, 0)


def test_verify_refuses_what_is_not_a_converted_model(tmp_path):
    result = run("verify", tmp_path)
    assert (result.exit_code, result.stderr) == (1, f"canary: {tmp_path} is not a converted model\n")


# ---- at random: short versions of longer scripts ----


@pytest.mark.parametrize(("script", "count"), [("kills", 3), ("damage", 8)])
def test_kills_and_damage_at_random_change_no_text(script, count, tmp_path):
    command = [sys.executable, "-m", f"tests.fault.{script}", "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    last = {"kills": "ok quantization: 3 kills", "damage": "8 damaged folders, 0 wrong texts"}[script]
    assert done.stdout.splitlines()[-1].startswith(last)
