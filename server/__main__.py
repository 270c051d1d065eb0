"""The command line: what each command takes. The work is in `server/cli/`, imported only when a command runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from server.cli.commands import Commands, SettingsCommand, taking
from server.cli.service.app import service
from server.cli.shared_options import BeamOption, LanguageOption, ModelOption, PncOption, TargetOption

main = typer.Typer(
    name="canary",
    cls=Commands,
    help="Speech to text and translation on your own machine: NVIDIA Canary on MLX.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"canary-server {version('canary-server')}")
        raise typer.Exit


@main.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@main.command(cls=SettingsCommand)
def serve(ctx: typer.Context) -> None:
    """Serve models over HTTP until Ctrl-C.

    Each option can also be set by the environment variable in brackets, or in a file named .env. Options take
    precedence.
    """
    from server.cli.serve import serve

    serve(**ctx.obj)


@main.command(
    cls=taking(
        *("dtype", "quantize", "cache", "max_audio_s", "loop_guard"),
        *("subtitle_line_length", "subtitle_lines", "subtitle_min_s", "subtitle_max_s", "subtitle_reading_speed"),
    )
)
def transcribe(
    ctx: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Audio files, folders, and patterns in quotes; with --ray also URLs."),
    ],
    model: ModelOption = None,
    language: LanguageOption = None,
    detect_each: Annotated[
        bool, typer.Option("--detect-each", help="Detect the language again every few seconds.")
    ] = False,
    target_language: TargetOption = None,
    timestamps: Annotated[
        Literal["none", "segment", "word"] | None,
        typer.Option(help="Times to add.  [default: none; segment for srt and vtt]"),
    ] = None,
    pnc: PncOption = True,
    beam_size: BeamOption = None,
    one_pass: Annotated[
        bool, typer.Option("--one-pass", help="For Parakeets: transcribe each file in one pass, not in pieces.")
    ] = False,
    head: Annotated[
        Literal["tdt", "rnnt", "ctc"] | None,
        typer.Option("--head", help="For Parakeets with two heads: the one to write with. By default the transducer."),
    ] = None,
    format: Annotated[
        Literal["text", "json", "srt", "vtt", "parquet"] | None,
        typer.Option(
            "--format",
            "-f",
            help="Output format; json is one object per file, each on its own line. parquet needs --ray, which writes "
            "json or parquet.  [default: text; json with --ray]",
        ),
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="FOLDER",
            help="Write one file per input here instead of to the screen; with --ray, which may name a URL, many "
            "results in each file.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip files whose output is already in --output-dir.")
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Share the files out among the machines of a Ray cluster; needs --output-dir.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --ray, the cluster: auto, or HOST:PORT.  [RAY_ADDRESS; default: one on this machine]",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="With --ray, how many processes hold a model. By default one for each GPU, or for each machine.",
        ),
    ] = None,
) -> None:
    """Transcribe or translate audio files of any length.

    Folders are searched for audio files, and their structure is kept in --output-dir. There, files of the same name
    go into subfolders named after the folders they come from.

    If a file fails, its error goes to stderr, the other files are still transcribed, and the exit code is 1.

    Variables in brackets can be set in the environment or in a file named .env. Options take precedence.
    """
    from server.cli.transcribe import transcribe_files

    if resume and not output_dir:
        raise typer.BadParameter("needs --output-dir to know which files are done", param_hint="--resume")
    if language and detect_each:
        raise typer.BadParameter("cannot be combined with --language", param_hint="--detect-each")
    if not ray and (address or workers):
        raise typer.BadParameter("needs --ray", param_hint="--address" if address else "--workers")
    failed = transcribe_files(
        files,
        {**ctx.obj, "model": model and [model]},
        language=language,
        target_language=target_language,
        timestamps=timestamps,
        pnc=pnc,
        beam_size=beam_size,
        format=format,
        output_dir=output_dir,
        resume=resume,
        detect_each=detect_each,
        one_pass=one_pass,
        head=head,
        ray=ray,
        address=address,
        workers=workers,
    )
    if failed:
        raise typer.Exit(1)


@main.command(cls=taking("dtype", "quantize", "cache", "max_audio_s", "pass_s", "loop_guard", "max_rows"))
def evaluate(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="JSON lines in NeMo's format, a folder of audio and .txt files, or a dataset: "
            "'hf:OWNER/NAME?config=NAME&split=NAME&text=COLUMN&audio=COLUMN'.",
        ),
    ],
    model: ModelOption = None,
    language: LanguageOption = None,
    target_language: TargetOption = None,
    pnc: PncOption = True,
    beam_size: BeamOption = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Take only the first N utterances.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the transcripts to this file, as JSON lines."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the file given with --output.")] = False,
    score_only: Annotated[
        bool, typer.Option("--score-only", help="Score the pred_text in the manifest; no model is needed.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Compare with the --output of another run, or of NeMo."),
    ] = None,
    max_wer: Annotated[
        float | None,
        typer.Option(min=0, metavar="PERCENT", help="Exit with 1 if the normalized word error rate is higher."),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Write one JSON object to stdout, and the figures to stderr.")
    ] = False,
) -> None:
    """Measure word error rates, or BLEU and chrF of translations, on recordings whose text is known.

    A line of a manifest has audio_filepath and text, and may have offset, duration, source_lang, target_lang, taskname
    and pnc, which take precedence over the options. Paths are relative to the manifest's folder.

    A dataset of the Hugging Face Hub needs the extra datasets. Its split is test unless the address names another.

    An utterance that fails counts as an empty text, and the exit code is 1.

    Variables in brackets can be set in the environment or in a file named .env. Options take precedence.
    """
    from server.cli.evaluate.command import evaluate
    from server.cli.evaluate.hub_datasets import PREFIX

    if resume and not output:
        raise typer.BadParameter("needs --output, the file to continue", param_hint="--resume")
    if score_only and output:
        raise typer.BadParameter("cannot be combined with --output", param_hint="--score-only")
    if score_only and source.startswith(PREFIX):
        raise typer.BadParameter("needs a file with pred_text, not a dataset", param_hint="--score-only")
    passed = evaluate(
        source,
        {**ctx.obj, "model": model and [model]},
        limit=limit,
        language=language,
        target_language=target_language,
        pnc=pnc,
        beam_size=beam_size,
        output=output,
        resume=resume,
        score_only=score_only,
        against=against,
        max_wer=max_wer,
        json_output=json_output,
    )
    if not passed:
        raise typer.Exit(1)


@main.command(cls=taking("cache"))
def convert(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A .nemo file, a known name or a Hugging Face repository.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder to create. By default the model's name and precision, in the current folder.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Data type to store weights in.  [default: float32]"),
    ] = None,
    quantize: Annotated[
        Literal["4", "8"] | None,
        typer.Option("--quantize", help="Quantize the weights of large linear layers to this many bits."),
    ] = None,
    group_size: Annotated[
        Literal["32", "64", "128"] | None,
        typer.Option(help="With --quantize, how many weights share one scale.  [default: 64]"),
    ] = None,
    preserve_keys: Annotated[bool, typer.Option("--preserve-keys", help="Keep NeMo's tensor names.")] = False,
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="Leave out the decoder.")] = False,
    upload_repo: Annotated[
        str | None, typer.Option(metavar="NAME", help="Upload the result to this Hugging Face repository.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every tensor.")] = False,
) -> None:
    """Convert a NeMo archive to safetensors for MLX."""
    from server.cli.convert import convert_archive

    convert_archive(
        source,
        out,
        settings=ctx.obj,
        dtype=dtype,
        quantize=quantize,
        group_size=group_size,
        preserve_keys=preserve_keys,
        encoder_only=encoder_only,
        upload_repo=upload_repo,
        verbose=verbose,
    )


@main.command(cls=taking("cache"))
def verify(
    ctx: typer.Context,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Converted folders. By default all those in the cache."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Check the files of converted models for damage.

    Names each damaged file. The exit code is 1 if there is one, or a folder has no digests.
    """
    from server.cli.verify import verify

    if not verify(folders or (), settings=ctx.obj, json_output=json_output):
        raise typer.Exit(1)


@main.command(cls=taking("dtype", "quantize", "cache"))
def bench(
    ctx: typer.Context,
    model: ModelOption = None,
    seconds: Annotated[
        str, typer.Option(metavar="LIST", help="Lengths of audio for one stream, in seconds.")
    ] = "10,35",
    concurrency: Annotated[
        str, typer.Option(metavar="LIST", help="Numbers of concurrent clients, over HTTP.")
    ] = "1,4,16,64",
    rows: Annotated[str, typer.Option(metavar="LIST", help="Numbers of rows decoded in one batch.")] = "1,2,4,8,16,32",
    lengths: Annotated[
        str, typer.Option(metavar="LIST", help="Lengths of audio to encode, in seconds.")
    ] = "5,10,15,20,25,30,35,40",
    requests: Annotated[
        int,
        typer.Option(min=1, metavar="NUMBER", help="Requests per number of clients; each client sends at least one."),
    ] = 16,
    pace: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="NUMBER",
            help="Tokens to write per second of audio over HTTP; 0 lets the model decide when to stop.",
        ),
    ] = 4.0,
    repeats: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Runs to take the median of.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Threads for matrix products. By default all cores.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this file.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the figures in this file; needs matplotlib.")
    ] = None,
) -> None:
    """Measure how fast a model is on this machine: stage by stage, and over HTTP.

    An empty list, such as --concurrency "", skips that part.

    Variables in brackets can be set in the environment or in a file named .env. Options take precedence.
    """
    from server.cli.bench.command import bench

    bench(
        {**ctx.obj, "model": model and [model]},
        seconds=seconds,
        concurrency=concurrency,
        rows=rows,
        lengths=lengths,
        requests=requests,
        pace=pace,
        repeats=repeats,
        threads=threads,
        json_file=json_file,
        plot_file=plot_file,
    )


@main.command(cls=taking("dtype", "quantize", "cache", "host", "port"))
def doctor(
    ctx: typer.Context,
    model: ModelOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the comparison with NeMo and the measurements; takes a few seconds.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Write one JSON object to stdout, and the lines to stderr.")
    ] = False,
) -> None:
    """Check that this machine is ready and that its device computes correctly, and measure how fast it is.

    Compares every stage with NeMo's values, and the toy's transcripts with what was said. The exit code is 1 if a check
    fails. The output can go into bug reports: it contains no names, keys or home folders.

    Variables in brackets can be set in the environment or in a file named .env. Options take precedence.
    """
    from server.cli.doctor.command import doctor

    if not doctor({**ctx.obj, "model": model and [model]}, quick=quick, json_output=json_output):
        raise typer.Exit(1)


main.add_typer(service, name="service")

if __name__ == "__main__":
    main()
