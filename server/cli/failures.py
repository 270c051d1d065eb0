"""A failure as a person wants it: one line on stderr and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from ..errors import ServiceError


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
    from model.canary import WeightsError
    from model.config import ConfigError
    from model.tokenizer import TokenizerError

    try:
        yield
    except (ConversionError, WeightsError, ConfigError, TokenizerError, ServiceError, OSError) as error:
        fail(error)
