"""A failure as a person wants it: one line on stderr and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from pydantic import ValidationError

from server.errors import ServiceError, invalid_field
from server.settings import Settings


def complain(message: object) -> None:
    """One line on stderr."""
    typer.echo(f"canary: {' '.join(str(message).split())}", err=True)


def fail(message: object) -> NoReturn:
    complain(message)
    raise typer.Exit(1)


@contextmanager
def one_line_failures() -> Iterator[None]:
    """Expected errors end the command with one line; an unexpected one keeps its traceback."""
    from convert.errors import ConversionError
    from model.config import ConfigError
    from model.tokenizer import TokenizerError
    from model.weights import WeightsError

    try:
        yield
    except (ConversionError, WeightsError, ConfigError, TokenizerError, ServiceError, OSError) as error:
        fail(error)


def chosen_settings(**given: Any) -> Settings:
    """The settings of the environment, those `given` (and not None) before them; a wrong one is a usage error."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = invalid_field(error)
        variable = f"CANARY_{(wrong.param or '').upper()}"
        raise typer.BadParameter(f"{wrong} (an option, or {variable} in the environment or .env)") from None
