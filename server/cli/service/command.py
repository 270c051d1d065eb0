"""`canary service install | uninstall | status | logs`."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from server.cli.failures import chosen_settings, fail
from server.cli.service.launchd import Launchd
from server.cli.service.reachable import readiness, url_of
from server.cli.service.service import STOPPING_S, Manager, Service, ServiceManagerError
from server.cli.service.stored import effective_settings, given_settings, merged, write_private
from server.cli.service.systemd import Systemd
from server.settings import Settings

PLATFORM = sys.platform
# Where other programs look for models. Tokens and proxies are left out: they may be secrets.
_PASSED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")


def install(given: dict[str, Any], print_only: bool) -> None:
    """Store the settings, write the service's file and start it. given: settings from the command line."""
    with _failures():
        manager = _manager()
        values = given_settings(chosen_settings(**given))
        env_file = manager.folder / ".env"
        content = merged(env_file.read_text(encoding="utf-8") if env_file.exists() else "", values)
        settings = _checked(content)
        service = Service(_program(), manager.folder, settings.shutdown_s + STOPPING_S, _environment())
        if print_only:
            typer.echo(manager.definition(service), nl=False)
            return
        manager.check()
        write_private(env_file, content)
        manager.install(service)
    typer.echo(f"installed {manager.file}")
    typer.echo(f"settings  {env_file}")
    typer.echo(f"log       {manager.logs}; to read it: canary service logs")
    typer.echo(f"serving   {url_of(settings)} as soon as {settings.model[0]} is loaded: canary service status")
    typer.echo(manager.hint)


def uninstall() -> None:
    with _failures():
        manager = _manager()
        manager.check()
        was_there = manager.uninstall()
    if not was_there:
        fail(f"not installed: there is no {manager.file}")
    typer.echo(f"removed {manager.file}; settings and models are kept, in {manager.folder} and in the cache")


def status() -> bool:
    """Whether the service runs."""
    with _failures():
        manager = _manager()
        manager.check()
        state = manager.state()
        settings = effective_settings(manager.folder / ".env")
    if not state.installed:
        typer.echo("not installed; to install it: canary service install")
        return False
    if not state.running:
        code = "" if state.exit_code is None else f"; its last exit code is {state.exit_code}"
        typer.echo(f"not running{code}; to see why: canary service logs")
        return False
    typer.echo(f"running, process {state.pid}")
    typer.echo(f"{url_of(settings)}: {readiness(settings)}")
    return True


def show_logs(lines: int, follow: bool) -> int:
    """The exit code of the program that shows them."""
    with _failures():
        command = _manager().log_command(lines, follow)
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        fail(f"{command[0]} is not on this machine")


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (ServiceManagerError, OSError) as error:
        fail(error)


def _manager() -> Manager:
    if PLATFORM == "darwin":
        return Launchd(Path.home())
    if PLATFORM == "linux":
        return Systemd(Path.home())
    raise ServiceManagerError(f"{PLATFORM} is not supported; supported: macOS with launchd, Linux with systemd")


def _checked(content: str) -> Settings:
    """The settings in a file of this content; ends the command if `canary serve` would refuse them."""
    from server.cli.serve import check_access

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ".env"
        write_private(file, content)
        settings = effective_settings(file)
    check_access(settings)
    return settings


def _program() -> Path:
    """`canary` of this installation."""
    program = Path(sysconfig.get_path("scripts")) / "canary"
    if not program.is_file():
        raise ServiceManagerError(f"there is no {program}: install canary-server first, as its README says")
    return program


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
