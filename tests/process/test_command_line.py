"""Commands as a user runs them."""

import socket
import subprocess
import sys

import pytest

from .conftest import SAMPLES

WEB = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
HEAVY = WEB | {"mlx", "numpy", "torch", "pydantic", "model", "convert", "rich"}


def imported_by(*arguments: str, environment: dict[str, str] | None = None) -> set[str]:
    """Top-level names of the modules that a command has imported when it ends."""
    script = (
        "import sys; from server.__main__ import main; main(sys.argv[1:], standalone_mode=False);"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return set(run.stderr.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    assert not imported_by("--help") & HEAVY


def test_transcribe_imports_no_web_library(environment):
    imported = imported_by("transcribe", str(SAMPLES / "en.flac"), environment=environment)
    assert "mlx" in imported
    assert not imported & (WEB | {"torch"})


def test_a_path_that_does_not_exist_is_refused_without_loading_a_model(run_canary, tmp_path):
    refused = run_canary("transcribe", "gone.wav", SAMPLES / "en.flac", CANARY_CACHE=str(tmp_path / "unused"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "canary: gone.wav: no such file or folder\n"
    assert not (tmp_path / "unused").exists()


def test_a_port_that_is_in_use_is_one_line_that_says_how_to_choose_another(run_canary):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run_canary("serve", "--port", str(port))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"canary: port {port} on 127.0.0.1 is in use; choose another with --port or CANARY_PORT (0 picks a free one)\n"
    )


def test_an_address_that_is_not_this_machines_is_one_line(run_canary):
    refused = run_canary("serve", "--host", "192.0.2.1", "--public-without-key")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("canary: cannot listen on 192.0.2.1 port 8000: ")


# `canary serve` up to where it would listen, with few open files allowed; the system refuses limits above {highest}.
FEW_FILES = """
import resource

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 20_000))
set_limit = resource.setrlimit

def set_limit_like_macos(kind, limits):
    if limits[0] > {highest}:
        raise ValueError("not allowed to raise maximum limit")
    set_limit(kind, limits)

resource.setrlimit = set_limit_like_macos
import server.cli.serve as command
from server.__main__ import main

async def listen(settings, supervised):
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))

command._serve = listen
main()
"""


@pytest.mark.parametrize(("highest", "allowed"), [(20_000, "20000 20000"), (10_240, "10240 20000")])
def test_serve_may_open_as_many_files_as_the_system_allows(environment, tmp_path, highest, allowed):
    command = [sys.executable, "-c", FEW_FILES.format(highest=highest), "serve", "--port", "0"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert (run.stdout, run.stderr) == (f"{allowed}\n", "")
