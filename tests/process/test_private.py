"""Nothing is told to anybody: what a library would send of its own accord is off."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SAMPLES

ROOT = Path(__file__).parents[2]
TRANSCRIBE = ("-m", "server", "transcribe", "--model", "toy", "--language", "en", str(SAMPLES / "en.flac"))


def files_left(home: Path, *arguments: str, **variables: str) -> list[str]:
    """What a program leaves in an empty home directory, but for converted models."""
    # Tests and builds would be left out of it by these.
    kept = {name: value for name, value in os.environ.items() if not re.match("CI$|ORT_|GITHUB_|TF_BUILD", name)}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "CANARY_CACHE": str(home / "models")}
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=kept | places | variables, check=True, capture_output=True
    )
    return sorted(each.name for each in home.rglob("*") if each.is_file() and home / "models" not in each.parents)


def test_transcribing_starts_no_telemetry(tmp_path):
    assert files_left(tmp_path, *TRANSCRIBE) == []


@pytest.mark.skipif(sys.platform != "linux", reason="where onnxruntime keeps them depends on the system")
def test_a_user_can_turn_onnxruntimes_telemetry_on_again(tmp_path):
    assert "onnxruntime.db" in files_left(tmp_path, *TRANSCRIBE, ORT_DISABLE_TELEMETRY="0")
