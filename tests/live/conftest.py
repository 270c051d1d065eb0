"""A live server with the toy model, its samples as raw sound, and other projects' clients."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import soxr

from tests.api.conftest import Sample, cache, samples, start_server  # noqa: F401  (fixtures)
from tests.environments import python_with

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
def clients_python() -> Path:
    """A Python that has LiveKit's and pipecat's plug-ins."""
    return python_with(CLIENTS / "requirements.txt", "realtime-clients")


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
