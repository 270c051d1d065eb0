"""Command-line options made from `Settings`: its fields are the only list of names, defaults, help and values."""

import inspect
from functools import cache
from typing import Annotated, Any, Literal, get_origin

import typer
from pydantic.fields import FieldInfo

from server.settings import Settings, choices, default_text, flag, group, value_type, variable

# In addition to the long ones.
_SHORT_FLAGS = {"model": "-m"}
_UNITS = {"_s": "SECONDS", "_mb": "MB"}


@cache
def setting_options(names: tuple[str, ...]) -> list[Any]:
    """One click parameter per setting, named after it. Its value is None unless the user gave one."""
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name))
        for name in names
    ]

    def command(**given: Any) -> None:
        pass

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return typer.main.get_command(app).params


def _annotation(name: str) -> Any:
    """`Annotated[type | None, typer.Option(…)]`, as the parameter of a Typer command would have it."""
    field = Settings.model_fields[name]
    kind = value_type(field)
    flags = [f"{flag(name)}/--no-{flag(name)[2:]}" if kind is bool else flag(name)]
    if name in _SHORT_FLAGS:
        flags.append(_SHORT_FLAGS[name])
    option = typer.Option(
        *flags, help=_help(name, field), metavar=_metavar(name, field), show_default=False, rich_help_panel=group(field)
    )
    return Annotated[_parsed_type(field) | None, option]


def _parsed_type(field: FieldInfo) -> Any:
    """The type that the command line checks; `Settings` checks the rest."""
    kind = value_type(field)
    if get_origin(kind) is Literal:
        return Literal[choices(field)]
    if get_origin(kind) is tuple:
        return list[str]
    return kind if kind in (bool, int, float) else str


def _metavar(name: str, field: FieldInfo) -> str | None:
    kind = value_type(field)
    if kind is bool or get_origin(kind) is Literal:
        return None
    for suffix, unit in _UNITS.items():
        if name.endswith(suffix):
            return unit
    return "NUMBER" if kind in (int, float) else "TEXT"


def _help(name: str, field: FieldInfo) -> str:
    notes = [variable(name)]
    if get_origin(value_type(field)) is tuple:
        notes.append("repeat for several")
    if default := default_text(field):
        notes.append(f"default: {default}")
    return f"{field.description}  [{'; '.join(notes)}]"
