"""A model is downloaded from the Hub and converted, by processes whose Hub is a server in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import archives
from tests.hub_server import COMMIT, Hub, serving

REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"
URL = f"/{REPO}/resolve/main/{FILE}"
# The Hub's client writes to disk in chunks of this size.
CHUNK = 10 * 2**20

RESOLVE = """
import json, logging, sys, time
time.sleep = lambda seconds: None  # the Hub's client waits between retries
logging.basicConfig(level=logging.INFO, format="%(message)s")
from convert.errors import ConversionError
from convert.hub import resolve
steps, folder, error = [], None, None
try:
    folder = str(resolve(sys.argv[1], progress=lambda *step: steps.append(step)))
except ConversionError as refused:
    error = str(refused)
print(json.dumps({"folder": folder, "error": error, "torch": "torch" in sys.modules, "steps": steps}))
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return archives.tiny_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def hub(archive):
    with serving(Hub(REPO, {FILE: archive})) as hub:
        yield hub


@pytest.fixture
def large_hub(tmp_path):
    """A Hub whose archive is larger than one chunk."""
    files = archives.members("180m-flash") | {"padding": bytes(2**24)}
    with serving(Hub(REPO, {FILE: archives.write_archive(tmp_path / FILE, files)})) as hub:
        yield hub


@pytest.fixture
def start(tmp_path):
    """Resolve a model in its own process, as a first or later start does."""

    def resolved(name: str, url: str = "http://127.0.0.1:9", **environment: str) -> dict:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            [sys.executable, "-c", RESOLVE, name],
            capture_output=True,
            text=True,
            timeout=120,
            env={**kept, **environment},
        )
        assert process.returncode == 0, process.stderr
        answer = json.loads(process.stdout)
        assert "\n" not in (answer["error"] or "")
        return answer | {"log": process.stderr}

    return resolved


def test_a_known_model_is_downloaded_and_converted_and_its_licence_logged(start, hub):
    first = start("canary-180m-flash", hub.url)
    config = json.loads((Path(first["folder"]) / "config.json").read_text())
    assert (first["error"], config["name"]) == (None, "canary-180m-flash")
    size = hub.files[FILE].stat().st_size
    assert ["downloading", size, size] in first["steps"]
    assert first["steps"][-1][0] == "converting"
    assert first["steps"][-1][1] == first["steps"][-1][2] > 50
    assert "nvidia/canary-180m-flash is licensed CC-BY-4.0" in first["log"]


def test_neither_start_needs_torch_and_the_second_no_network(start, hub):
    first = start("canary-180m-flash", hub.url)
    request_count = len(hub.requests)
    second = start("canary-180m-flash")
    assert second["folder"] == first["folder"]
    assert (first["torch"], second["torch"]) == (False, False)
    assert (len(hub.requests), second["steps"]) == (request_count, [])


def test_a_broken_download_is_resumed_where_it_broke_off(start, large_hub):
    large_hub.break_after = [CHUNK + 1000]
    assert start("canary-180m-flash", large_hub.url)["error"] is None
    assert large_hub.requests[-2:] == [f"GET {URL}", f"GET {URL} bytes={CHUNK}-"]


def test_a_download_that_keeps_breaking_is_a_one_line_error_and_the_next_start_resumes_it(start, large_hub):
    large_hub.break_after = [CHUNK + 1000] + 20 * [0]
    failed = start("canary-180m-flash", large_hub.url)
    assert failed["folder"] is None
    assert failed["error"].startswith(f"Hub repository {REPO} could not be downloaded (RemoteProtocolError: ")
    assert failed["error"].endswith(f"check the connection to {large_hub.url} and start again")
    assert {request.rpartition(" ")[2] for request in large_hub.requests[2:]} == {f"bytes={CHUNK}-"}
    large_hub.break_after = []
    assert start("canary-180m-flash", large_hub.url)["error"] is None


def test_the_archive_of_any_repository_and_revision_is_found_by_listing_its_files(start, archive):
    with serving(Hub("someone/their-canary", {"README.md": archive, "weights/best.nemo": archive})) as hub:
        resolved = start(f"someone/their-canary@{COMMIT}", hub.url)
    assert Path(resolved["folder"]).name == f"someone--their-canary@{COMMIT}-float32"
    assert json.loads((Path(resolved["folder"]) / "config.json").read_text())["name"] == "best"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a.nemo", "b.nemo"],
            "contains several .nemo files (a.nemo, b.nemo): download one yourself and give its path",
        ),
        (["model.safetensors"], "contains no .nemo file: download one yourself and give its path"),
    ],
)
def test_a_repository_without_exactly_one_archive_is_an_error_that_names_those_it_has(start, archive, files, message):
    with serving(Hub("someone/other", dict.fromkeys(files, archive))) as hub:
        assert start("someone/other", hub.url)["error"] == f"Hub repository someone/other {message}"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated: accept its terms at {url}/nvidia/canary-180m-flash, then log in with"),
        (401, "RepoNotFound", "does not exist or is private: check the name, then log in with `hf auth login` or set"),
        (401, "GatedRepo", "is gated: accept its terms at {url}/nvidia/canary-180m-flash, then log in with"),
        (401, "", "refused access (401): log in with `hf auth login` or set HF_TOKEN"),
        (403, "", "refused access (403): log in with `hf auth login` or set HF_TOKEN"),
        (404, "RepoNotFound", "does not exist or is private: check the name, then log in with `hf auth login` or set"),
    ],
)
def test_access_refused_by_the_hub_is_a_one_line_error_that_says_what_to_do(start, hub, status, code, message):
    hub.status, hub.error = status, code
    error = start("canary-180m-flash", hub.url)["error"]
    assert error.startswith(f"Hub repository {REPO} {message.format(url=hub.url)}")


def test_an_unknown_revision_is_an_error_that_names_it(start, hub):
    error = start("canary-180m-flash@v9", hub.url)["error"]
    advice = "leave out @v9 or name an existing branch, tag or commit"
    assert error == f"Hub repository {REPO} has no revision 'v9': {advice}"


def test_a_token_from_the_environment_is_sent(start, hub):
    start("canary-180m-flash", hub.url, HF_TOKEN="hf_test")
    assert set(hub.tokens) == {"Bearer hf_test"}


def test_no_network_is_a_one_line_error(start):
    error = start("canary-180m-flash", "http://127.0.0.1:9")["error"]
    assert error.startswith(f"Hub repository {REPO} could not be downloaded (ConnectError")
    assert error.endswith("check the connection to http://127.0.0.1:9 and start again")


def test_a_missing_model_in_offline_mode_is_an_error_that_names_the_setting(start, hub):
    error = start("canary-180m-flash", hub.url, HF_HUB_OFFLINE="1")["error"]
    assert "is not on this machine and HF_HUB_OFFLINE is set: unset it to download" in error
    assert hub.requests == []


def test_offline_mode_converts_an_archive_that_was_downloaded_before(start, hub, tmp_path):
    first = start("canary-180m-flash", hub.url)
    request_count = len(hub.requests)
    again = start("canary-180m-flash", hub.url, HF_HUB_OFFLINE="1", CANARY_CACHE=str(tmp_path / "elsewhere"))
    assert Path(again["folder"]).parent != Path(first["folder"]).parent
    assert (again["error"], len(hub.requests)) == (None, request_count)
