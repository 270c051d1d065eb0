"""openai-node and the AI SDK, run by the Node.js of a wheel; if npm is unavailable, the requests they would send."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pysubs2
import pytest
import webvtt
from filelock import FileLock

HERE = Path(__file__).parent / "node"
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "*"}


@pytest.fixture(scope="session")
def client_script(request) -> Path:
    """clients.mjs, with the packages it uses if they can be installed. Kept in pytest's cache."""
    folder = request.config.cache.mkdir("node-clients")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--prefer-offline"]
    # Two runs of the tests may install them at the same time.
    with FileLock(folder.with_suffix(".lock")):
        for name in ("clients.mjs", "package.json"):
            shutil.copy(HERE / name, folder / name)
        subprocess.run(
            [BIN / install[0], *install[1:]], cwd=folder, env=ENVIRONMENT, capture_output=True, timeout=180, check=False
        )
    return folder / "clients.mjs"


def run(script: Path, *arguments: str) -> dict:
    result = subprocess.run(
        [BIN / "node", script, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=180
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def answers(client_script, start_server, cache, samples) -> dict:
    """What the clients got from the toy, which was not loaded yet at their first request."""
    from server.engine.registry import load_model
    from server.settings import Settings

    first_request_refused = threading.Event()

    def resolve(source, progress):
        assert first_request_refused.wait(180)
        return load_model(Settings(_env_file=None), source, progress)

    server = start_server(resolve, wait=False, model="toy", load_wait_s=0)

    def wait_for_refusal() -> None:
        while 'status="503"' not in server.get("/metrics").text:
            time.sleep(0.05)
        first_request_refused.set()

    threading.Thread(target=wait_for_refusal, daemon=True).start()
    return run(client_script, f"{server.base_url}/v1", str(samples["en"].path))


def test_openai_node_transcribes_in_every_format(answers, samples):
    sample, sdk = samples["en"], answers["sdk"]
    assert sdk["json"] == sample.text
    assert sdk["text"] == sample.text + "\n"
    assert sdk["verbose"] == {
        "text": sample.text,
        "language": "english",
        "words": [word["word"] for word in sample.words],
    }
    srt = [cue.plaintext for cue in pysubs2.SSAFile.from_string(sdk["srt"])]
    vtt = [cue.text for cue in webvtt.from_string(sdk["vtt"])]
    assert " ".join(srt).split() == " ".join(vtt).split() == sample.text.split()


def test_openai_node_streams_translates_and_lists(answers, samples):
    sdk = answers["sdk"]
    assert "".join(sdk["deltas"]) == sdk["done"] == samples["en"].text
    assert sdk["translation"] == samples["en"].text  # English to English is a transcription
    assert (sdk["models"], sdk["model"]) == (["toy"], "toy")


def test_openai_node_throws_the_errors_its_users_expect(answers):
    assert answers["sdk"]["notFound"] == ["NotFoundError", 404, "model_not_found"]
    assert answers["sdk"]["badRequest"] == ["BadRequestError", 400, "invalid_request"]
    assert answers["sdk"]["badFormat"] == ["BadRequestError", 400, "invalid_request"]


def test_openai_node_retries_after_a_503(answers):
    statuses = answers["sdk"]["statuses"]
    assert statuses[0] == 503
    assert statuses[-1] == 200


def test_the_ai_sdk_transcribes(answers, samples):
    sample, ai = samples["en"], answers["ai"]
    assert ai["text"] == sample.text
    assert ai["durationInSeconds"] == pytest.approx(sample.duration, abs=0.01)
    assert ai["language"] == "en"
    assert " ".join(segment["text"] for segment in ai["segments"]) == sample.text
    assert all(segment["endSecond"] > segment["startSecond"] for segment in ai["segments"])
