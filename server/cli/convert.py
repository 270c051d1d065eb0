"""`canary convert`: a NeMo archive to a folder of safetensors."""

from pathlib import Path

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
        config = ConversionConfig()
        typer.echo(convert(config))
