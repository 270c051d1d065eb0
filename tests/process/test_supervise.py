"""`canary serve --supervise`: a small parent that holds the socket, and starts the server again when it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import psutil
import pytest

# A parent with little patience. Its server is a script, which gets the rest of the arguments.
PARENT = """
import json, sys
from server.cli.supervise import Patience, Supervisor
from server.logs import configure_logging

configure_logging("info", "json")
sockets, patience, command = json.loads(sys.argv[1]), Patience(**json.loads(sys.argv[2])), sys.argv[3:]
print(json.dumps({"parent": True}), flush=True)
sys.exit(Supervisor(command, sockets, patience).run())
"""
# A server that prints what it is told, and then does `what`.
SERVER = """
import json, os, signal, socket, sys, time

told = json.loads(os.environ["CANARY_SUPERVISOR"])
link = socket.socket(fileno=told["link"])
print(json.dumps({"pid": os.getpid(), "restarts": told["restarts"], "at": time.monotonic()}), flush=True)
first = not told["restarts"]

def beat(times=10**9):
    for _ in range(times):
        link.send(b".")
        time.sleep(0.05)

"""


@contextmanager
def supervised(
    what: str, sockets: tuple[int, ...] = (), **patience
) -> Iterator[tuple["subprocess.Popen[str]", Callable[[], dict]]]:
    """A parent and a function that returns the next line that its server printed."""
    patience = {"first": 10.0, "silent": 10.0, "back_off": [0.0, 0.2, 0.6], **patience}
    arguments = [json.dumps(sockets), json.dumps(patience), sys.executable, "-c", SERVER + what]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=sockets,
        # As a terminal's foreground job.
        process_group=0,
    ) as parent:
        assert parent.stdout

        def told() -> dict:
            assert parent.stdout
            return json.loads(parent.stdout.readline())

        def give_up() -> None:
            servers = psutil.Process(parent.pid).children()
            for process in (parent, *servers):
                process.kill()

        # A test that waits in vain fails, and leaves no process behind.
        too_late = threading.Timer(60, give_up)
        too_late.start()
        try:
            assert told() == {"parent": True}
            yield parent, told
        finally:
            too_late.cancel()
            parent.terminate()
            try:
                parent.wait(10)
            except subprocess.TimeoutExpired:
                parent.kill()


def ended(parent: "subprocess.Popen[str]") -> tuple[int, list[dict]]:
    """The parent's exit code and its log."""
    _, log = parent.communicate(timeout=20)
    return parent.returncode, [json.loads(line) for line in log.splitlines()]


def test_a_server_that_crashes_is_started_again_ever_later_and_told_why():
    ends = "[signal.SIGSEGV, signal.SIGKILL, 75, 3]"
    what = f"""
link.send(b"!")
ends = {ends}
end = ends[sum(told["restarts"].values())] if sum(told["restarts"].values()) < 4 else 0
if isinstance(end, signal.Signals):
    os.kill(os.getpid(), end)
sys.exit(end)
"""
    with supervised(what) as (parent, told):
        starts = [told() for _ in range(5)]
        code, log = ended(parent)
    assert code == 0
    assert [start["restarts"] for start in starts] == [
        {},
        {"SIGSEGV": 1},
        {"SIGSEGV": 1, "SIGKILL": 1},
        {"SIGSEGV": 1, "SIGKILL": 1, "hang": 1},
        {"SIGSEGV": 1, "SIGKILL": 1, "hang": 1, "exit_3": 1},
    ]
    assert [(line["level"], line["message"], line["reason"], line["restarts"]) for line in log] == [
        ("error", "the server ended (SIGSEGV); restart 1 in 0 s", "SIGSEGV", 1),
        ("error", "the server ended (SIGKILL); restart 2 in 0.2 s", "SIGKILL", 2),
        ("error", "the server ended (hang); restart 3 in 0.6 s", "hang", 3),
        ("error", "the server ended (exit_3); restart 4 in 0.6 s", "exit_3", 4),
    ]
    gaps = [after["at"] - before["at"] for before, after in pairwise(starts)]
    assert gaps[1] >= 0.2
    assert gaps[2] >= 0.6
    assert gaps[3] >= 0.6


def test_a_server_that_has_run_for_a_while_is_started_again_at_once():
    what = 'link.send(b"!")\nbeat(10)\nos.abort()'
    with supervised(what, back_off=[0.0, 0.01, 30.0], proven=0.2) as (_, told):
        assert [told()["restarts"].get("SIGABRT", 0) for _ in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("code", [1, 2])
def test_a_server_that_cannot_start_ends_the_parent_with_its_own_exit_code(code):
    with supervised(f"sys.exit({code})") as (parent, told):
        assert told()["restarts"] == {}
        assert ended(parent) == (code, [])


def test_a_server_that_gives_no_sign_of_life_is_killed_and_started_again():
    what = "signal.signal(signal.SIGTERM, signal.SIG_IGN) if first else beat()\nbeat(2)\ntime.sleep(1000)"
    with supervised(what, silent=1.0) as (_, told):
        first, second = told(), told()
    assert second["restarts"] == {"no_heartbeat": 1}
    assert second["at"] - first["at"] >= 1.0
    assert not psutil.pid_exists(first["pid"])


def test_a_new_server_has_more_time_for_its_first_sign_of_life():
    with supervised("time.sleep(2.5)\nbeat()", silent=0.2) as (parent, told):
        told()
        time.sleep(3)
        parent.terminate()
        assert ended(parent) == (0, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_server_gets_ctrl_c_and_sigterm_once_and_may_finish(number):
    what = """
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: got.append(number))
link.send(b"!")
print(json.dumps("begun"), flush=True)
while not got:
    beat(1)
beat(20)
print(json.dumps([int(each) for each in got]), flush=True)
"""
    with supervised(what) as (parent, told):
        told()
        assert told() == "begun"
        # A terminal sends Ctrl-C to the whole group.
        os.killpg(parent.pid, number)
        assert told() == [number]
        assert ended(parent) == (0, [])


def test_a_parent_that_waits_to_start_the_server_again_can_be_stopped():
    with supervised('link.send(b"!")\nos.abort()', back_off=[60.0]) as (parent, told):
        told()
        assert parent.stderr
        assert json.loads(parent.stderr.readline())["reason"] == "SIGABRT"
        parent.terminate()
        assert ended(parent) == (0, [])


def test_connections_wait_while_no_server_runs():
    what = """
listening = socket.socket(fileno=told["sockets"][0])
connection, _ = listening.accept()
if first:
    os.abort()
connection.sendall(connection.recv(100) + b" answered")
connection.close()
beat()
"""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        supervised(what, (listening.fileno(),), back_off=[1.0]) as (_, told),
    ):
        told()
        address = listening.getsockname()
        with socket.create_connection(address, 10) as lost:
            assert lost.recv(100) == b""
        with socket.create_connection(address, 10) as waiting:
            waiting.sendall(b"asked")
            assert waiting.recv(100) == b"asked answered"


def test_the_parent_imports_nothing_that_the_server_needs():
    code = "import json, sys, server.cli.supervise; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert "server.cli.supervise" in modules
    heavy = {"asyncio", "fastapi", "mlx", "model", "numpy", "pydantic", "starlette", "typer", "uvicorn"}
    assert {name.partition(".")[0] for name in modules} & heavy == set()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def serving(environment, tmp_path) -> Iterator[tuple[psutil.Process, str]]:
    """`canary serve --supervise` once it is ready: the parent, and its address."""
    # Found in the current folder, this would take the place of the real one.
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise SystemExit('not this one')")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = "from server.__main__ import main; main()"
    # Without the current folder, as the installed command runs.
    command = [sys.executable, "-P", "-c", script, "serve", "--supervise", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
            yield psutil.Process(process.pid), f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def test_the_command_becomes_the_small_parent_of_a_server(serving):
    parent, url = serving
    (server,) = parent.children()
    assert "server.cli.supervise" in parent.cmdline()
    assert parent.memory_info().rss < 25e6
    server.kill()
    wait_until(lambda: is_ready(url))
    assert 'canary_restarts_total{reason="SIGKILL"} 1.0' in httpx.get(f"{url}/metrics", timeout=60).text
    assert server.pid not in [child.pid for child in parent.children()]
    parent.terminate()
    assert parent.wait(30) == 0


def test_a_server_whose_parent_is_killed_ends_too(serving):
    parent, _ = serving
    (server,) = parent.children()
    parent.kill()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_a_taken_port_or_a_model_that_does_not_exist_ends_the_command_as_without_a_parent(run_canary, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_canary("serve", "--supervise", "--port", port)
    assert done.returncode == 1
    assert done.stderr == (
        f"canary: port {port} on 127.0.0.1 is in use; choose another with --port or CANARY_PORT (0 picks a free one)\n"
    )
    done = run_canary("serve", "--supervise", "--port", 0, "--model", Path(tmp_path) / "none.nemo")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("canary: ")
    assert "restart" not in done.stderr
