"""Failures of a command: one line on stderr and an exit code."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from pydantic import ValidationError

from server.errors import ServiceError, invalid_field
from server.logs import TextFormatter
from server.settings import Settings, flag, variable


def complain(message: object) -> None:
    """One line on stderr."""
    typer.echo(f"canary: {' '.join(str(message).split())}", err=True)


def fail(message: object) -> NoReturn:
    complain(message)
    raise typer.Exit(1)


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message alone tells a user what to do."""
    from convert.errors import ConversionError
    from model.config import ConfigError, WeightsError
    from model.digests import DamagedError
    from model.tokenizer import TokenizerError

    return ConversionError, WeightsError, ConfigError, TokenizerError, DamagedError, ServiceError, OSError


@contextmanager
def one_line_failures() -> Iterator[None]:
    """Expected errors end the command with one line; unexpected ones keep their traceback."""
    expected = expected_errors()
    try:
        yield
    except expected as error:
        fail(error)


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Log in the style of the command's own messages."""
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter("canary: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def chosen_settings(**given: Any) -> Settings:
    """Settings from the command line (`given`; None means not given), the environment and .env, in this order.

    A bad value is a usage error that names the option or the variable it comes from.
    """
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = invalid_field(error)
        name = wrong.param or ""
        source = flag(name) if name in given else f"{variable(name)} (environment or .env)"
        raise typer.BadParameter(str(wrong).replace(name, source, 1)) from None
