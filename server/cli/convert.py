"""`canary convert`: a NeMo archive to a folder of safetensors."""

import logging
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from .failures import chosen_settings, one_line_failures


def convert_archive(
    source: str,
    out: Path | None,
    *,
    dtype: str | None,
    quantize: str | None,
    group_size: str | None,
    preserve_keys: bool,
    encoder_only: bool,
    upload_repo: str | None,
    verbose: bool,
) -> None:
    """Convert `source` and print the folder's path."""
    from convert.convert import ConversionConfig, convert

    settings = chosen_settings()
    chosen: dict[str, Any] = {"dtype": dtype} if dtype else {}
    # Options are text; the numbers' types are for the library.
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
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="canary: %(message)s")
    with one_line_failures():
        typer.echo(convert(config, settings.cache))
