"""`canary doctor`: runs every check, and prints a line for each, ready to paste into a bug report."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from model.process import prepare_process
from server.cli.doctor import machine, parity, surroundings
from server.cli.doctor.report import Check, anonymous, as_json, count, found, summary
from server.cli.failures import chosen_settings
from server.settings import VERSION, Settings

FLOAT32 = "float32"


def doctor(given: dict[str, Any], *, quick: bool, json_output: bool) -> bool:
    """Run the checks; whether none failed. given: settings from the command line.

    Lines go to stdout, or to stderr if the JSON goes to stdout.
    """
    settings = chosen_settings(**given)
    prepare_process()
    began = time.monotonic()
    screen = _Screen(json_output)
    screen.line(f"canary doctor {VERSION}, {settings.model[0]}")
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, check in _checks(settings, quick, Path(scratch), screen):
            screen.progress(name)
            lines.append(line := found(name, check))
            screen.line(str(line))
    seconds = time.monotonic() - began
    screen.line(summary(lines, seconds))
    if json_output:
        typer.echo(as_json(lines, seconds, VERSION))
    return not count(lines, "FAILED")


def _checks(settings: Settings, quick: bool, scratch: Path, screen: "_Screen") -> Iterator[Check]:
    """In the order of the screen. Without MLX there is nothing to compute with."""
    mlx = found("mlx", machine.mlx)
    for name, check in machine.checks(settings):
        if mlx.finding.status != "FAILED" or name not in ("device", "8 bits"):
            yield name, check
    if mlx.finding.status == "FAILED":
        yield from surroundings.checks(settings, needs_download=False)
        return
    from server.cli.doctor import speed
    from server.cli.doctor.models import Models

    cache = surroundings.cache_dir(settings)
    can_write = surroundings.cache_folder(cache).status == "ok"
    models = Models(settings, cache if can_write else scratch)
    yield from surroundings.checks(settings, models.needs_download)
    yield from speed.checks(models, quick, screen.progress)
    if not quick:
        for dtype in dict.fromkeys((FLOAT32, models.dtype)):
            yield from parity.checks(dtype, scratch, screen.progress)


class _Screen:
    """Lines, and below them on a terminal what is being checked."""

    def __init__(self, json_output: bool):
        self._to_stderr = json_output
        self._shows_progress = sys.stderr.isatty()

    def line(self, text: str) -> None:
        self._clear()
        typer.echo(anonymous(text), err=self._to_stderr)

    def progress(self, what: str) -> None:
        if self._shows_progress:
            self._clear()
            print(f"checking: {what} …"[:78], end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shows_progress:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
