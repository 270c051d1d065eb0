"""What a service manager is told, and what it tells: the same for launchd and systemd."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

NAME = "canary-server"
# Seconds before a failed server is started again.
RESTART_S = 10
# How much longer than its requests the server may take to stop.
STOPPING_S = 10
# How long a command of the service manager may take. systemctl waits until the server has stopped.
_COMMAND_S = 600.0


class ServiceManagerError(Exception):
    """The service manager is missing or refused something. The message says what to do."""


@dataclass(frozen=True)
class Service:
    """program: `canary`, absolute; folder: where it runs and finds its settings in a file .env; stop_s: how long it may
    take to stop; environment: variables that are no settings and no secrets.
    """

    program: Path
    folder: Path
    stop_s: int
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """exit_code: of the last run that ended, if that is known."""

    installed: bool
    running: bool = False
    pid: int | None = None
    exit_code: int | None = None


class Manager(Protocol):
    """launchd or systemd. All but `definition` raise ServiceManagerError, and OSError for files."""

    name: str
    file: Path
    """Where the service is defined."""
    folder: Path
    """Where it runs, with its settings in .env."""
    logs: str
    """Where the log is, for people."""
    hint: str
    """What else a user may want to know after installing."""

    def definition(self, service: Service) -> str:
        """The file's content."""
        ...

    def check(self) -> None:
        """Raise if the manager is not there."""
        ...

    def install(self, service: Service) -> None:
        """Write the file and start the service; one that runs is replaced."""
        ...

    def uninstall(self) -> bool:
        """Stop the service and delete the file; False if there was none."""
        ...

    def state(self) -> State: ...

    def log_command(self, lines: int, follow: bool) -> list[str]:
        """The command that shows the log."""
        ...


def call(*command: str) -> str:
    """What a command wrote to stdout. Raises ServiceManagerError with its last line if it fails."""
    done = attempt(*command)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        raise ServiceManagerError(f"{' '.join(command)} failed: {said[-1]}")
    return done.stdout


def attempt(*command: str) -> subprocess.CompletedProcess[str]:
    """A command that may fail. Raises ServiceManagerError if it cannot be run."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except FileNotFoundError:
        raise ServiceManagerError(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise ServiceManagerError(f"{' '.join(command)} did not end in {_COMMAND_S:g} s") from None


def write(file: Path, content: str) -> None:
    """Replace the file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(content, encoding="utf-8")
    part.replace(file)
