"""`canary convert`: a NeMo archive to a folder of safetensors."""

from pathlib import Path
from typing import Any

import typer

from .failures import one_line_failures


def convert_archive(
    source: str,
    out: Path | None,
    *,
    dtype: str | None,
    preserve_keys: bool,
    encoder_only: bool,
    upload_repo: str | None,
    verbose: bool,
) -> None:
    """Convert `source` and print the folder's path."""
    from convert.convert import ConversionConfig, convert

    with one_line_failures():
        chosen: dict[str, Any] = {"dtype": dtype} if dtype else {}
        config = ConversionConfig(
            source=source,
            output=out,
            preserve_keys=preserve_keys,
            encoder_only=encoder_only,
            upload_repo=upload_repo,
            verbose=verbose,
            **chosen,
        )
        typer.echo(convert(config))
