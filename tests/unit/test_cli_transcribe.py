"""`canary transcribe`, with a model that needs no weights."""

import asyncio
import io
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from model.decoding import DecodingOptions, detection_from
from model.task import Task
from model.transcript import Segment, Transcript, Word
from server.__main__ import main
from server.engine.passes import Pass, PassResult, Timing
from server.errors import AudioError, TranscriptionFailed
from tests.configs import canary_config


class MockEngine:
    """Writes how loud each piece is: over and over if that is below 0.1. Detects Spanish above 0.6, fails above 0.8.

    Keeps the passes it was asked for. `wait` is called before each answer.
    """

    info = SimpleNamespace(config=canary_config(languages=("en", "de", "es")))

    def __init__(self):
        self.calls: list[Pass] = []
        self.running = self.most_running = 0
        self.wait: Callable[[Pass], Awaitable[None]] = lambda wanted: asyncio.sleep(0.01)

    async def start(self):
        pass

    async def stop(self, drain_s):
        pass

    def check(self, task: Task) -> None:
        self.info.config.check(task)

    async def run(self, wanted: Pass, priority: int) -> PassResult:
        self.calls.append(wanted)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await self.wait(wanted)
        self.running -= 1
        if wanted.waveform.max() > 0.8:
            raise TranscriptionFailed("The model failed on this audio.")
        if wanted.waveform.max() > 0.6 and wanted.tasks[0].language == "auto":
            self.info.config.check(replace(wanted.tasks[0], language="es"))
        task, text = wanted.tasks[0], f"loud {wanted.waveform.max():.1f}" * (1 if wanted.waveform.max() > 0.09 else 50)
        detection = detection_from({"de": 0.9, "en": 0.1}) if task.language == "auto" else None
        words = tuple(Word(word, i, i + 1.0) for i, word in enumerate(text.split()) if task.timestamps != "none")
        segment = Segment(0.0, 2.0, text, (5, 6), words)
        language = detection.language if detection else task.language
        transcript = Transcript(text, language, task.target_language or language, 2.0, (segment,))
        return PassResult((transcript,), (), (), detection, Timing())


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


def test_one_files_text_is_printed_alone_and_several_after_their_names(engine):
    assert run("transcribe", sound("a.wav", 0.1)).stdout == "loud 0.1\n"
    assert run("transcribe", sound("a.wav", 0.1), sound("b.wav", 0.2)).stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"


def test_the_decoder_starts_before_the_model_is_loaded(engine, monkeypatch):
    done = []
    monkeypatch.setattr("server.cli.transcribe.prepare_decoding", lambda path: done.append(f"decoder for {path}"))

    async def start():
        done.append("model")

    monkeypatch.setattr(engine, "start", start)
    assert run("transcribe", sound("a.wav", 0.1), sound("b.wav", 0.2)).exit_code == 0
    assert done == ["decoder for a.wav", "model"]


WITH_WORDS = ("--format", "json", "--timestamps", "word")


def test_json_is_one_object_per_line_in_the_order_of_the_files(engine):
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


def test_a_language_that_is_not_given_is_detected(engine):
    line = json.loads(run("transcribe", sound("a.wav", 0.1), "--format", "json").stdout)
    assert (line["language"], line["language_source"]) == ("de", "detected")
    assert (line["language_probability"], line["language_runner_up"]) == (0.9, "en")


def test_silence_has_a_default_language_since_none_is_detected(engine):
    line = json.loads(run("transcribe", sound("a.wav", 0.0), "--format", "json").stdout)
    assert (line["language"], line["language_source"]) == ("en", "default")
    assert "language_probability" not in line


def test_files_run_at_the_same_time_and_are_printed_in_order(engine):
    result = run("transcribe", *(sound(f"{i}.wav", i / 10) for i in range(1, 7)))
    assert result.stdout == "".join(f"{i}.wav: loud 0.{i}\n" for i in range(1, 7))
    assert 1 < engine.most_running <= 4


def test_options_reach_the_model(engine):
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
def test_loops_are_decoded_again_unless_the_option_or_the_setting_turns_that_off(
    engine, monkeypatch, variable, option, guarded
):
    if variable:
        monkeypatch.setenv("CANARY_LOOP_GUARD", variable)
    assert run("transcribe", sound("loop.wav", 0.05), *option).exit_code == 0
    assert (len(engine.calls) > 1) == guarded


def test_folders_and_patterns_are_searched_and_each_file_is_done_once(engine):
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


def test_the_output_folder_has_the_structure_of_the_input(engine):
    for name in ("in/a.wav", "in/a.mp3", "in/deep/b.wav"):
        sound(name, 0.1)
    result = run("transcribe", "in", "-o", "out", "-f", "srt")
    assert (result.stdout, result.exit_code) == ("", 0)
    written = sorted(str(path) for path in Path("out").rglob("*") if path.is_file())
    assert written == ["out/a.mp3.srt", "out/a.wav.srt", "out/deep/b.srt"]
    assert Path("out/deep/b.srt").read_text() == "1\n00:00:00,000 --> 00:00:02,000\nloud 0.1\n"


def written_to(*arguments: str) -> dict[str, str]:
    """The texts in the output folder after transcribing these, by path."""
    assert run("transcribe", *arguments, "-o", "out").exit_code == 0
    return {p.relative_to("out").as_posix(): p.read_text() for p in Path("out").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "named", [("mon", "tue"), ("mon/talk.wav", "tue/talk.wav"), ("*/talk.wav",), ("mon", "*/talk.wav")]
)
def test_files_of_the_same_name_go_into_subfolders_named_after_their_folders(engine, named):
    sound("mon/talk.wav", 0.1), sound("tue/talk.wav", 0.2)
    assert written_to(*named) == {"mon/talk.txt": "loud 0.1\n", "tue/talk.txt": "loud 0.2\n"}
    assert run("transcribe", *named, "-o", "out", "--resume").exit_code == 0
    assert len(engine.calls) == 2


def test_only_files_of_the_same_name_get_subfolders_and_only_as_many_as_needed(engine):
    for level, name in enumerate(("a/mon/talk.wav", "b/mon/talk.wav", "b/tue/talk.wav", "b/mon/rest.wav"), 1):
        sound(name, level / 10)
    assert written_to("a/mon", "b/mon", "b/tue") == {
        "a/mon/talk.txt": "loud 0.1\n",
        "b/mon/talk.txt": "loud 0.2\n",
        "tue/talk.txt": "loud 0.3\n",
        "rest.txt": "loud 0.4\n",
    }


def test_names_that_differ_only_in_case_are_kept_apart(engine):
    sound("mon/Talk.wav", 0.1), sound("tue/talk.wav", 0.2)
    assert sorted(written_to("mon", "tue")) == ["mon/Talk.txt", "tue/talk.txt"]


def test_a_name_with_two_suffixes_does_not_take_another_files_place(engine):
    sound("a.wav", 0.1), sound("a.mp3", 0.2), sound("a.wav.flac", 0.3)
    assert written_to("a.wav", "a.mp3", "a.wav.flac") == {
        "a.wav.txt": "loud 0.1\n",
        "a.mp3.txt": "loud 0.2\n",
        "a.wav.flac.txt": "loud 0.3\n",
    }


def test_a_file_that_is_named_in_two_ways_is_done_once(engine):
    sound("in/a.wav", 0.1)
    assert written_to("in", "in/../in/a.wav", str(Path("in/a.wav").absolute())) == {"a.txt": "loud 0.1\n"}
    assert len(engine.calls) == 1


def test_resume_skips_files_that_are_done(engine):
    sound("in/a.wav", 0.1), sound("in/b.wav", 0.9)
    assert run("transcribe", "in", "-o", "out").exit_code == 1
    assert Path("out/a.txt").read_text() == "loud 0.1\n"
    assert not Path("out/b.txt").exists()
    sound("in/b.wav", 0.2)
    assert run("transcribe", "in", "-o", "out", "--resume").exit_code == 0
    assert Path("out/b.txt").read_text() == "loud 0.2\n"
    assert len(engine.calls) == 3
    assert "--output-dir" in run("transcribe", "in", "--resume").stderr


def test_a_file_that_fails_gets_one_line_and_the_others_are_done(engine):
    Path("junk.wav").write_bytes(b"\0" * 1000)
    result = run("transcribe", sound("a.wav", 0.1), "junk.wav", sound("b.wav", 0.2))
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("canary: junk.wav: ")


def test_paths_that_do_not_exist_are_all_named_before_anything_is_loaded(engine):
    async def start():
        raise AssertionError("the model was loaded")

    engine.start = start
    result = run("transcribe", "gone.wav", sound("a.wav", 0.1), "no/such/folder", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr == (
        "canary: gone.wav: no such file or folder\ncanary: no/such/folder: no such file or folder\n"
    )
    assert not Path("out").exists()
    assert engine.calls == []


def test_with_an_output_folder_each_file_is_written_as_soon_as_it_is_ready(engine):
    async def first_waits_for_the_second(wanted: Pass) -> None:
        async with asyncio.timeout(20):
            while wanted.waveform.max() < 0.15 and not Path("out/second.txt").exists():
                await asyncio.sleep(0.01)

    engine.wait = first_waits_for_the_second
    result = run("transcribe", sound("first.wav", 0.1), sound("second.wav", 0.2), "-o", "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("out/first.txt").read_text() == "loud 0.1\n"


def test_failures_are_reported_in_the_order_of_the_files(engine, monkeypatch):
    from server.cli import transcribe

    def decode_slowly(path, limits):
        if path.name == "slow.wav":
            time.sleep(0.2)
            raise AudioError("slow")
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr(transcribe, "decode_blocks", decode_slowly)
    result = run("transcribe", sound("slow.wav", 0.1), sound("locked.wav", 0.1))
    assert result.stderr == "canary: slow.wav: slow\ncanary: locked.wav: Permission denied\n"


def test_a_failure_of_the_model_affects_only_its_file(engine):
    result = run("transcribe", sound("a.wav", 0.1), sound("loud.wav", 0.9), sound("b.wav", 0.2))
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    assert result.stderr == "canary: loud.wav: The model failed on this audio.\n"


def test_a_language_pair_that_is_not_supported_affects_only_its_file(engine):
    result = run("transcribe", sound("a.wav", 0.1), sound("spanish.wav", 0.7), sound("b.wav", 0.2), "-t", "de")
    assert result.exit_code == 1
    assert result.stdout == "a.wav: loud 0.1\nb.wav: loud 0.2\n"
    assert result.stderr == ("canary: spanish.wav: mock does not translate es to de; one of the two must be en\n")


def test_a_pipe_is_refused_as_not_seekable(engine):
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
    assert "srt without --output-dir takes one file, not 2" in several.stderr


def test_a_language_that_the_model_does_not_support_is_a_usage_error(engine):
    result = run("transcribe", sound("a.wav", 0.1), "--language", "fr")
    assert result.exit_code == 2
    assert "'fr' is not supported by mock; must be one of en, de, es" in " ".join(result.stderr.split())


def test_the_command_line_offers_every_format():
    from server.__main__ import transcribe
    from server.cli.transcribe import SUFFIXES
    from server.text.formats import Format

    offered = get_args(get_args(get_type_hints(transcribe)["format"])[0])
    assert set(offered) - {"parquet"} == set(SUFFIXES) == set(get_args(Format))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray",), "--ray: needs --output-dir, for the results"),
        (("--ray", "--output-dir", "out", "--format", "srt"), "--format: must be json or parquet with --ray, not srt"),
        (("--format", "parquet"), "--format: parquet needs --ray"),
        (("--workers", "2"), "--workers: needs --ray"),
        (("--address", "auto"), "--address: needs --ray"),
    ],
)
def test_options_of_a_cluster_that_do_not_fit_are_usage_errors(engine, options, message):
    result = run("transcribe", sound("a.wav", 0.1), *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_without_ray_a_cluster_is_refused_in_one_line_that_says_what_to_install(engine, monkeypatch):
    monkeypatch.setattr("server.cli.cluster.command.find_spec", lambda name: None)
    result = run("transcribe", sound("a.wav", 0.1), "--ray", "--output-dir", "out")
    assert result.exit_code == 1
    assert result.stderr == "canary: --ray needs Ray Data: install the extra ray, or run: pip install 'ray[data]'\n"
    assert not Path("out").exists()
