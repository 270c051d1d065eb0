"""A user unit of systemd. Its log goes to the journal."""

import os
from pathlib import Path

from server.cli.service.service import NAME, RESTART_S, Service, State, call
from server.cli.service.service import write as write_file

UNIT = f"{NAME}.service"


class Systemd:
    """See `service.Manager`."""

    name = "systemd"
    logs = "the journal"
    hint = "It stops when you log out, unless you run: loginctl enable-linger"

    def __init__(self, home: Path):
        configuration = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        self.file = configuration / "systemd" / "user" / UNIT
        self.folder = configuration / NAME

    def definition(self, service: Service) -> str:
        environment = [f"Environment={_quoted(f'{name}={text}')}" for name, text in service.environment.items()]
        lines = [
            "[Unit]",
            "Description=canary-server: speech to text and translation",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={_quoted(str(service.program)).replace('$', '$$')} serve",
            f"WorkingDirectory={_literal(service.folder)}",
            f"EnvironmentFile=-{_literal(service.folder / '.env')}",
            *environment,
            "Restart=on-failure",
            f"RestartSec={RESTART_S}",
            f"TimeoutStopSec={service.stop_s}",
            "NoNewPrivileges=yes",
            "",
            "[Install]",
            "WantedBy=default.target",
        ]
        return "\n".join(lines) + "\n"

    def check(self) -> None:
        _systemctl("show-environment")

    def install(self, service: Service) -> None:
        write_file(self.file, self.definition(service))
        _systemctl("daemon-reload")
        _systemctl("enable", UNIT)
        _systemctl("restart", UNIT)

    def uninstall(self) -> bool:
        was_there = self.file.exists()
        if was_there:
            _systemctl("disable", "--now", UNIT)
            self.file.unlink()
            _systemctl("daemon-reload")
        return was_there

    def state(self) -> State:
        shown = _systemctl("show", "--property=ActiveState,MainPID,ExecMainStatus,ExecMainExitTimestamp", UNIT)
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        pid = int(values.get("MainPID") or 0) or None
        ended = values.get("ExecMainExitTimestamp")
        return State(
            self.file.exists(),
            values.get("ActiveState") in ("active", "reloading") and pid is not None,
            pid,
            int(values["ExecMainStatus"]) if ended and values.get("ExecMainStatus") else None,
        )

    def log_command(self, lines: int, follow: bool) -> list[str]:
        return ["journalctl", "--user", f"--unit={UNIT}", f"--lines={lines}", *(["--follow"] if follow else [])]


def _systemctl(*arguments: str) -> str:
    return call("systemctl", "--user", *arguments)


def _literal(path: Path) -> str:
    """A path where systemd takes the rest of the line, and replaces specifiers such as %h."""
    return str(path).replace("%", "%%")


def _quoted(text: str) -> str:
    """A word of a command line or an assignment."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
