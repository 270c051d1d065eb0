"""Commands in processes of their own, with the toy model."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache that holds the toy, converted."""
    from convert.hub import resolve

    cache = tmp_path_factory.mktemp("cache")
    resolve("toy", dtype="float32", cache_dir=cache)
    return cache


@pytest.fixture
def environment(cache, tmp_path) -> dict[str, str]:
    """This one's, without settings but for the cache and the array library."""
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith("CANARY_") or name == "CANARY_ARRAYS"
    }
    return plain | {"CANARY_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def run_canary(environment, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end, in an empty folder."""

    def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment | variables
        )

    return run


@pytest.fixture
def start(environment, tmp_path) -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """A Python script in a process that takes Ctrl-C, killed at the end if it still runs."""

    @contextmanager
    def start(script: str, *arguments: str | Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
        # A shell's background jobs ignore Ctrl-C, and so would their children.
        script = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{script}"
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment | variables,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    return start
