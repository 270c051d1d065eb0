"""The command line: options, help, completion, usage errors."""

import logging
import re
import sys
import threading

import pytest
import typer
from typer.testing import CliRunner

from server.__main__ import main
from server.settings import Settings, default_text, flag, group, variable


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """`serve` sets up the log for its own stderr, which ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def words(text: str) -> str:
    """Without line breaks, with which help is wrapped."""
    return " ".join(text.split())


def options_of(command: str) -> list:
    return typer.main.get_command(main).commands[command].get_params(typer.Context(typer.main.get_command(main)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [80, 120])
def test_help_lists_every_setting_whole_with_its_variable_and_default_under_its_subject(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = run("serve", "-h").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    sections = dict(re.findall(r"^(\w[^\n]*):\n((?: [^\n]*\n)+)", shown, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        section = words(sections[group(field)])
        default = f"; default: {default_text(field)}]" if default_text(field) else "]"
        assert re.search(rf"(?<!\S){flag(name)}\b", section)
        # A line break may follow a hyphen.
        assert f"{field.description} [{variable(name)}".replace("- ", "-") in section.replace("- ", "-"), name
        assert default in section.partition(f"[{variable(name)}")[2].partition("]")[0] + "]", name


def test_an_option_that_is_not_given_leaves_its_setting_to_the_environment():
    for command in ("serve", "transcribe", "bench", "convert"):
        for option in options_of(command):
            setting = {"language": "default_language"}.get(option.name, option.name)
            if setting in Settings.model_fields and (command, setting) not in {
                ("convert", "dtype"),
                ("convert", "quantize"),
            }:
                assert option.default is None, f"{command} {option.opts[0]}"
                assert f"[{variable(setting)}" in option.help, f"{command} {option.opts[0]}"


def test_repeated_options_choices_and_switches_reach_the_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = []
    monkeypatch.setattr("server.cli.serve.serve", lambda **settings: given.append(Settings(**settings)))
    arguments = "-m a --model b --api-key first-key --api-key second-key --quantize 8 --no-loop-guard --idle-unload 2.5"
    assert run("serve", *arguments.split()).exit_code == 0
    assert run("serve").exit_code == 0
    settings, plain = given
    assert (settings.model, settings.quantize, settings.loop_guard) == (("a", "b"), 8, False)
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    assert settings.idle_unload_s == 2.5
    assert plain == Settings()
    for wrong, said in (("--quantize 5", "'4', '8'"), ("--port many", "int"), ("--log-level loud", "'debug'")):
        result = run("serve", *wrong.split())
        assert result.exit_code == 2
        assert said in words(result.stderr)


@pytest.mark.parametrize("command", [(), ("serve",), ("transcribe",), ("convert",), ("bench",)])
def test_every_command_has_a_short_flag_for_help(command):
    assert run(*command, "-h").stdout == run(*command, "--help").stdout
    assert "Show this message and exit." in run(*command, "-h").stdout


def test_commands_and_options_are_completed():
    def completed(typed: str) -> list[str]:
        environment = {"_CANARY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        return CliRunner().invoke(main, [], env=environment, prog_name="canary").stdout.split()

    assert completed("canary tr") == ["transcribe"]
    limits = ["--max-live-step", "--max-live-sessions", "--max-live-rate", "--max-live-buffer"]
    assert completed("canary serve --max-li") == limits
    assert completed("canary serve --log-level ") == ["debug", "info", "warning", "error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transcribe"], "FILE"),
        (["transcribe", "a.wav", "--language", "klingon"], "'klingon'"),
        (["transcribe", "a.wav", "--timestamps", "letter"], "letter"),
        (["transcribe", "a.wav", "--beam-size", "0"], "beam-size"),
        (["transcribe", "a.wav", "--resume"], "--output-dir"),
        (["transcribe", "a.wav", "--detect-each", "-l", "de"], "cannot be combined with --language"),
        (["serve", "--port", "70000"], "--port: '70000' is not valid; must be less than or equal to 65535"),
        (["serve", "--allowed-origin", "a.example"], "--allowed-origin: 'a.example' is not an origin"),
        (["sing"], "sing"),
    ],
)
def test_bad_arguments_are_usage_errors_that_name_them(monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in words(result.stderr)
    assert result.stdout == ""


def test_a_bad_setting_in_the_environment_is_a_usage_error_that_names_the_variable(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY_MAX_QUEUE", "none")
    for command in (["serve"], ["transcribe", "a.wav"]):
        result = run(*command)
        assert result.exit_code == 2
        said = "CANARY_MAX_QUEUE (environment or .env): 'none' is not valid; must be a valid integer"
        assert said in words(result.stderr)


def test_a_model_that_does_not_exist_ends_in_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path))
    (tmp_path / "a.wav").touch()
    for command in (["transcribe", "a.wav"], ["convert"], ["serve", "--port", "0"]):
        model = ["/no/such/model.nemo"] if command == ["convert"] else ["--model", "/no/such/model.nemo"]
        result = run(*command, *model)
        assert result.exit_code == 1
        # The server logs before it.
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("canary: ")]
        assert "/no/such/model.nemo" in line


def test_version_prints_the_version_of_the_package():
    from importlib.metadata import version

    assert run("--version").stdout == f"canary-server {version('canary-server')}\n"


def test_help_names_every_command():
    listing = run("--help").stdout
    assert all(f"\n  {command} " in listing for command in ("serve", "transcribe", "convert", "bench"))
