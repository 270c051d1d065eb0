"""The command line, with a model that needs no weights."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from model.canary.generate import DecodingOptions
from model.canary.language import detection_from
from model.canary.prompt import Task, check_task
from model.transcript import Segment, Transcript, Word
from server.__main__ import main
from server.engine.batching import Pass, PassResult, Timing
from server.errors import AudioError, TranscriptionFailed
from server.settings import Settings


class MockEngine:
    """Says how loud each piece is, over and over if that is below 0.1, and takes what is above 0.6 for Spanish.

    Keeps what it was asked.
    """

    info = SimpleNamespace(config=SimpleNamespace(name="mock", languages=("en", "de", "es"), prompt_format="canary2"))

    def __init__(self):
        self.calls: list[Pass] = []
        self.running = self.most_running = 0

    async def start(self):
        pass

    async def stop(self, drain_s):
        pass

    def check(self, task: Task) -> None:
        check_task(task, self.info.config)

    async def run(self, wanted: Pass, priority: int) -> PassResult:
        self.calls.append(wanted)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        if wanted.waveform.max() > 0.8:
            raise TranscriptionFailed("The model failed on this audio.")
        if wanted.waveform.max() > 0.6 and wanted.tasks[0].language == "auto":
            check_task(replace(wanted.tasks[0], language="es"), self.info.config)
        task, text = wanted.tasks[0], f"loud {wanted.waveform.max():.1f}" * (1 if wanted.waveform.max() > 0.09 else 50)
        detection = detection_from({"de": 0.9, "en": 0.1}) if task.language == "auto" else None
        words = tuple(Word(word, i, i + 1.0) for i, word in enumerate(text.split()) if task.timestamps != "none")
        segment = Segment(0.0, 2.0, text, (5, 6), words)
        language = detection.language if detection else task.language
        transcript = Transcript(text, language, task.target_language or language, 2.0, (segment,))
        return PassResult((transcript,), (), (), detection, Timing())


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """Commands set up a log on their stderr, which ends with them."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # away from any .env
    engine = MockEngine()
    monkeypatch.setattr("server.cli.transcribe.Engine.from_settings", lambda *_, **limits: engine)
    return engine


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def sound(name: str, level: float) -> str:
    data = io.BytesIO()
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(data, np.full(16000, level, np.float32), 16000, format="WAV")
    with open(name, "wb") as file:
        file.write(data.getvalue())
    return name


def test_text_is_printed_alone_for_one_file_and_after_its_name_for_several(engine):
    assert run("transcribe", sound("a.wav", 0.1)).stdout == "loud 0.1\n"
    assert run("transcribe", sound("a.wav", 0.1), sound("b.wav", 0.2)).stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"


WITH_WORDS = ("--format", "json", "--timestamps", "word")


def test_json_is_one_object_a_line_in_the_order_of_the_files(engine):
    result = run("transcribe", sound("b.wav", 0.2), sound("a.wav", 0.1), *WITH_WORDS, "--language", "de")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0] == {
        "file": "b.wav",
        "text": "loud 0.2",
        "language": "de",
        "language_source": "request",
        "target_language": "de",
        "duration": 1.0,
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


def test_a_language_that_was_not_given_is_found_out_and_said_to_be(engine):
    line = json.loads(run("transcribe", sound("a.wav", 0.1), "--format", "json").stdout)
    assert (line["language"], line["language_source"]) == ("de", "detected")
    assert (line["language_probability"], line["language_runner_up"]) == (0.9, "en")


def test_files_are_worked_on_side_by_side_and_told_in_order(engine):
    result = run("transcribe", *(sound(f"{i}.wav", i / 10) for i in range(1, 7)))
    assert result.stdout == "".join(f"{i}.wav: loud 0.{i}\n" for i in range(1, 7))
    assert 1 < engine.most_running <= 4


def test_the_options_reach_the_model(engine):
    run(
        *("transcribe", sound("a.wav", 0.1), "--language", "German", "--target-language", "en"),
        *("--timestamps", "word", "--no-pnc", "--beam-size", "4"),
    )
    (call,) = engine.calls
    assert call.tasks == (Task("de", "en", pnc=False, timestamps="word"),)
    assert call.options == DecodingOptions(beam_size=4)


@pytest.mark.parametrize(
    ("variable", "option", "guarded"),
    [
        (None, (), True),
        ("false", (), False),
        ("false", ("--loop-guard",), True),
        ("true", ("--no-loop-guard",), False),
    ],
)
def test_a_loop_is_decoded_again_unless_the_option_or_else_the_setting_says_no(
    engine, monkeypatch, variable, option, guarded
):
    if variable:
        monkeypatch.setenv("CANARY_LOOP_GUARD", variable)
    assert run("transcribe", sound("loop.wav", 0.05), *option).exit_code == 0
    assert (len(engine.calls) > 1) == guarded


def test_help_says_of_no_option_that_a_setting_decides_on_what_it_is_by_default():
    commands = typer.main.get_command(main).commands  # type: ignore[attr-defined]
    for command in ("serve", "transcribe", "bench"):
        for option in commands[command].params:
            setting = {"line_length": "subtitle_line_length", "lines": "subtitle_lines", "language": "default_language"}
            name = setting.get(option.name, option.name)
            if name in Settings.model_fields:
                assert "by default" not in option.help.lower(), f"{command} {option.opts[0]}: {option.help}"
                assert option.default is None, f"{command} {option.opts[0]}"
        assert "CANARY_" in commands[command].help


def test_folders_and_patterns_are_searched_and_each_file_is_taken_once(engine):
    for name in ("in/a.wav", "in/deep/b.wav", "c.wav", "d.wav"):
        sound(name, 0.1)
    Path("in/notes.txt").write_text("no sound")
    Path("empty").mkdir()
    result = run("transcribe", "in", "*.wav", "c.wav", "empty", "x*.wav")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "in/a.wav",
        "in/deep/b.wav",
        "c.wav",
        "d.wav",
    ]
    assert result.exit_code == 1
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [" empty", " x*.wav"]


def test_an_output_folder_gets_a_file_for_each_in_the_shape_of_the_input(engine):
    for name in ("in/a.wav", "in/a.mp3", "in/deep/b.wav"):
        sound(name, 0.1)
    result = run("transcribe", "in", "-o", "out", "-f", "srt")
    assert (result.stdout, result.exit_code) == ("", 0)
    written = sorted(str(path) for path in Path("out").rglob("*") if path.is_file())
    assert written == ["out/a.mp3.srt", "out/a.wav.srt", "out/deep/b.srt"]
    assert Path("out/deep/b.srt").read_text() == "1\n00:00:00,000 --> 00:00:02,000\nloud 0.1\n"


def written_to(*arguments: str) -> dict[str, str]:
    """By path in the output folder, the text that is there after transcribing these."""
    assert run("transcribe", *arguments, "-o", "out").exit_code == 0
    return {p.relative_to("out").as_posix(): p.read_text() for p in Path("out").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "named", [("mon", "tue"), ("mon/talk.wav", "tue/talk.wav"), ("*/talk.wav",), ("mon", "*/talk.wav")]
)
def test_files_of_one_name_are_written_under_the_names_of_their_folders(engine, named):
    sound("mon/talk.wav", 0.1), sound("tue/talk.wav", 0.2)
    assert written_to(*named) == {"mon/talk.txt": "loud 0.1\n", "tue/talk.txt": "loud 0.2\n"}
    assert run("transcribe", *named, "-o", "out", "--resume").exit_code == 0
    assert len(engine.calls) == 2


def test_as_many_folders_are_named_as_tell_files_of_one_name_apart_and_none_for_the_others(engine):
    for level, name in enumerate(("a/mon/talk.wav", "b/mon/talk.wav", "b/tue/talk.wav", "b/mon/rest.wav"), 1):
        sound(name, level / 10)
    assert written_to("a/mon", "b/mon", "b/tue") == {
        "a/mon/talk.txt": "loud 0.1\n",
        "b/mon/talk.txt": "loud 0.2\n",
        "tue/talk.txt": "loud 0.3\n",
        "rest.txt": "loud 0.4\n",
    }


def test_what_a_file_system_might_take_for_one_name_is_kept_apart(engine):
    sound("mon/Talk.wav", 0.1), sound("tue/talk.wav", 0.2)
    assert sorted(written_to("mon", "tue")) == ["mon/Talk.txt", "tue/talk.txt"]


def test_a_name_that_ends_in_two_suffixes_takes_no_other_files_place(engine):
    sound("a.wav", 0.1), sound("a.mp3", 0.2), sound("a.wav.flac", 0.3)
    assert written_to("a.wav", "a.mp3", "a.wav.flac") == {
        "a.wav.txt": "loud 0.1\n",
        "a.mp3.txt": "loud 0.2\n",
        "a.wav.flac.txt": "loud 0.3\n",
    }


def test_a_file_that_is_named_in_two_ways_is_taken_once(engine):
    sound("in/a.wav", 0.1)
    assert written_to("in", "in/../in/a.wav", str(Path("in/a.wav").absolute())) == {"a.txt": "loud 0.1\n"}
    assert len(engine.calls) == 1


def test_what_is_done_is_passed_over_on_resume(engine):
    sound("in/a.wav", 0.1), sound("in/b.wav", 0.9)
    assert run("transcribe", "in", "-o", "out").exit_code == 1
    assert Path("out/a.txt").read_text() == "loud 0.1\n"
    assert not Path("out/b.txt").exists()
    sound("in/b.wav", 0.2)
    assert run("transcribe", "in", "-o", "out", "--resume").exit_code == 0
    assert Path("out/b.txt").read_text() == "loud 0.2\n"
    assert len(engine.calls) == 3
    assert "--output-dir" in run("transcribe", "in", "--resume").stderr


def test_a_file_that_fails_is_named_in_one_line_and_the_others_are_done(engine):
    with open("junk.wav", "wb") as file:
        file.write(b"\0" * 1000)
    result = run("transcribe", sound("a.wav", 0.1), "junk.wav", "missing.wav", sound("b.wav", 0.2))
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    junk, missing = result.stderr.splitlines()
    assert junk.startswith("canary: junk.wav: The file is not sound that can be read; possible: wav")
    assert missing == "canary: missing.wav: No such file or directory"


def test_what_failed_is_said_in_the_order_of_the_files_however_long_it_took(engine, monkeypatch):
    from server.cli import transcribe

    def decode_slowly(path, limits):
        if path.name == "slow.wav":
            time.sleep(0.2)
            raise AudioError("slow")
        raise FileNotFoundError(2, "No such file")
        yield

    monkeypatch.setattr(transcribe, "decode_blocks", decode_slowly)
    result = run("transcribe", "slow.wav", "missing.wav")
    assert result.stderr == "canary: slow.wav: slow\ncanary: missing.wav: No such file\n"


def test_files_that_all_fail_do_not_reach_the_model(engine):
    assert run("transcribe", "missing.wav").exit_code == 1
    assert engine.calls == []


def test_a_file_that_the_model_fails_on_costs_no_other(engine):
    result = run("transcribe", sound("a.wav", 0.1), sound("loud.wav", 0.9), sound("b.wav", 0.2))
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    assert result.stderr == "canary: loud.wav: The model failed on this audio.\n"


def test_a_file_in_a_language_that_the_model_cannot_translate_so_costs_no_other(engine):
    result = run("transcribe", sound("a.wav", 0.1), sound("spanish.wav", 0.7), sound("b.wav", 0.2), "-t", "de")
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    assert result.stderr == (
        "canary: spanish.wav: mock does not translate es to de: it translates from and to English\n"
    )


def test_what_can_be_read_only_once_is_said_to_be_so(engine):
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe:
        pipe.write(b"RIFF")
    with open(reading, "rb"):
        result = run("transcribe", f"/dev/fd/{reading}")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"canary: /dev/fd/{reading}: ")
    assert "is not seekable" in line


def test_srt_and_vtt_ask_for_segment_times_and_take_one_file(engine):
    assert run("transcribe", sound("a.wav", 0.1), "-f", "srt").stdout == "1\n00:00:00,000 --> 00:00:02,000\nloud 0.1\n"
    assert engine.calls[-1].tasks[0].timestamps == "segment"
    assert run("transcribe", "a.wav", "-f", "vtt").stdout.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n")
    narrow = ("transcribe", "a.wav", "-f", "srt", "--subtitle-line-length", "5")
    assert run(*narrow).stdout.endswith("\nloud\n0.1\n")
    assert run(*narrow, "--subtitle-lines", "1").stdout.endswith("\n2\n00:00:01,000 --> 00:00:02,000\n0.1\n")
    several = run("transcribe", "a.wav", sound("b.wav", 0.1), "-f", "srt")
    assert several.exit_code == 2
    assert "srt is written for one file; 2 were given" in several.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transcribe"], "FILE"),
        (["transcribe", "a.wav", "--language", "klingon"], "'klingon' is not known"),
        (["transcribe", "a.wav", "--language", "fr"], "'fr' is not one of mock's: en, de, es"),
        (["transcribe", "a.wav", "--timestamps", "letter"], "letter"),
        (["transcribe", "a.wav", "--beam-size", "0"], "beam-size"),
        (["serve", "--port", "70000"], "port"),
        (["sing"], "sing"),
    ],
)
def test_what_is_not_possible_is_a_usage_error_that_says_so(engine, arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


def test_a_wrong_setting_in_the_environment_is_a_usage_error_that_names_it(engine, monkeypatch):
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
        # The server's log comes before it.
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("canary: ")]
        assert "/no/such/model.nemo" in line


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert run("--version").stdout == f"canary-server {version('canary-server')}\n"


def test_help_names_every_command_and_imports_nothing_heavy():
    listing = run("--help").stdout
    assert all(command in listing for command in ("serve", "transcribe", "convert"))
    heavy = "{'mlx', 'numpy', 'torch', 'fastapi', 'uvicorn', 'pydantic', 'model', 'convert'}"
    script = f"import sys, server.__main__; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
