"""`canary doctor`: its report, and a fault planted for each check of the machine and what is around it."""

import getpass
import json
import socket
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.cpu import int8
from server.cli.doctor import machine, surroundings
from server.cli.doctor.report import Finding, Line, anonymous, as_json, failed, found, ok, summary, warning
from server.settings import Settings
from tests.hub_server import Hub, serving

REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"


def settings(**given) -> Settings:
    return Settings(_env_file=None, **given)


# ---- the report ----


def test_an_error_of_a_check_is_its_finding():
    def check() -> Finding:
        raise ZeroDivisionError("by\nzero")

    assert found("sum", check).finding == failed("ZeroDivisionError: by zero", "unexpected error: please report it")


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
def test_a_cpu_that_is_slow_in_8_bits_is_a_warning_only_if_they_are_asked_for(monkeypatch, a_cpu, quantize, status):
    monkeypatch.setattr(int8, "_instructions", lambda: {"avx2"})
    finding = machine.eight_bits(quantize)
    assert finding.status == status
    assert "no fast product" in finding.value + finding.advice


# ---- around it ----


def test_a_taken_port_is_refused_and_a_free_one_is_not(monkeypatch):
    monkeypatch.setattr(surroundings, "PORT_TIMEOUT_S", 0.05)
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
