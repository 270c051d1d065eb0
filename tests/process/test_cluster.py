"""`canary transcribe --ray` on Ray clusters of this machine, with the toy: each file is in the results once, whatever
becomes of the workers.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.decoding import Detection
from model.transcript import Segment, Transcript, Word
from server.text import formats
from server.text.warnings import TRUNCATED, language_mismatch
from tests.environments import ROOT, python_with
from tests.scale.ray import workers

from .conftest import SAMPLES

TEXTS = {name: sample["text"] for name, sample in json.loads((SAMPLES / "samples.json").read_text()).items()}
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def ray_python() -> Path:
    return python_with(ROOT / "tests" / "process" / "cluster" / "requirements.txt", "ray", and_ours=True)


@pytest.fixture(scope="module")
def ray_environment(cache, tmp_path_factory) -> dict[str, str]:
    """This one's, without settings but for the cache. Ray keeps a token for its clusters in the home folder."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CANARY_", "RAY_"))}
    home = str(tmp_path_factory.mktemp("home"))
    return plain | {
        "CANARY_CACHE": str(cache),
        "HOME": home,
        "NO_PROXY": "*",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture
def start_canary(ray_python, ray_environment, tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `canary` in a process of its own, which is killed at the end if it still runs."""

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [ray_python, "-m", "tests.process.cluster.canary", *map(str, arguments)]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ray_environment)
        started.append(running)
        return running

    started: list[subprocess.Popen[str]] = []
    yield start
    for running in started:
        running.kill()
        running.communicate()


@pytest.fixture
def recordings(tmp_path) -> Path:
    """24 files of known text, and one that is none."""
    folder = tmp_path / "recordings"
    for number in range(6):
        (folder / str(number)).mkdir(parents=True)
        for name in TEXTS:
            shutil.copy(SAMPLES / name, folder / str(number) / name)
    (folder / "bad.wav").write_bytes(b"no sound")
    return folder


def records(results: Path) -> list[dict]:
    parts = [part.read_bytes() for part in sorted(results.glob("part-*.jsonl"))]
    return [json.loads(line) for part in parts for line in part.splitlines()]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def ended(process: subprocess.Popen[str]) -> str:
    """What it has written to stderr by its end."""
    return process.communicate(timeout=TIMEOUT_S)[1]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_worker_is_killed_and_every_file_is_in_the_results_once(start_canary, recordings, tmp_path):
    results = tmp_path / "results"
    running = start_canary("transcribe", recordings, "--ray", "--workers", "2", "--output-dir", results)
    wait_for(lambda: len(records(results)) >= 2 or running.poll() is not None)
    assert running.poll() is None, ended(running)
    [victim, *_] = workers(running.pid)
    before = len(records(results))
    victim.send_signal(signal.SIGKILL)
    error = ended(running)
    assert running.returncode == 1, error
    assert 2 <= before < 20
    found = records(results)
    assert sorted(record["file"] for record in found) == files_in(recordings)
    failed = [record for record in found if "error" in record]
    assert [(record["file"], record["error"]["code"]) for record in failed] == [
        (str(recordings / "bad.wav"), "invalid_audio")
    ]
    assert f"canary: {recordings}/bad.wav: Unsupported or damaged audio file." in error
    assert f"canary: 25 recordings, 1 failed; results in {results}" in error
    for record in found:
        if record not in failed:
            assert record["text"] == TEXTS[Path(record["file"]).name]
            assert record["language_source"] == "detected"


@pytest.fixture(scope="module")
def address(ray_python, ray_environment) -> Iterator[str]:
    """Of a cluster of two machines."""
    command = [ray_python, "-m", "tests.process.cluster.machines"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ray_environment, **pipes) as running:
        assert running.stdout
        found = running.stdout.readline().strip()
        assert found, "the cluster did not start"
        yield found
        # Closes its standard input, and waits for its end.
        running.communicate(timeout=TIMEOUT_S)


def test_a_second_run_on_a_cluster_goes_on_and_a_file_that_ends_its_workers_is_passed_over(
    start_canary, ray_python, recordings, address, tmp_path
):
    results = tmp_path / "results"
    on_cluster = ("--ray", "--address", address, "--output-dir", results, "--format", "parquet", "--language", "en")
    some = recordings / "0"
    first = start_canary("transcribe", some, *on_cluster)
    error = ended(first)
    assert first.returncode == 0, error
    assert table(ray_python, results) == [(path, False) for path in files_in(some)]

    refused = start_canary("transcribe", recordings, *on_cluster)
    assert f"canary: {results} holds results; add --resume to go on with them" in ended(refused)
    shutil.copy(SAMPLES / "en.flac", recordings / "deadly.flac")
    second = start_canary("transcribe", recordings, *on_cluster, "--resume")
    error = ended(second)
    assert second.returncode == 1, error
    assert "canary: 4 of 26 recordings are done already\n" in error
    assert f"canary: {recordings}/deadly.flac: 3 workers ended while they transcribed it\n" in error
    failed = [str(recordings / name) for name in ("bad.wav", "deadly.flac")]
    assert table(ray_python, results) == [(path, path in failed) for path in files_in(recordings)]


def test_a_model_that_cannot_do_the_task_ends_the_run_in_one_line(start_canary, recordings, address, tmp_path):
    results = tmp_path / "results"
    refused = start_canary(
        "transcribe", recordings, "--ray", "--address", address, "--output-dir", results, "--language", "it"
    )
    error = ended(refused)
    assert refused.returncode == 1
    assert "'it' is not supported by toy; must be one of en, de, es, fr" in error.splitlines()[-1]
    assert [path.name for path in results.iterdir()] == ["run.json"]


def test_parquet_keeps_every_field_that_a_record_can_have(ray_python):
    detection = Detection("es", 0.9, "en", {"es": 0.9, "en": 0.1})
    word = Word("el", 0.5, 0.75, probability=0.5, confidence=0.25)
    segment = Segment(0.5, 1.0, "el", (7, 8), (word,), avg_logprob=-0.5, no_speech_prob=0.125, language="es")
    warnings = [TRUNCATED, language_mismatch("en", "es", 0.99)]
    transcript = formats.to_dict(
        Transcript("el\u2028 hombre", "es", "en", 2.0, (segment,), "model"),
        "detected",
        detection,
        ((1.0, 1.5),),
        truncated=True,
        warnings=warnings,
    )
    named = {"file": "/a/é.wav", "size": 1 << 40, "version": "1"}
    records = [named | transcript, named | {"error": {"code": "invalid_audio", "message": "The file is empty."}}]
    script = """
import json, sys
from server.cli.cluster.parquet import from_parquet, to_parquet
print(json.dumps(from_parquet(to_parquet(json.load(sys.stdin)))))
"""
    done = subprocess.run(
        [ray_python, "-c", script], input=json.dumps(records), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # What a record does not have is null.
    assert without_nulls(json.loads(done.stdout)) == records


def test_reading_parquet_starts_no_thread(ray_python):
    """Arrow's threads can abort the process when it ends, with everything done."""
    script = """
import psutil
from server.cli.cluster.parquet import from_parquet, to_parquet
data = to_parquet([{"file": "a.wav"}])
before = psutil.Process().num_threads()
from_parquet(data)
print(psutil.Process().num_threads() - before)
"""
    done = subprocess.run([ray_python, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "0\n", done.stderr


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def table(python: Path, results: Path) -> list[tuple[str, bool]]:
    """The files in the parquet, sorted, and whether each failed; the others have a text."""
    script = """
import json, sys
from pyarrow import dataset
rows = dataset.dataset(sys.argv[1], format="parquet", exclude_invalid_files=True).to_table().to_pylist()
assert all(bool(row["text"]) != bool(row["error"]) for row in rows)
print(json.dumps([[row["file"], bool(row["error"])] for row in rows]))
"""
    done = subprocess.run([python, "-c", script, results], capture_output=True, text=True, check=True)
    return sorted((file, failed) for file, failed in json.loads(done.stdout))
