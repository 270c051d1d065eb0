"""A live server with the toy model, its samples as raw sound, and other projects' clients."""

import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import soxr

from tests.api.conftest import Sample, cache, samples, start_server  # noqa: F401  (fixtures)

CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="session")
def toy(start_server, cache) -> httpx.Client:  # noqa: F811
    return start_server(model="toy")


@pytest.fixture(scope="session")
def url(toy) -> str:
    """ws://127.0.0.1:port"""
    return str(toy.base_url).replace("http", "ws", 1).rstrip("/")


@pytest.fixture(scope="session")
def pcm(samples) -> Callable[..., bytes]:  # noqa: F811
    """A sample of a language as Int16LE at any rate, with silence after it."""

    def raw(language: str = "en", rate: int = 16_000, tail_s: float = 0.0) -> bytes:
        waveform, own_rate = soundfile.read(samples[language].path, dtype="float32")
        waveform = soxr.resample(waveform, own_rate, rate) if rate != own_rate else waveform
        waveform = np.pad(waveform, (0, round(tail_s * rate)))
        return (waveform.clip(-1, 1) * 32767).astype("<i2").tobytes()

    return raw


@pytest.fixture(scope="session")
def clients_python(request) -> Path:
    """A Python that has LiveKit's and pipecat's plug-ins; its environment is made once and kept beside ours."""
    folder = request.config.rootpath / ".venv" / "realtime-clients"
    python, wanted = folder / "bin" / "python", (CLIENTS / "requirements.txt").read_text()
    made = folder / "requirements.txt"
    if not made.exists() or made.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*install, "-r", CLIENTS / "requirements.txt"], check=True)
        made.write_text(wanted)
    return python


@pytest.fixture
def run_client(clients_python, toy) -> Callable[..., str]:
    """The output of a script in `clients`, run against the server."""

    def run(script: str, *arguments: str) -> str:
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "NO_PROXY": "*"}
        command = [clients_python, CLIENTS / script, f"{toy.base_url}/v1", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
