"""`canary doctor`, a fault planted for each of its checks."""

import getpass
import json
import shutil
import socket
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model.cpu import int8
from model.loading import memory_need
from server.cli.doctor import machine, models, parity, speed, surroundings
from server.cli.doctor.models import Models, samples
from server.cli.doctor.report import Finding, Line, anonymous, as_json, failed, found, ok, summary, warning
from server.settings import Settings
from tests.hub_server import Hub, serving

# Sounds of the archives.
SHORT = ("0.35s", "1s")
# Greedy runs of these, and beams of width 3.
TEXTS = 14
REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"


def settings(**given) -> Settings:
    return Settings(_env_file=None, **given)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Models:
    return Models(settings(model=("toy",), dtype="float32"), tmp_path_factory.mktemp("cache"))


# ---- the report ----


def test_an_error_of_a_check_is_its_finding():
    def check() -> Finding:
        raise ZeroDivisionError("by\nzero")

    assert found("sum", check).finding == failed(
        "ZeroDivisionError: by zero", "this should not happen: please report it"
    )


def test_the_message_of_an_expected_error_is_enough():
    def check() -> Finding:
        raise OSError("no space left")

    assert found("disk", check).finding == failed("no space left", "")


def test_a_line_shows_the_status_the_value_and_what_to_do():
    assert str(Line("port", ok("8000 is free"))) == "ok       port           8000 is free"
    assert str(Line("port", failed("8000 is taken", "choose another"))).splitlines() == [
        "FAILED   port           8000 is taken",
        "                        → choose another",
    ]


def test_the_summary_counts_and_the_json_holds_every_line():
    lines = [Line("a", ok("fine", size=1), 0.5), Line("b", warning("odd", "look")), Line("c", failed("wrong", "mend"))]
    assert "1 ok, 1 warning, 1 failed in 3 s" in summary(lines, 2.6)
    report = json.loads(as_json(lines, 2.64, "9.9"))
    assert {name: report[name] for name in ("version", "ok", "warnings", "failed", "seconds")} == {
        "version": "9.9",
        "ok": False,
        "warnings": 1,
        "failed": 1,
        "seconds": 2.6,
    }
    assert report["checks"][0] == {
        "name": "a",
        "status": "ok",
        "value": "fine",
        "advice": "",
        "figures": {"size": 1},
        "seconds": 0.5,
    }


def test_no_home_folder_user_or_computer_is_named(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/ada"))
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "adas-mac")
    assert anonymous("/Users/ada/Library/x and /Users/adamant") == "~/Library/x and /Users/adamant"
    assert anonymous("/Volumes/ada/models, /net/adas-mac/x") == "/Volumes/…/models, /net/…/x"
    assert anonymous("a cadaver") == "a cadaver"


# ---- the machine ----


def on_a_mac(monkeypatch, release: str = "14.5", processor: str = "arm64") -> None:
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    monkeypatch.setattr(machine.platform, "mac_ver", lambda: (release, ("", "", ""), processor))


def test_this_machine_is_ready():
    for name, check in machine.checks(settings()):
        assert found(name, check).finding.status == "ok", name


def test_an_intel_python_on_a_mac_is_refused(monkeypatch):
    on_a_mac(monkeypatch, processor="x86_64")
    finding = machine.python()
    assert (finding.status, "Rosetta" in finding.advice) == ("FAILED", True)


@pytest.mark.parametrize(("release", "status"), [("13.7", "FAILED"), ("14.0", "ok"), ("26.1", "ok")])
def test_macos_14_is_the_oldest(monkeypatch, release, status):
    on_a_mac(monkeypatch, release)
    assert machine.system().status == status


@pytest.fixture
def a_cpu(monkeypatch):
    """Whatever MLX computes on here."""
    monkeypatch.setattr("model.arrays.on_cpu", lambda: True)


def test_a_mac_without_metal_is_refused(monkeypatch, a_cpu):
    on_a_mac(monkeypatch)
    finding = machine.device()
    assert (finding.status, "Metal" in finding.advice) == ("FAILED", True)


def test_two_back_ends_of_mlx_are_refused(monkeypatch):
    installed = [SimpleNamespace(metadata={"Name": name}) for name in ("mlx", "mlx-cpu", "MLX-CUDA-12", "numpy")]
    monkeypatch.setattr(machine, "distributions", lambda: installed)
    finding = machine.mlx()
    assert finding.status == "FAILED"
    assert "mlx-cpu, mlx-cuda-12" in finding.value


@pytest.mark.parametrize(("quantize", "status"), [(8, "warning"), (None, "ok")])
def test_torch_is_missed_only_by_who_wants_8_bits(monkeypatch, a_cpu, quantize, status):
    monkeypatch.setattr(int8, "_instructions", lambda: {"avx512_vnni"})
    monkeypatch.setattr(int8.importlib.util, "find_spec", lambda name: None)
    finding = machine.eight_bits(quantize)
    assert finding.status == status
    assert "canary-server[int8]" in finding.value + finding.advice


# ---- around it ----


def test_a_taken_port_is_refused_and_a_free_one_is_not():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        taken.settimeout(0)
        refused = surroundings.port("127.0.0.1", number)
    assert refused.status == "FAILED"
    assert f"port {number} of 127.0.0.1: Address already in use" in refused.value
    assert surroundings.port("127.0.0.1", number).status == "ok"
    assert surroundings.port("127.0.0.1", 0).status == "ok"


def test_a_port_where_canary_server_runs_already_is_a_warning(monkeypatch):
    monkeypatch.setattr(surroundings, "_canary_at", lambda host, number: "canary-server 0.1.0 with toy")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = surroundings.port("127.0.0.1", taken.getsockname()[1])
    assert (finding.status, "canary-server 0.1.0 with toy" in finding.value) == ("warning", True)


def test_an_address_of_another_machine_is_refused():
    assert surroundings.port("192.0.2.1", 8000).status == "FAILED"


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    assert surroundings.cache_folder(tmp_path / "new").status == "ok"
    (tmp_path / "file").touch()
    finding = surroundings.cache_folder(tmp_path / "file" / "cache")
    assert (finding.status, finding.advice) == ("FAILED", "choose another folder with --cache")


def test_little_disk_space_is_a_warning(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(surroundings.shutil, "disk_usage", lambda folder: usage(9e9, 8e9, 1e9))
    finding = surroundings.disk(tmp_path / "not" / "yet" / "there")
    assert (finding.status, finding.figures["free_bytes"]) == ("warning", 1e9)


@pytest.fixture
def hub_at(monkeypatch):
    """hub_at(url): let the Hub's client ask there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def ask(url: str) -> None:
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return ask


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (200, "", "offers nvidia/canary-180m-flash, 0.0 GB"),
        (403, "GatedRepo", "is gated"),
        (404, "RepoNotFound", "does not exist or is private"),
        (401, "", "answered 401"),
        (500, "", "answered 500"),
    ],
)
def test_what_the_hub_answers_matters_most_if_the_model_is_not_here(hub_at, tmp_path, needed, status, error, told):
    (tmp_path / FILE).write_bytes(b"archive")
    with serving(Hub(REPO, {FILE: tmp_path / FILE}, status, error)) as hub:
        hub_at(hub.url)
        finding = surroundings.hub("canary-180m-flash", needed)
    assert finding.status == ("ok" if status == 200 else "FAILED" if needed else "warning")
    assert told in finding.value
    # Only asked for, never downloaded.
    assert not [request for request in hub.requests if request.startswith("GET") and "resolve" in request]


@pytest.mark.parametrize(("needed", "status"), [(True, "FAILED"), (False, "warning")])
def test_a_hub_that_cannot_be_reached(hub_at, needed, status):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        number = closed.getsockname()[1]
    hub_at(f"http://127.0.0.1:{number}")
    finding = surroundings.hub("canary-180m-flash", needed)
    assert (finding.status, "cannot be reached" in finding.value) == (status, True)


@pytest.mark.parametrize(("needed", "status"), [(True, "FAILED"), (False, "ok")])
def test_offline_the_hub_is_not_asked(monkeypatch, needed, status):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://192.0.2.1")
    assert surroundings.hub("canary-180m-flash", needed).status == status


def test_a_token_is_named_and_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    finding = surroundings.hub_token()
    assert (finding.status, finding.value, finding.figures) == ("ok", "from HF_TOKEN", {})


def test_the_microphone_needs_localhost_or_https():
    assert surroundings.microphone(settings()).status == "ok"
    assert surroundings.microphone(settings(host="0.0.0.0")).status == "warning"


# ---- the model ----


@pytest.fixture
def say(monkeypatch):
    """say(text=…, words=…): keep only the shortest recording, and change what is said in it."""
    shortest = min(samples(), key=lambda sample: len(sample.waveform))

    def change(**told) -> None:
        monkeypatch.setattr(speed, "samples", lambda: (replace(shortest, told=shortest.told | told),))

    return change


def test_a_wrong_text_is_told_with_what_is_said(toy, say):
    say(text="La maison est vide.")
    finding = speed.texts(toy.toy)
    assert finding.status == "FAILED"
    assert finding.value.startswith("2 of 4 exact in float32, alone and side by side; fr.flac to fr: ")
    assert "La maison noire est nouvelle.\" instead of 'La maison est vide.'" in finding.value


def test_a_wrong_time_is_told(toy, say):
    words = samples()[3].told["words"]
    say(words=[word | {"start": word["start"] + 0.5} for word in words])
    finding = speed.texts(toy.toy)
    assert (finding.status, "fr.flac: a word's time is wrong by 0." in finding.value) == ("FAILED", True)


def test_a_right_text_is_no_failure(toy, say):
    say()
    assert speed.texts(toy.toy).value == "4 of 4 exact in float32, alone and side by side"


@pytest.mark.parametrize(("share", "status"), [(0.9, "FAILED"), (1.2, "warning"), (8.0, "ok"), (None, "ok")])
def test_a_model_that_does_not_fit_is_refused(toy, monkeypatch, share, status):
    need = memory_need(toy.folder, "float32")
    room = share and (int(share * need.total), "on the GPU")
    monkeypatch.setattr("model.memory.available", lambda: room)
    finding = speed.memory(toy)
    assert finding.status == status
    assert finding.value.startswith(f"toy: {need}")
    assert (finding.figures["weights"], finding.figures["usable_bytes"]) == (need.weights, room and room[0])


def test_a_model_slower_than_twice_real_time_is_a_warning(toy, monkeypatch):
    now = iter(np.arange(0, 1000, 6.0))
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(speed, "served", lambda canary, passes: [])
    finding = speed.speed(toy.toy)
    assert (finding.status, finding.value[:29]) == ("warning", "1.4 times real time alone, 17")


def test_memory_that_grows_with_every_request_is_a_warning(toy, monkeypatch):
    peaks = iter(np.arange(1, 1000) * 50e6)
    monkeypatch.setattr(speed, "served", lambda canary, passes: [])
    monkeypatch.setattr(speed, "MOST_WATCHED_S", 0.0)
    monkeypatch.setattr(speed, "_peak_bytes", lambda: next(peaks))
    finding = speed.steady_memory(toy.toy, lambda what: None)
    assert finding.status == "warning"
    assert finding.value == "200 MB at most after 32 requests, 100 MB more than after half"


@pytest.fixture
def toy_as_on_a_gpu(toy, monkeypatch):
    monkeypatch.setenv("CANARY_ARRAYS", "mlx")
    return Models(toy.settings, toy.cache)


def test_look_ahead_is_compared_with_none_as_on_a_gpu(toy_as_on_a_gpu):
    finding = speed.look_ahead(toy_as_on_a_gpu.toy)
    assert finding.status == "ok"
    assert set(finding.figures["peak_bytes"]) == {"on", "off"}
    assert min(finding.figures["peak_bytes"].values()) > 0


def test_texts_that_look_ahead_changes_are_refused(toy_as_on_a_gpu, monkeypatch):
    looking = speed._looking
    wrong = lambda canary, ahead: replace(looking(canary, ahead), tokens=[[int(ahead)]])  # noqa: E731
    monkeypatch.setattr(speed, "_looking", wrong)
    finding = speed.look_ahead(toy_as_on_a_gpu.toy)
    assert (finding.status, "the texts differ" in finding.value) == ("FAILED", True)


def test_an_unknown_model_fails_and_the_toy_is_tried_instead(tmp_path, say):
    say()
    tried = Models(settings(model=("no-such-model",)), tmp_path)
    names = []
    for name, check in speed.checks(tried, quick=False, progress=lambda what: None):
        names.append((name, found(name, check).finding.status))
    assert names == [("model", "FAILED"), ("toy's texts", "ok")]
    assert not tried.needs_download


def test_a_model_that_is_not_downloaded_is_not_downloaded_now(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_is_downloaded", lambda repo, revision: False)
    tried = Models(settings(model=("canary-1b-v2",), cache=tmp_path), tmp_path)
    assert tried.problem is not None
    assert (tried.problem.status, tried.needs_download) == ("warning", True)


def test_a_damaged_model_fails_and_is_not_measured(toy, tmp_path, say):
    say()
    shutil.copytree(toy.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged")
    tried = Models(settings(model=(str(tmp_path / "damaged"),)), tmp_path)
    statuses = {}
    for name, check in speed.checks(tried, quick=False, progress=lambda what: None):
        statuses[name] = found(name, check).finding.status
    assert statuses == {"memory": "FAILED", "loading": "FAILED", "toy's texts": "ok"}


# ---- NeMo's values ----


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


def test_float32_on_a_gpu_has_more_room_and_16_bits_do_not(monkeypatch, a_cpu):
    limits = parity.limit("encoder", "float32"), parity.limit("encoder", "bfloat16")
    monkeypatch.setattr("model.arrays.on_cpu", lambda: False)
    assert parity.limit("encoder", "float32") == 10 * limits[0]
    assert parity.limit("encoder", "bfloat16") == limits[1]
