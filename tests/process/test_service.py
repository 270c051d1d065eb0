"""`canary service`: the files for launchd and systemd, and what their programs are asked, recorded by stand-ins."""

import configparser
import json
import os
import plistlib
import shlex
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.__main__ import main
from server.settings import Settings

# From launchd.plist(5).
LAUNCHD_KEYS = {
    "Label": str,
    "ProgramArguments": list,
    "EnvironmentVariables": dict,
    "RunAtLoad": bool,
    "WorkingDirectory": str,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ProcessType": str,
    "ExitTimeOut": int,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "SoftResourceLimits": dict,
}
KEY = "a-key-that-is-secret"

# `state` is there while the service is loaded. After `bootout` it is there for two more looks, as with launchd.
LAUNCHCTL = """#!/bin/sh
echo "launchctl $*" >> "$HOME/calls"
case $1 in
    bootstrap) echo 2 > "$HOME/state" ;;
    bootout) echo leaving > "$HOME/leaving" ;;
    print)
        [ -f "$HOME/state" ] || { echo "Could not find service" >&2; exit 113; }
        if [ -f "$HOME/leaving" ]; then
            left=$(($(cat "$HOME/state") - 1)); echo $left > "$HOME/state"
            [ $left -gt 0 ] || rm "$HOME/state" "$HOME/leaving"
        fi
        printf 'gui/501/canary-server = {\\n\\tstate = %s\\n%s\\tlast exit code = 1\\n}\\n' running "$(cat "$HOME/pid")"
esac
"""
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >> "$HOME/calls"
case $2 in show) cat "$HOME/shown" ;; esac
"""
RECORDING = """#!/bin/sh
echo "$(basename "$0") $*" >> "$HOME/calls"
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home, with stand-ins for the service managers before all other programs."""
    home, programs = tmp_path / "my home", tmp_path / "programs"
    home.mkdir()
    programs.mkdir()
    scripts = {"launchctl": LAUNCHCTL, "systemctl": SYSTEMCTL, "journalctl": RECORDING, "tail": RECORDING}
    for name, script in scripts.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    (home / "pid").write_text("\tpid = 4711\n")
    for variable in [name for name in os.environ if name.startswith(("CANARY_", "HF_", "XDG_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def on(monkeypatch) -> Callable[[str], None]:
    return lambda platform: monkeypatch.setattr("server.cli.service.command.PLATFORM", platform)


def run(*arguments: object):
    return CliRunner().invoke(main, ["service", *map(str, arguments)])


def calls(home: Path) -> list[str]:
    """What the programs were asked since the last look, but for launchctl's polls."""
    file = home / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line for line in lines if not line.startswith(("launchctl print", "launchctl version"))]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- what is written ----


def test_the_launchd_agent_has_documented_keys_absolute_paths_and_no_secrets(home, on, monkeypatch):
    on("darwin")
    monkeypatch.setenv("HF_HOME", "/models/hub")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shown = run("install", "--print", "--api-key", KEY, "--shutdown", "60")
    assert shown.exit_code == 0, shown.stderr
    agent = plistlib.loads(shown.stdout.encode())
    assert {key: type(value) for key, value in agent.items()} == LAUNCHD_KEYS
    program, *arguments = agent["ProgramArguments"]
    assert (Path(program).is_file(), Path(program).name, arguments) == (True, "canary", ["serve"])
    assert agent["ExitTimeOut"] > 60
    assert (agent["ProcessType"], agent["KeepAlive"]) == ("Interactive", {"SuccessfulExit": False})
    assert agent["StandardErrorPath"] == f"{home}/Library/Logs/canary-server/server.log"
    assert agent["WorkingDirectory"] == f"{home}/Library/Application Support/canary-server"
    assert agent["EnvironmentVariables"] == {"HF_HOME": "/models/hub"}
    assert KEY not in shown.stdout
    assert calls(home) == []
    assert sorted(path.name for path in home.iterdir()) == ["pid"]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd-analyze is part of Linux")
def test_systemd_finds_nothing_wrong_with_the_unit(home, on, tmp_path, monkeypatch):
    on("linux")
    monkeypatch.setenv("HF_HOME", '/models/50% "mine"')
    shown = run("install", "--print", "--api-key", KEY, "--shutdown", "60")
    assert shown.exit_code == 0, shown.stderr
    file = tmp_path / "canary-server.service"
    file.write_text(shown.stdout)

    def verified() -> str:
        command = ["systemd-analyze", "--user", "verify", str(file)]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stderr

    assert verified() == ""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(shown.stdout)
    program, serve = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).is_file(), serve) == (True, "serve")
    assert int(unit["Service"]["TimeoutStopSec"]) > 60
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["EnvironmentFile"] == f"-{home}/.config/canary-server/.env"
    assert unit["Service"]["Environment"] == '"HF_HOME=/models/50%% \\"mine\\""'
    assert KEY not in shown.stdout
    # That it would find something:
    file.write_text(shown.stdout.replace("TimeoutStopSec", "TimeoutStopp"))
    assert "Unknown key 'TimeoutStopp'" in verified()


def test_settings_and_keys_are_in_a_file_that_only_the_user_can_read(home, on, monkeypatch):
    on("linux")
    (home / "mine.nemo").touch()
    monkeypatch.setenv("CANARY_CACHE", "models in here")
    assert run("install", "--api-key", KEY, "--model", "mine.nemo", "--model", "toy").exit_code == 0
    file = home / ".config/canary-server/.env"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert file.read_text().splitlines() == [
        f"CANARY_API_KEYS={KEY}",
        f"CANARY_CACHE='{home}/models in here'",
        f"CANARY_MODEL='{home}/mine.nemo,toy'",
    ]
    monkeypatch.delenv("CANARY_CACHE")
    stored = Settings(_env_file=file)  # type: ignore[call-arg]
    assert (stored.model, stored.cache) == ((f"{home}/mine.nemo", "toy"), home / "models in here")


def test_installing_again_changes_the_settings_that_are_given_and_keeps_the_others(home, on):
    on("linux")
    assert run("install", "--port", "9001", "--api-key", KEY).exit_code == 0
    file = home / ".config/canary-server/.env"
    file.write_text(f"# ours\n{file.read_text()}export CANARY_LOG_LEVEL=debug\n")
    assert run("install", "--port", "9002", "--log-level", "error").exit_code == 0
    assert file.read_text().splitlines() == [
        "# ours",
        f"CANARY_API_KEYS={KEY}",
        "CANARY_LOG_LEVEL=error",
        "CANARY_PORT=9002",
    ]
    assert mode(file) == 0o600


# ---- what the managers are asked ----


def test_systemd_is_asked_to_enable_and_start_the_unit_and_to_remove_it(home, on):
    on("linux")
    installed = run("install", "--port", "9001")
    assert calls(home) == [
        "systemctl --user show-environment",
        "systemctl --user daemon-reload",
        "systemctl --user enable canary-server.service",
        "systemctl --user restart canary-server.service",
    ]
    unit = home / ".config/systemd/user/canary-server.service"
    assert f"installed {unit}" in installed.stdout
    assert "http://127.0.0.1:9001" in installed.stdout
    assert "loginctl enable-linger" in installed.stdout
    assert unit.read_text() == run("install", "--print").stdout
    assert run("uninstall").exit_code == 0
    assert calls(home)[1:] == [
        "systemctl --user disable --now canary-server.service",
        "systemctl --user daemon-reload",
    ]
    assert not unit.exists()
    again = run("uninstall")
    assert (again.exit_code, again.stderr) == (1, f"canary: not installed: there is no {unit}\n")


def test_launchd_is_asked_to_replace_the_agent_once_the_old_one_has_ended(home, on):
    on("darwin")
    agent = home / "Library/LaunchAgents/canary-server.plist"
    domain = f"gui/{os.getuid()}"
    assert run("install").exit_code == 0
    assert calls(home) == [f"launchctl bootstrap {domain} {agent}"]
    assert run("install", "--port", "9001").exit_code == 0
    assert calls(home) == [
        f"launchctl bootout {domain}/canary-server",
        f"launchctl bootstrap {domain} {agent}",
    ]
    assert plistlib.loads(agent.read_bytes())["Label"] == agent.stem
    assert (home / "Library/Logs/canary-server").is_dir()
    assert run("uninstall").exit_code == 0
    assert calls(home) == [f"launchctl bootout {domain}/canary-server"]
    assert not agent.exists()
    # The settings stay.
    assert (home / "Library/Application Support/canary-server/.env").exists()


def test_status_tells_what_launchd_knows(home, on):
    on("darwin")
    missing = run("status")
    assert (missing.exit_code, missing.stdout) == (1, "not installed; to install it: canary service install\n")
    assert run("install", "--port", "1").exit_code == 0
    running = run("status")
    assert (running.exit_code, running.stdout) == (
        0,
        "running, process 4711\nhttp://127.0.0.1:1: no answer yet; see canary service logs\n",
    )
    (home / "pid").write_text("")
    failed = run("status")
    assert (failed.exit_code, failed.stdout) == (
        1,
        "not running; its last exit code is 1; to see why: canary service logs\n",
    )


def test_status_tells_what_systemd_knows(home, on):
    on("linux")
    assert run("install", "--port", "1").exit_code == 0
    shown = home / "shown"
    shown.write_text("ActiveState=active\nMainPID=12\nExecMainStatus=0\nExecMainExitTimestamp=\n")
    assert run("status").stdout.startswith("running, process 12\n")
    shown.write_text("ActiveState=activating\nMainPID=0\nExecMainStatus=1\nExecMainExitTimestamp=Sat\n")
    failed = run("status")
    assert (failed.exit_code, failed.stdout) == (
        1,
        "not running; its last exit code is 1; to see why: canary service logs\n",
    )


def test_logs_are_read_where_each_manager_keeps_them(home, on):
    on("linux")
    assert run("logs").exit_code == 0
    on("darwin")
    assert run("logs", "-n", "5", "--follow").exit_code == 0
    assert calls(home) == [
        "journalctl --user --unit=canary-server.service --lines=100",
        f"tail -n 5 -F {home}/Library/Logs/canary-server/server.log",
    ]


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("platform", "program", "message"),
    [
        ("linux", "systemctl", "canary: systemctl is not on this machine\n"),
        ("darwin", "launchctl", "canary: launchctl is not on this machine\n"),
        ("win32", "", "canary: win32 is not supported; supported: macOS with launchd, Linux with systemd\n"),
    ],
)
@pytest.mark.parametrize("command", ["install", "uninstall", "status"])
def test_without_a_service_manager_one_line_says_so_and_nothing_is_written(
    home, on, monkeypatch, platform, program, message, command
):
    on(platform)
    monkeypatch.setenv("PATH", str(home))
    result = run(command)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", message)
    assert sorted(path.name for path in home.iterdir()) == ["pid"]


def test_a_manager_that_refuses_is_quoted_in_one_line(home, on, tmp_path):
    on("linux")
    (tmp_path / "programs/systemctl").write_text(
        "#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2\nexit 1\n"
    )
    result = run("install")
    assert (result.exit_code, result.stderr) == (
        1,
        "canary: systemctl --user show-environment failed: Failed to connect to bus: No medium found\n",
    )
    assert not (home / ".config").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "other machines can reach 0.0.0.0, and there is no API key"),
        (("--port", "99999"), "99999"),
        (("--cache", "it's"), "CANARY_CACHE: a service's setting cannot have a quote"),
    ],
)
def test_settings_that_the_server_would_refuse_are_refused_before_anything_is_written(home, on, arguments, message):
    on("linux")
    result = run("install", *arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
    assert calls(home) == []
    assert sorted(path.name for path in home.iterdir()) == ["pid"]


# ---- the service itself ----


def test_the_agent_starts_a_server_with_the_stored_settings_and_status_says_that_it_is_ready(home, on, cache):
    on("darwin")
    port = free_port()
    assert run("install", "--port", port, "--cache", cache, "--log-format", "json").exit_code == 0
    agent = plistlib.loads((home / "Library/LaunchAgents/canary-server.plist").read_bytes())
    # As launchd does: no shell, and hardly any environment.
    with (
        open(agent["StandardErrorPath"], "wb") as log,
        subprocess.Popen(
            agent["ProgramArguments"],
            cwd=agent["WorkingDirectory"],
            env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            assert wait_until_ready(port, process), Path(agent["StandardErrorPath"]).read_text()
            result = run("status")
            assert result.stdout == f"running, process 4711\nhttp://127.0.0.1:{port}: ready, with toy\n"
        finally:
            process.terminate()
            process.wait(agent["ExitTimeOut"])
    first = Path(agent["StandardErrorPath"]).read_text().splitlines()[0]
    assert json.loads(first)["message"].startswith("canary-server")


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(0.1)
    return False
