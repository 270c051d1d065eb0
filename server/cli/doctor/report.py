"""What the checks found: a line for each on the screen, or one JSON object. Neither has names, keys or home folders."""

import getpass
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from server.cli.failures import expected_errors

# Advice where a computation gave a wrong result.
WRONG = "results on this device are wrong: please report it"

Status = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """value: what was found; advice: what to do about it, if anything; figures: the numbers, for `--json`."""

    status: Status
    value: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def ok(value: str, **figures: Any) -> Finding:
    return Finding("ok", value, figures=figures)


def warning(value: str, advice: str, **figures: Any) -> Finding:
    return Finding("warning", value, advice, figures)


def failed(value: str, advice: str, **figures: Any) -> Finding:
    return Finding("FAILED", value, advice, figures)


# A name for the first column, and what finds out. An exception is a failure of the check.
Check = tuple[str, Callable[[], Finding]]


@dataclass(frozen=True)
class Line:
    """A check's name with its finding, and the seconds it took."""

    name: str
    finding: Finding
    seconds: float = 0.0

    def __str__(self) -> str:
        told = f"{self.finding.status:9}{self.name:15}{self.finding.value}"
        return f"{told}\n{'':24}→ {self.finding.advice}" if self.finding.advice else told


def found(name: str, check: Callable[[], Finding]) -> Line:
    """Run one check. Whatever goes wrong in it is its finding."""
    began = time.monotonic()
    try:
        finding = check()
    except expected_errors() as error:
        finding = failed(_one_line(error), "")
    except Exception as error:
        finding = failed(f"{type(error).__name__}: {_one_line(error)}", "unexpected error: please report it")
    return Line(name, finding, time.monotonic() - began)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def summary(lines: Iterable[Line], seconds: float) -> str:
    """The last lines of the screen."""
    lines = list(lines)
    warnings = count(lines, "warning")
    return (
        f"\n{count(lines, 'ok')} ok, {warnings} warning{'s' * (warnings != 1)}, {count(lines, 'FAILED')} failed"
        f" in {seconds:.0f} s\n"
        "To report a problem, paste everything above, or the output of `canary doctor --json`.\n"
        "It contains no names of people or computers, no keys, and ~ for your home folder."
    )


def count(lines: Iterable[Line], status: Status) -> int:
    return sum(line.finding.status == status for line in lines)


def as_json(lines: list[Line], seconds: float, version: str) -> str:
    """Everything that was found, as one object."""
    result = {
        "version": version,
        "ok": not count(lines, "FAILED"),
        "warnings": count(lines, "warning"),
        "failed": count(lines, "FAILED"),
        "seconds": round(seconds, 1),
        "checks": [{"name": line.name, **asdict(line.finding), "seconds": round(line.seconds, 3)} for line in lines],
    }
    return anonymous(json.dumps(result, indent=2, ensure_ascii=False))


def anonymous(text: str) -> str:
    """The text with ~ for the home folder, and without the user's and the computer's name where they are in a path."""
    homes = {str(Path.home()), os.path.realpath(Path.home())} - {"/"}
    for home in sorted(homes, key=len, reverse=True):
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    for name in {_user(), socket.gethostname()} - {""}:
        text = re.sub(rf"(?<=/){re.escape(name)}(?![\w.-])", "…", text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
