"""What `canary doctor` makes of NeMo's values: a fault planted in each stage, and none elsewhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from server.cli.doctor import parity
from server.cli.doctor.compared import GOLDENS
from server.cli.doctor.report import Finding, found

# Sounds of the archives.
SHORT = ("0.35s", "1s")
# Greedy runs of these, and beams of width 3.
TEXTS = 14


@pytest.fixture
def one_golden(tmp_path, monkeypatch) -> Path:
    """A folder with one of the archives and its values, of two short sounds, which is looked at instead."""
    for file in parity.GOLDENS.glob("180m-flash.*"):
        shutil.copy(file, tmp_path)
    file = tmp_path / "180m-flash.json"
    values = json.loads(file.read_text())
    for name in ("sounds", "forced", "greedy", "beam"):
        values[name] = [told for told in values[name] if told["sound"] in SHORT]
    file.write_text(json.dumps(values))
    monkeypatch.setattr(parity, "GOLDENS", tmp_path)
    monkeypatch.setattr(parity, "LENGTHS", SHORT)
    monkeypatch.setattr(parity, "DRAWN", (9, 37))
    return tmp_path


@pytest.fixture
def one_parakeet(one_golden) -> Path:
    """The same folder with the hybrid Parakeet instead."""
    for file in one_golden.glob("180m-flash.*"):
        file.unlink()
    (one_golden / "parakeet").mkdir()
    for file in (GOLDENS / "parakeet").glob("tdt_ctc.*"):
        shutil.copy(file, one_golden / "parakeet")
    return one_golden / "parakeet"


def findings(tmp_path, dtype: str = "float32") -> list[Finding]:
    checks = parity.checks(dtype, tmp_path / "scratch", lambda what: None)
    return [found(name, check).finding for name, check in checks]


def change_array(folder: Path, name: str, value: float) -> None:
    file = folder / "180m-flash.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays[name].flat[0] = value
    np.savez(file, **arrays)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_stages_and_texts_equal_nemos_within_the_limits_of_each_type(one_golden, tmp_path, dtype):
    results = findings(tmp_path, dtype)
    assert [result.status for result in results] == ["ok"] * 5
    assert [result.figures["stage"] for result in results[:4]] == list(parity.STAGES)
    assert results[4].figures["texts"] == TEXTS
    assert results[4].figures["same"] == TEXTS or dtype != "float32"


@pytest.mark.parametrize("value", [9.0, np.nan])
@pytest.mark.parametrize(
    ("array", "stage"),
    [
        ("mel/1s", "features"),
        ("projected/37", "encoder"),
        ("encoded/1s", "sound to vectors"),
        ("log_probs/0", "log-probabilities"),
    ],
)
def test_a_wrong_value_fails_its_stage_and_no_other(one_golden, tmp_path, array, stage, value):
    change_array(one_golden, array, value)
    results = findings(tmp_path)
    assert [result.status for result in results] == [
        "FAILED" if stage == each else "ok" for each in (*parity.STAGES, "texts")
    ]
    [wrong] = [result for result in results if result.status == "FAILED"]
    assert "(180m-flash)" in wrong.value


def test_a_parakeets_stages_and_the_tokens_of_all_its_heads_are_compared(one_parakeet, tmp_path):
    """Greedy search of both heads, and beams of widths 2 and 4."""
    results = findings(tmp_path)
    assert [result.status for result in results] == ["ok"] * 4
    assert [result.figures["stage"] for result in results[:3]] == list(parity.STAGES[:3])
    assert results[3].figures == {"same": 8, "texts": 8}


def test_a_wrong_token_of_a_parakeet_is_named(one_parakeet, tmp_path):
    file = one_parakeet / "tdt_ctc.json"
    values = json.loads(file.read_text())
    [run] = [run for run in values["greedy"] if (run["head"], run["sound"]) == ("ctc", "1s")]
    run["tokens"][-1] += 1
    file.write_text(json.dumps(values))
    *stages, texts = findings(tmp_path)
    assert {stage.status for stage in stages} == {"ok"}
    assert "7 of 8 texts equal NeMo's, token for token; first wrong: parakeet-tdt_ctc, 1s, ctc, beam 1" in texts.value


def test_a_wrong_token_is_named(one_golden, tmp_path):
    file = one_golden / "180m-flash.json"
    values = json.loads(file.read_text())
    values["greedy"][3]["tokens"][-1] += 1
    file.write_text(json.dumps(values))
    *stages, texts = findings(tmp_path)
    assert {stage.status for stage in stages} == {"ok"}
    assert texts.status == "FAILED"
    run = values["greedy"][3]
    assert (
        f"{TEXTS - 1} of {TEXTS} texts equal NeMo's, token for token; first wrong: 180m-flash, {run['sound']}"
        in texts.value
    )


def test_an_archive_that_cannot_be_compared_is_one_failure(one_golden, tmp_path):
    (one_golden / "180m-flash.nemo").write_bytes(b"damaged")
    [finding] = findings(tmp_path)
    assert finding.status == "FAILED"


def test_float32_on_a_gpu_has_more_room_and_16_bits_do_not(monkeypatch):
    monkeypatch.setattr("model.arrays.on_cpu", lambda: True)
    limits = parity.limit("encoder", "float32"), parity.limit("encoder", "bfloat16")
    monkeypatch.setattr("model.arrays.on_cpu", lambda: False)
    assert parity.limit("encoder", "float32") == 10 * limits[0]
    assert parity.limit("encoder", "bfloat16") == limits[1]
