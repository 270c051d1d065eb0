"""Ctrl-C: what runs is stopped, and the command ends with one line and exit code 130, never with an abort."""

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from .conftest import SAMPLES

# `canary`, changed by a test to call `here` at the moment of interest. That returns once `is_over()`.
CANARY = """
import sys, time
import server.cli.recordings as recordings
import server.cli.transcribe as command
from server.__main__ import main

was_here = False

def here(is_over=lambda: True):
    global was_here
    if not was_here:
        was_here = True
        print("here", flush=True)
    while not is_over():
        time.sleep(0.01)

{change}
main()
"""

IMPORTING = """
class Finder:
    def find_spec(self, name, *_):
        if name == "server.cli.transcribe":
            here(lambda: False)

del sys.modules["server.cli.transcribe"]
sys.meta_path.insert(0, Finder())
"""

CONVERTING = """
report = recordings._Loading.__call__

def reported(self, stage, done, total):
    if stage == "converting" and done:
        here(lambda: self.stopped)
    report(self, stage, done, total)

recordings._Loading.__call__ = reported
"""

LOADING = """
load = recordings.load_model

def loaded(*arguments, **options):
    here()
    time.sleep(0.5)
    return load(*arguments, **options)

recordings.load_model = loaded
"""

DECODING = """
from server.engine.batching import Batcher

step = Batcher.step

def stepped(self):
    done = step(self)
    if done:
        here()
    return done

Batcher.step = stepped
"""

WRITTEN = """
write = command._write

def written(text, job):
    write(text, job)
    here()

command._write = written
"""

# C++ calls Python again and again. Unwinding it at the interpreter's exit would call abort().
IN_NATIVE_CODE = """
import mlx.core as mx

def load(*_, **__):
    def forever(x):
        here()
        while True:
            time.sleep(0.0002)
    mx.vmap(forever)(mx.zeros(1))

recordings.STOPPING_S = 0.3
recordings.load_model = load
"""


@pytest.fixture(scope="module")
def long_file(tmp_path_factory) -> Path:
    """Twenty minutes of speech."""
    speech, rate = soundfile.read(SAMPLES / "en.flac", dtype="float32")
    path = tmp_path_factory.mktemp("sound") / "long.wav"
    soundfile.write(path, np.tile(speech, int(1200 * rate / len(speech))), rate)
    return path


def interrupt(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and stderr after Ctrl-C at the moment of interest."""
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "here\n", process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(IMPORTING, id="importing"),
        pytest.param(LOADING, id="loading"),
        pytest.param(DECODING, id="decoding"),
        pytest.param(IN_NATIVE_CODE, id="in native code that does not return"),
    ],
)
@pytest.mark.parametrize("output", [(), ("-o", "out")], ids=["to the screen", "to a folder"])
def test_an_interrupted_transcription_ends_in_one_line_with_exit_code_130(start, long_file, change, output):
    with start(CANARY.format(change=change), "transcribe", long_file, *output) as process:
        assert interrupt(process) == (130, "canary: interrupted\n")


def test_an_interrupted_transcription_stops_converting_at_the_next_tensor(start, long_file, tmp_path):
    cache = tmp_path / "new"
    with start(CANARY.format(change=CONVERTING), "transcribe", long_file, CANARY_CACHE=str(cache)) as process:
        assert interrupt(process) == (130, "canary: interrupted\n")
    assert not list(cache.rglob("config.json"))


def test_files_that_were_done_before_ctrl_c_are_kept_and_none_is_written_in_part(start, long_file, tmp_path):
    script = CANARY.format(change=WRITTEN)
    with start(script, "transcribe", SAMPLES / "en.flac", long_file, "-o", "out") as process:
        assert interrupt(process) == (130, "canary: interrupted\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["en.txt"]


def test_a_server_that_is_interrupted_while_it_loads_a_model_stops_without_waiting_for_it(start):
    change = f"{IN_NATIVE_CODE}\nimport server.engine.registry as registry\nregistry.load_model = load\n"
    with start(CANARY.format(change=change), "serve", "--port", "0") as process:
        code, log = interrupt(process)
    assert code == 0
    assert log.rstrip().endswith("stopped")
    assert "Traceback" not in log
