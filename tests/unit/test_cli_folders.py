"""The command line: where it keeps models, and how a converted folder is asked for."""

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
def test_the_cache_is_where_the_environments_file_says_it_is(monkeypatch, tmp_path, command, kept):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CANARY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    Path(".env").write_text("CANARY_CACHE=kept\n")
    archives.tiny_archive(tmp_path)
    run(*command)
    assert len(list(Path("kept", kept).iterdir())) == 1
    assert not Path("elsewhere").exists()


def test_a_cache_that_is_said_to_be_nowhere_in_particular_is_the_platforms(monkeypatch):
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
def test_a_conversion_ends_with_the_folder_and_with_what_to_type_to_use_it(monkeypatch, tmp_path, out, typed):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))
    elsewhere = str(tmp_path / "elsewhere")
    result = run("convert", str(archives.tiny_archive(tmp_path)), *(each.format(elsewhere=elsewhere) for each in out))
    folder = Path(result.stdout.removesuffix("\n"))
    assert (folder / "config.json").is_file()
    said = [line for line in result.stderr.splitlines() if line.startswith("canary: ")]
    assert said == ([f"canary: to use it: --model {typed.format(elsewhere=elsewhere)}"] if typed else [])
