"""Installing without a checkout: as `uv tool` and `uvx` do it, from this repository's last commit, into an empty home.

Needs git and a package index.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from .conftest import SAMPLES

ROOT = Path(__file__).parents[2]
EXTRAS = "[cpu]" if sys.platform == "linux" else ""
SOURCE = f"canary-server{EXTRAS} @ git+{ROOT.as_uri()}"
TEXT = "The woman sees ten new houses at school every day. The man sleeps.\n"


@pytest.fixture(scope="module")
def uv(tmp_path_factory) -> dict[str, str]:
    """An environment for uv with an empty home; what has been downloaded before is used again."""
    cache = subprocess.run([find_uv_bin(), "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CANARY_", "XDG_", "PYTHON"))}
    home = tmp_path_factory.mktemp("home")
    return kept | {"HOME": str(home), "UV_CACHE_DIR": cache, "UV_PYTHON_DOWNLOADS": "never"}


@pytest.fixture(scope="module")
def installed(uv) -> Path:
    """The home in which `uv tool install` has installed canary-server."""
    command = [find_uv_bin(), "tool", "install", "--python", sys.executable, SOURCE]
    done = subprocess.run(command, capture_output=True, text=True, env=uv, check=False)
    assert done.returncode == 0, done.stderr
    return Path(uv["HOME"])


def test_uv_tool_install_gives_a_canary_that_transcribes_in_an_empty_home(installed):
    canary = installed / ".local" / "bin" / "canary"
    made = subprocess.run(
        [canary, "transcribe", SAMPLES / "en.flac"],
        capture_output=True,
        text=True,
        cwd=installed,
        env={"HOME": str(installed), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert (made.returncode, made.stdout) == (0, TEXT), made.stderr


def test_the_installation_has_no_torch_and_is_as_large_as_the_documents_say(installed):
    (environment,) = (installed / ".local" / "share" / "uv" / "tools").glob("canary-server")
    (packages,) = environment.glob("lib/python*/site-packages")
    assert not list(packages.glob("torch*"))
    assert not list(packages.glob("nvidia*"))
    files = (path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc")
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    told = re.search(r"takes about (\d+) MB", (ROOT / "server" / "README.md").read_text(encoding="utf-8"))
    assert told
    assert megabytes == pytest.approx(int(told[1]), rel=0.15)


def test_uvx_runs_canary_without_installing_it(uv, tmp_path):
    command = [find_uv_bin(), "tool", "run", "--python", sys.executable, "--from", SOURCE, "canary", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=uv, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"canary-server \d+\.\d+\.\d+\n", ran.stdout)
