"""The command line, with a model that needs no weights."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from model.generate import DecodingOptions
from model.prompt import Task
from model.transcript import Segment, Transcript, Word
from server.__main__ import main


class MockCanary:
    """Says how loud each file is; keeps what it was asked."""

    config = SimpleNamespace(name="mock", languages=("en", "de"), prompt_format="canary2")

    def __init__(self):
        self.calls: list[tuple[int, Task, DecodingOptions]] = []

    def transcribe(self, waveforms, task, options):
        self.calls.append((len(waveforms), task, options))
        return [self.transcript(f"loud {w.max():.1f}", task) for w in waveforms]

    def transcript(self, text: str, task: Task) -> Transcript:
        words = tuple(Word(word, i, i + 1.0) for i, word in enumerate(text.split()))
        return Transcript(text, task.language, task.target, 2.0, (Segment(0.0, 2.0, text, (5, 6), words),))


@pytest.fixture
def canary(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # away from any .env
    canary = MockCanary()
    monkeypatch.setattr("server.cli.transcribe.load_model", lambda settings: canary)
    return canary


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def sound(name: str, level: float) -> str:
    data = io.BytesIO()
    soundfile.write(data, np.full(16000, level, np.float32), 16000, format="WAV")
    with open(name, "wb") as file:
        file.write(data.getvalue())
    return name


def test_text_is_printed_alone_for_one_file_and_after_its_name_for_several(canary):
    assert run("transcribe", sound("a.wav", 0.1)).stdout == "loud 0.1\n"
    assert run("transcribe", sound("a.wav", 0.1), sound("b.wav", 0.2)).stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"


def test_json_is_one_object_a_line_in_the_order_of_the_files(canary):
    result = run("transcribe", sound("b.wav", 0.2), sound("a.wav", 0.1), "--format", "json", "--language", "de")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0] == {
        "file": "b.wav",
        "text": "loud 0.2",
        "language": "de",
        "language_source": "request",
        "target_language": "de",
        "duration": 2.0,
        "segments": [
            {
                "start": 0.0,
                "end": 2.0,
                "text": "loud 0.2",
                "tokens": [5, 6],
                "words": [{"word": "loud", "start": 0.0, "end": 1.0}, {"word": "0.2", "start": 1.0, "end": 2.0}],
            }
        ],
    }
    assert [line["file"] for line in lines] == ["b.wav", "a.wav"]
    assert result.exit_code == 0


def test_a_language_that_was_not_given_is_said_to_be_assumed(canary):
    line = json.loads(run("transcribe", sound("a.wav", 0.1), "--format", "json").stdout)
    assert (line["language"], line["language_source"]) == ("en", "default")


def test_files_run_in_batches_of_the_size_that_is_set(canary, monkeypatch):
    monkeypatch.setenv("CANARY_MAX_ROWS", "2")
    assert run("transcribe", *(sound(f"{i}.wav", 0.1) for i in range(5))).exit_code == 0
    assert [count for count, _, _ in canary.calls] == [2, 2, 1]


def test_the_options_reach_the_model(canary):
    run(
        *("transcribe", sound("a.wav", 0.1), "--language", "German", "--target-language", "en"),
        *("--timestamps", "word", "--no-pnc", "--beam-size", "4"),
    )
    assert canary.calls == [(1, Task("de", "en", pnc=False, timestamps="word"), DecodingOptions(beam_size=4))]


def test_a_file_that_fails_is_named_in_one_line_and_the_others_are_done(canary):
    with open("junk.wav", "wb") as file:
        file.write(b"\0" * 1000)
    result = run("transcribe", sound("a.wav", 0.1), "junk.wav", "missing.wav", sound("b.wav", 0.2))
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    junk, missing = result.stderr.splitlines()
    assert junk.startswith("canary: junk.wav: The file is not sound that can be read; possible: wav")
    assert missing == "canary: missing.wav: No such file or directory"


def test_files_that_all_fail_do_not_reach_the_model(canary):
    assert run("transcribe", "missing.wav").exit_code == 1
    assert canary.calls == []


def test_a_batch_that_the_model_fails_on_costs_only_the_files_at_fault(canary, monkeypatch):
    whole = canary.transcribe

    def fails_on_loud(waveforms, task, options):
        if max(w.max() for w in waveforms) > 0.5:
            raise RuntimeError("too loud")
        return whole(waveforms, task, options)

    monkeypatch.setattr(canary, "transcribe", fails_on_loud)
    result = run("transcribe", sound("a.wav", 0.1), sound("loud.wav", 0.9), sound("b.wav", 0.2))
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    assert result.stderr == "canary: loud.wav: the model failed: too loud\n"


def test_srt_and_vtt_ask_for_segment_times_and_take_one_file(canary):
    assert run("transcribe", sound("a.wav", 0.1), "-f", "srt").stdout == "1\n00:00:00,000 --> 00:00:02,000\nloud 0.1\n"
    assert canary.calls[-1][1].timestamps == "segment"
    assert run("transcribe", "a.wav", "-f", "vtt").stdout.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n")
    several = run("transcribe", "a.wav", "a.wav", "-f", "srt")
    assert several.exit_code == 2
    assert "srt is written for one file; 2 were given" in several.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transcribe"], "FILE"),
        (["transcribe", "a.wav", "--language", "klingon"], "'klingon' is not known"),
        (["transcribe", "a.wav", "--language", "fr"], "'fr' is not one of mock's: en, de"),
        (["transcribe", "a.wav", "--timestamps", "letter"], "letter"),
        (["transcribe", "a.wav", "--beam-size", "0"], "beam-size"),
        (["serve", "--port", "70000"], "port"),
        (["sing"], "sing"),
    ],
)
def test_what_is_not_possible_is_a_usage_error_that_says_so(canary, arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_a_wrong_setting_in_the_environment_is_a_usage_error_that_names_it(canary, monkeypatch):
    monkeypatch.setenv("CANARY_MAX_QUEUE", "none")
    for command in (["serve"], ["transcribe", "a.wav"]):
        result = run(*command)
        assert result.exit_code == 2
        assert "'none' is not possible" in " ".join(result.stderr.replace("│", " ").split())
        assert "CANARY_MAX_QUEUE" in result.stderr


def test_a_model_that_does_not_exist_ends_in_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path))
    for command in (["transcribe", "a.wav"], ["convert"], ["serve", "--port", "0"]):
        model = ["/no/such/model.nemo"] if command == ["convert"] else ["--model", "/no/such/model.nemo"]
        result = run(*command, *model)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert "/no/such/model.nemo" in result.stderr


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert run("--version").stdout == f"canary-server {version('canary-server')}\n"


def test_help_names_every_command_and_imports_nothing_heavy():
    listing = run("--help").stdout
    assert all(command in listing for command in ("serve", "transcribe", "convert"))
    heavy = "{'mlx', 'numpy', 'torch', 'fastapi', 'uvicorn', 'pydantic', 'model', 'convert'}"
    script = f"import sys, server.__main__; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
