"""`canary evaluate hf:…` with the library `datasets`: the toy's samples in folders that the library wrote."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.environments import ROOT, python_with
from tests.hub_server import Hub, serving

from .conftest import SAMPLES

TEXTS = {name: sample["text"] for name, sample in json.loads((SAMPLES / "samples.json").read_text()).items()}
NAMES = ["en.flac", "de.flac", "es.flac"]
MODULE = "tests.process.hub_datasets"


@pytest.fixture(scope="module")
def datasets_python() -> Path:
    return python_with(ROOT / "tests" / "process" / "hub_datasets" / "requirements.txt", "datasets", and_ours=True)


@pytest.fixture
def run(datasets_python, environment, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a module in an empty folder, without a token of the Hub."""
    alone = environment | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}

    def run(module: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [datasets_python, "-m", module, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=alone | variables)

    return run


@pytest.fixture(scope="module")
def written(datasets_python, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    variables = os.environ | {"HF_HOME": str(folder / "hf")}
    subprocess.run([datasets_python, "-m", f"{MODULE}.write", folder], check=True, capture_output=True, env=variables)
    return folder


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_dataset_is_transcribed_and_bad_audio_fails_and_rows_without_text_are_skipped(run, written, tmp_path):
    address = f"hf:{written}/bad"
    made = run("server", "evaluate", address, "-o", "pred.jsonl", "--json")
    lines, found = records(tmp_path / "pred.jsonl"), json.loads(made.stdout)
    assert [line["audio_filepath"] for line in lines] == [
        f"{address}/default/test/{number}/{name}" for number, name in enumerate([*NAMES, "bad.wav"])
    ]
    assert [(line["text"], line["pred_text"]) for line in lines[:3]] == [(TEXTS[name], TEXTS[name]) for name in NAMES]
    assert (found["manifest"], found["utterances"], found["failed"]) == (address, 4, 1)
    assert made.returncode == 1
    assert made.stderr.startswith("canary: skipped 1 rows without text: 4\n")
    assert f"canary: {address}, row 3: bad.wav: Unsupported or damaged audio file." in made.stderr


def test_an_evaluation_of_the_first_rows_is_resumed_with_the_others(run, written, tmp_path):
    address = f"hf:{written}/saved"
    assert run("server", "evaluate", address, "-o", "pred.jsonl", "--limit", 2).returncode == 0
    before = records(tmp_path / "pred.jsonl")
    assert len(before) == 2
    resumed = run("server", "evaluate", address, "-o", "pred.jsonl", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    after = records(tmp_path / "pred.jsonl")
    # What was there was not made again: its times are the first run's.
    assert after[:2] == before
    assert [Path(line["audio_filepath"]).name for line in after] == NAMES


@pytest.fixture
def opened(run) -> Callable[..., dict[str, Any]]:
    """What is said of each address, or its rows: name, text and size of the file."""

    def opened(*addresses: str, **variables: str) -> dict[str, Any]:
        made = run(f"{MODULE}.opened", *addresses, **variables)
        assert made.returncode == 0, made.stderr
        return json.loads(made.stdout)

    return opened


def test_parquet_and_folders_of_save_to_disk_and_of_audio_files_have_the_same_rows(opened, written):
    addresses = {
        f"hf:{written}/parquet?config=clean&text=transcription": f"hf:{written}/parquet/clean/test",
        f"hf:{written}/saved": f"hf:{written}/saved/test",
        f"hf:{written}/files": f"hf:{written}/files/default/test",
    }
    for address, rows in opened(*addresses).items():
        assert rows == [
            [f"{addresses[address]}/{number}/{name}", TEXTS[name], (SAMPLES / name).stat().st_size]
            for number, name in enumerate(NAMES)
        ]


def test_an_unknown_config_split_or_column_is_named_with_those_that_exist(opened, written):
    cases = {
        "parquet": "config is required: one of clean, other",
        "parquet?config=dirty": "no config 'dirty'; must be one of clean, other",
        "parquet?config=clean&split=dev": "no split 'dev'; must be one of test",
        "saved?split=dev": "no split 'dev'; must be one of test",
        "saved?config=clean": "there is no config 'clean': save_to_disk writes none",
        "saved?text=words": "no text column 'words'; must be one of transcription, raw_transcription",
        "saved?text=id": "no text column 'id'; must be one of transcription, raw_transcription",
        "saved?audio=sound": "no audio column 'sound'; must be one of audio",
        "ambiguous": "add text=COLUMN to the address: one of title, words",
        "none": "could not be read (",
        "gone": f"no such folder: {written}/gone",
    }
    addresses = [f"hf:{written}/{address}" for address in cases]
    said = opened(*addresses)
    for address, expected in zip(addresses, cases.values(), strict=True):
        assert said[address].startswith(f"{address}: {expected}")


def repository(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("folder", "options", "place"),
    [("parquet", "?config=clean&text=transcription", "clean/test"), ("files", "", "default/test")],
)
def test_a_dataset_of_the_hub_is_streamed(opened, written, folder, options, place):
    with serving(Hub("talks/test", repository(written / folder))) as hub:
        (rows,) = opened(f"hf:talks/test{options}", HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1").values()
    assert rows == [
        [f"hf:talks/test/{place}/{number}/{name}", TEXTS[name], (SAMPLES / name).stat().st_size]
        for number, name in enumerate(NAMES)
    ]


def test_a_dataset_of_the_hub_cannot_name_a_file_of_this_machine(opened, written):
    with serving(Hub("talks/test", repository(written / "pointing"))) as hub:
        (rows,) = opened("hf:talks/test", HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1").values()
    assert rows == [["hf:talks/test/default/test/0/en.flac", "Not in the dataset.", 0]]
    # A folder of this machine may.
    (rows,) = opened(f"hf:{written}/pointing").values()
    assert rows[0][2] == (SAMPLES / "en.flac").stat().st_size


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "the dataset is gated: accept its terms at {hub}/datasets/talks/test, then log in with"),
        (404, "RepoNotFound", "no such dataset, or it is private: check the name, then log in with"),
        (404, "RevisionNotFound", "no revision 'v9': leave out @v9 or name a branch, tag or commit"),
    ],
)
def test_a_dataset_that_the_hub_refuses_is_an_error_that_says_what_to_do(opened, status, code, message):
    with serving(Hub("talks/test", {}, status=status, error=code)) as hub:
        (said,) = opened("hf:talks/test@v9", HF_ENDPOINT=hub.url).values()
    assert said.startswith(f"hf:talks/test@v9: {message.format(hub=hub.url)}")


def test_without_a_network_one_line_names_the_hub(run, opened):
    made = run("server", "evaluate", "hf:talks/test", HF_ENDPOINT="http://127.0.0.1:9")
    assert (made.returncode, made.stdout, made.stderr.count("\n")) == (1, "", 1)
    assert made.stderr.startswith("canary: hf:talks/test: could not be read (ConnectError")
    assert made.stderr.endswith("check the connection to http://127.0.0.1:9 and start again\n")
    (said,) = opened("hf:talks/test", HF_HUB_OFFLINE="1").values()
    assert said == "hf:talks/test: HF_HUB_OFFLINE is set: unset it to read from the Hub, or give a folder"
