"""The command line's surface; the work is in `server/cli/`, imported only when its command runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

main = typer.Typer(
    name="canary",
    help="Speech to text and translation on your own machine: NVIDIA Canary on MLX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_MODEL_HELP = "A known name, a Hugging Face repository, a .nemo file or a converted folder."
Model = Annotated[str | None, typer.Option("--model", "-m", help=f"{_MODEL_HELP} By default toy.", show_default=False)]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option("--dtype", help="What the weights are held in; by default what suits the device."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"canary-server {version('canary-server')}")
        raise typer.Exit


@main.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@main.command()
def serve(
    model: Model = None,
    host: Annotated[str | None, typer.Option(help="By default 127.0.0.1.", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one. By default 8000.", show_default=False)
    ] = None,
    dtype: Dtype = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C.

    What is not given here is taken from CANARY_MODEL, CANARY_HOST, CANARY_PORT … in the environment or in .env.
    """
    from server.cli.serve import serve

    serve(model=model, host=host, port=port, dtype=dtype)


@main.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="wav, flac, ogg or mp3.")],
    model: Model = None,
    language: Annotated[
        str | None,
        typer.Option(
            "--language", "-l", help="What is spoken. By default en, and said to be assumed.", show_default=False
        ),
    ] = None,
    target_language: Annotated[
        str | None, typer.Option("--target-language", "-t", help="Translate to this one.")
    ] = None,
    timestamps: Annotated[
        Literal["none", "segment", "word"] | None,
        typer.Option(help="By default none; segment for srt and vtt.", show_default=False),
    ] = None,
    pnc: Annotated[bool, typer.Option("--pnc/--no-pnc", help="Punctuation and capital letters.")] = True,
    beam_size: Annotated[
        int | None, typer.Option(min=1, max=32, help="Hypotheses kept. By default the model's.", show_default=False)
    ] = None,
    dtype: Dtype = None,
    format: Annotated[Literal["text", "json", "srt", "vtt"], typer.Option("--format", "-f")] = "text",
) -> None:
    """Transcribe or translate files.

    json is one object a line, one line a file.

    A file that fails is named on stderr; the others are done all the same, and the exit code is 1.
    """
    from server.cli.transcribe import transcribe_files

    if format in ("srt", "vtt") and len(files) > 1:
        raise typer.BadParameter(f"{format} is written for one file; {len(files)} were given", param_hint="--format")
    failed = transcribe_files(
        files,
        model=model,
        language=language,
        target_language=target_language,
        timestamps=timestamps,
        pnc=pnc,
        beam_size=beam_size,
        dtype=dtype,
        format=format,
    )
    if failed:
        raise typer.Exit(1)


@main.command()
def convert(
    source: Annotated[str, typer.Argument(help="A .nemo file, a known name or a Hugging Face repository.")],
    out: Annotated[
        Path | None, typer.Argument(help="The folder to make. By default the model's name, here.", show_default=False)
    ] = None,
    dtype: Dtype = None,
    preserve_keys: Annotated[bool, typer.Option("--preserve-keys", help="Keep NeMo's tensor names.")] = False,
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="Leave the decoder out.")] = False,
    upload_repo: Annotated[str | None, typer.Option(help="Upload the result to this Hugging Face repository.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Name every tensor.")] = False,
) -> None:
    """Convert a NeMo archive to a folder of safetensors that MLX reads."""
    from server.cli.convert import convert_archive

    convert_archive(
        source,
        out,
        dtype=dtype,
        preserve_keys=preserve_keys,
        encoder_only=encoder_only,
        upload_repo=upload_repo,
        verbose=verbose,
    )


if __name__ == "__main__":
    main()
