"""What a command tells of a download that breaks off and is resumed."""

import json

import pytest

from tests import archives
from tests.hub_server import Hub, serving

REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"
RETRY = "Trying to resume download"


@pytest.fixture
def hub(tmp_path):
    """It breaks the connection once, after the first piece of 10 MiB that the Hub's client writes to disk."""
    files = archives.members("180m-flash") | {"padding": bytes(2**24)}
    archive = archives.write_archive(tmp_path / FILE, files)
    with serving(Hub(REPO, {FILE: archive}, break_after=[10 * 2**20 + 1000])) as hub:
        yield hub


@pytest.fixture
def variables(hub, tmp_path) -> dict[str, str]:
    return {
        "CANARY_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


def test_a_retry_is_one_line(run_canary, variables):
    converted = run_canary("convert", "canary-180m-flash", "out", **variables)
    assert converted.returncode == 0
    retry, use = converted.stderr.splitlines()
    assert retry.startswith("canary: Error while downloading from ")
    assert RETRY in retry
    assert use == "canary: to use it: --model ./out"


def test_in_a_json_log_too_a_retry_is_one_line(run_canary, variables, tmp_path):
    # The archive is no model: the server ends after the download.
    run = run_canary("serve", "--model", "canary-180m-flash", "--port", "0", "--log-format", "json", **variables)
    *log, failure = run.stderr.splitlines()
    assert (run.returncode, failure.partition(": ")[0]) == (1, "canary")
    assert sum(RETRY in json.loads(line)["message"] for line in log) == 1
