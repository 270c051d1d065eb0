"""The command line: where it caches models, and how to use a converted folder."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.__main__ import main
from server.settings import Settings
from tests import archives


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


NOTHING_MEASURED = ("--seconds", "", "--rows", "", "--lengths", "", "--concurrency", "")


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (("transcribe", "a.wav", "--model", "canary-180m-flash.nemo"), "models"),
        (("bench", "--model", "canary-180m-flash.nemo", *NOTHING_MEASURED), "models"),
        (("convert", "canary-180m-flash.nemo", "out"), "locks"),
    ],
)
def test_every_command_uses_the_cache_named_in_an_env_file(monkeypatch, tmp_path, command, kept):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CANARY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    Path(".env").write_text("CANARY_CACHE=kept\n")
    archives.tiny_archive(tmp_path)
    Path("a.wav").touch()
    run(*command)
    assert len(list(Path("kept", kept).iterdir())) == 1
    assert not Path("elsewhere").exists()


def test_an_empty_cache_setting_means_the_platforms_folder(monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", "")
    assert Settings(_env_file=None).cache is None
    monkeypatch.setenv("CANARY_CACHE", "~/models")
    assert Settings(_env_file=None).cache == Path.home() / "models"


@pytest.mark.parametrize(
    ("out", "typed"),
    [
        ((), "./canary-180m-flash-float32"),
        (("canary-1b-v2",), "./canary-1b-v2"),
        (("our models/new",), "'./our models/new'"),
        (("{elsewhere}",), "{elsewhere}"),
        (("parts", "--encoder-only"), None),
        (("parts", "--preserve-keys"), None),
    ],
)
def test_a_conversion_prints_the_folder_and_how_to_use_it(monkeypatch, tmp_path, out, typed):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))
    elsewhere = str(tmp_path / "elsewhere")
    result = run("convert", str(archives.tiny_archive(tmp_path)), *(each.format(elsewhere=elsewhere) for each in out))
    folder = Path(result.stdout.removesuffix("\n"))
    assert (folder / "config.json").is_file()
    said = [line for line in result.stderr.splitlines() if line.startswith("canary: ")]
    assert said == ([f"canary: to use it: --model {typed.format(elsewhere=elsewhere)}"] if typed else [])
