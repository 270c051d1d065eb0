"""What a command tells of a download that breaks off and is resumed."""

import json
from pathlib import Path

from tests import archives
from tests.hub_server import Hub, serving

REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"
RETRY = "Trying to resume download"


def breaking_hub(folder: Path, files: dict[str, bytes]) -> Hub:
    """It breaks the connection once, after the first piece of 10 MiB that the Hub's client writes to disk."""
    archive = archives.write_archive(folder / FILE, files | {"padding": bytes(2**24)})
    return Hub(REPO, {FILE: archive}, break_after=[10 * 2**20 + 1000])


def variables(hub: Hub, folder: Path) -> dict[str, str]:
    return {
        "CANARY_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


def test_a_retry_is_one_line(run_canary, tmp_path):
    with serving(breaking_hub(tmp_path, archives.members("180m-flash"))) as hub:
        converted = run_canary("convert", "canary-180m-flash", "out", **variables(hub, tmp_path))
    assert converted.returncode == 0
    retry, use = converted.stderr.splitlines()
    assert retry.startswith("canary: Error while downloading from ")
    assert RETRY in retry
    assert use == "canary: to use it: --model ./out"


def test_in_a_json_log_too_a_retry_is_one_line(run_canary, tmp_path):
    # Without weights it is no model: the server ends after the download.
    files = archives.members("180m-flash")
    del files["model_weights.ckpt"]
    with serving(breaking_hub(tmp_path, files)) as hub:
        run = run_canary(
            *("serve", "--model", "canary-180m-flash", "--port", "0", "--log-format", "json"),
            **variables(hub, tmp_path),
        )
    *log, failure = run.stderr.splitlines()
    assert (run.returncode, failure.partition(": ")[0]) == (1, "canary")
    assert sum(RETRY in json.loads(line)["message"] for line in log) == 1
