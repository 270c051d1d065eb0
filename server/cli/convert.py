"""`canary convert`: a NeMo archive to a folder of safetensors."""

import logging
import shlex
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from server.cli.failures import chosen_settings, log_to_stderr, one_line_failures


def convert_archive(
    source: str,
    out: Path | None,
    *,
    settings: dict[str, Any],
    dtype: str | None,
    quantize: str | None,
    group_size: str | None,
    preserve_keys: bool,
    encoder_only: bool,
    upload_repo: str | None,
    verbose: bool,
) -> None:
    """Convert `source`, print the new folder's path, and say how to use it. settings: from the command line."""
    from convert.convert import ConversionConfig, convert

    cache = chosen_settings(**settings).cache
    chosen: dict[str, Any] = {"dtype": dtype} if dtype else {}
    chosen |= {"quantize": quantize and int(quantize), "group_size": group_size and int(group_size)}
    try:
        config = ConversionConfig(
            source=source,
            output=out,
            preserve_keys=preserve_keys,
            encoder_only=encoder_only,
            upload_repo=upload_repo,
            verbose=verbose,
            **chosen,
        )
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    with one_line_failures():
        folder = convert(config, cache)
    typer.echo(folder)
    if not (preserve_keys or encoder_only):
        typer.echo(f"canary: to use it: --model {_typed(folder)}", err=True)


def _typed(folder: Path) -> str:
    """The folder as to be typed in a shell. `./` tells it from a known model's name."""
    here = Path.cwd()
    return shlex.quote(f"./{folder.relative_to(here)}" if folder.is_relative_to(here) else str(folder))
