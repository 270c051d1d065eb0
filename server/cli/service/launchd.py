"""A launchd agent: macOS runs it while the user is logged in, as Metal wants it."""

import os
import plistlib
import re
import time
from pathlib import Path
from typing import Any

from server.cli.service.service import NAME, RESTART_S, STOPPING_S, Service, ServiceManagerError, State, attempt, call
from server.cli.service.service import write as write_file

# launchd's own limit of 256 files is less than the server's connections.
OPEN_FILES = 4096
# launchctl returns from `bootout` before the service has ended.
_POLL_S = 0.2


class Launchd:
    """See `service.Manager`."""

    name = "launchd"
    hint = "It runs while you are logged in."

    def __init__(self, home: Path):
        self.file = home / "Library" / "LaunchAgents" / f"{NAME}.plist"
        self.folder = home / "Library" / "Application Support" / NAME
        self._log = home / "Library" / "Logs" / NAME / "server.log"
        self.logs = str(self._log)
        self._domain = f"gui/{os.getuid()}"
        self._target = f"{self._domain}/{NAME}"

    def definition(self, service: Service) -> str:
        agent: dict[str, Any] = {
            "Label": NAME,
            "ProgramArguments": [str(service.program), "serve"],
            "WorkingDirectory": str(service.folder),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": RESTART_S,
            # The default, Standard, slows down the CPU and the disk.
            "ProcessType": "Interactive",
            # After its own 20 s, launchd would kill a server that still answers requests.
            "ExitTimeOut": service.stop_s,
            "StandardOutPath": self.logs,
            "StandardErrorPath": self.logs,
            "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        }
        if service.environment:
            agent["EnvironmentVariables"] = service.environment
        return plistlib.dumps(agent, sort_keys=False).decode()

    def check(self) -> None:
        attempt("launchctl", "version")

    def install(self, service: Service) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._stop(service.stop_s)
        write_file(self.file, self.definition(service))
        call("launchctl", "bootstrap", self._domain, str(self.file))

    def uninstall(self) -> bool:
        was_there = self.file.exists()
        stop_s = plistlib.loads(self.file.read_bytes())["ExitTimeOut"] if was_there else STOPPING_S
        self._stop(stop_s)
        self.file.unlink(missing_ok=True)
        return was_there

    def state(self) -> State:
        printed = attempt("launchctl", "print", self._target)
        if printed.returncode:
            return State(self.file.exists())
        pid, code = (_number(name, printed.stdout) for name in ("pid", "last exit code"))
        return State(True, pid is not None, pid, code)

    def log_command(self, lines: int, follow: bool) -> list[str]:
        return ["tail", "-n", str(lines), *(["-F"] if follow else []), self.logs]

    def _stop(self, stop_s: float) -> None:
        """Boot the service out, if it is there, and wait until it has ended."""
        if attempt("launchctl", "print", self._target).returncode:
            return
        call("launchctl", "bootout", self._target)
        deadline = time.monotonic() + stop_s + STOPPING_S
        while not attempt("launchctl", "print", self._target).returncode:
            if time.monotonic() > deadline:
                raise ServiceManagerError(f"the running service did not end in {stop_s + STOPPING_S:g} s")
            time.sleep(_POLL_S)


def _number(name: str, printed: str) -> int | None:
    found = re.search(rf"^\s*{name} = (-?\d+)", printed, re.MULTILINE)
    return int(found[1]) if found else None
