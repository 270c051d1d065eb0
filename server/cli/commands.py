"""What the commands have in common: plain help grouped by subject, options made from settings, one line on Ctrl-C.

Kept light, since `canary --help` waits for it: `Settings` is imported only for a command that takes its options.
"""

import os
import sys
import threading
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Commands(TyperGroup):
    """The top-level command. Ctrl-C ends any of its commands with one line and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("canary: interrupted", err=True)
            exit_at_once_if_busy(INTERRUPTED)
            raise typer.Exit(INTERRUPTED) from None


class Command(TyperCommand):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if not record:
                continue
            if param.param_type_name == "argument":
                sections.setdefault("Arguments", []).append((param.metavar or str(param.name), record[1]))
            else:
                sections.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class SettingsCommand(Command):
    """A command that also takes settings as options. Those that the user gave are in `ctx.obj`."""

    settings: tuple[str, ...] | None = None
    """Their names; None for all."""

    def get_params(self, ctx: Any) -> list[Any]:
        from server.cli.options import setting_options
        from server.settings import Settings

        own = super().get_params(ctx)
        # --help stays last
        return [*own[:-1], *setting_options(self.settings or tuple(Settings.model_fields)), *own[-1:]]

    def invoke(self, ctx: Any) -> Any:
        from server.settings import Settings

        values = {name: ctx.params.pop(name) for name in self.settings or Settings.model_fields}
        # A repeatable option that was not given is empty.
        ctx.obj = {name: value for name, value in values.items() if value not in (None, ())}
        return super().invoke(ctx)


def taking(*names: str) -> type[SettingsCommand]:
    """A command that takes these settings as options."""
    return type("Command", (SettingsCommand,), {"settings": names})


def exit_at_once_if_busy(code: int) -> None:
    """End the process now if another thread is still running.

    A normal exit of the interpreter would unwind a thread in native code, and C++ would then call abort().
    """
    if threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
