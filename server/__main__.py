"""The command line's surface; the work is in `server/cli/`, imported only when its command runs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

main = typer.Typer(
    name="canary",
    help="Speech to text and translation on your own machine: NVIDIA Canary on MLX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_MODEL_HELP = "A known name, a Hugging Face repository, a .nemo file or a converted folder."
Model = Annotated[
    str | None, typer.Option("--model", "-m", help=f"{_MODEL_HELP} Toy if none is set.", show_default=False)
]
Precision = Literal["float32", "bfloat16", "float16"]
Dtype = Annotated[
    Precision | None,
    typer.Option("--dtype", help="What the weights are held in; if nothing is set, what suits the device."),
]

Quantize = Annotated[
    Literal["8", "4"] | None,
    typer.Option("--quantize", help="Pack the weights of large linear layers into so many bits.", show_default=False),
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


def _setting(*flags: str, help: str) -> Any:
    """An option of `serve`; what is not given is left to the environment."""
    return typer.Option(None, *flags, help=help, show_default=False)


@main.command()
def serve(
    model: list[str] | None = _setting(
        "--model", "-m", help=f"{_MODEL_HELP} May be repeated; the first is the default."
    ),
    dtype: Dtype = None,
    quantize: Quantize = None,
    cache: str | None = _setting("--cache", help="The folder that converted models are kept in."),
    idle_unload_s: float | None = _setting(
        "--idle-unload", help="Seconds without a request after which a model is let go."
    ),
    load_wait_s: float | None = _setting("--load-wait", help="Seconds a request waits for its model to be loaded."),
    default_language: str | None = _setting(
        "--default-language", help="Of requests that name none; auto finds it out."
    ),
    host: str | None = _setting("--host", help="The address to listen on; 127.0.0.1 if none is set."),
    port: int | None = _setting("--port", help="0 takes a free one; 8000 if none is set."),
    api_keys: list[str] | None = _setting("--api-key", help="A key to ask for; better kept in CANARY_API_KEYS."),
    public_without_key: bool | None = _setting(
        "--public-without-key", help="Let others reach the server without a key."
    ),
    allowed_hosts: list[str] | None = _setting("--allowed-host", help="A host name that the server goes by."),
    allowed_origins: list[str] | None = _setting(
        "--allowed-origin", help="A web origin whose pages may use the server."
    ),
    max_upload_mb: float | None = _setting("--max-upload-mb", help="The largest body."),
    max_audio_s: float | None = _setting("--max-audio", help="The longest audio, in seconds."),
    max_sample_rate: int | None = _setting("--max-sample-rate", help="The highest sample rate."),
    max_channels: int | None = _setting("--max-channels", help="The most channels."),
    pass_s: float | None = _setting("--pass", help="The longest piece that longer audio is cut into, in seconds."),
    loop_guard: bool | None = _setting(
        "--loop-guard/--no-loop-guard",
        help="Decode again what repeats itself, or was passed over; on if nothing is set.",
    ),
    subtitle_line_length: int | None = _setting(
        "--subtitle-line-length", help="Characters in a line; 42 if nothing is set."
    ),
    subtitle_lines: int | None = _setting("--subtitle-lines", help="Lines of a subtitle; 2 if nothing is set."),
    subtitle_min_s: float | None = _setting("--subtitle-min", help="Seconds that a subtitle stays at least."),
    subtitle_max_s: float | None = _setting("--subtitle-max", help="Seconds that a subtitle stays at most."),
    subtitle_reading_speed: float | None = _setting(
        "--subtitle-reading-speed", help="Characters that are read in a second."
    ),
    max_queue: int | None = _setting("--max-queue", help="Passes that may wait for a model."),
    max_rows: int | None = _setting("--max-rows", help="Texts decoded side by side."),
    max_connections: int | None = _setting("--max-connections", help="Connections at once."),
    max_message_mb: float | None = _setting("--max-message-mb", help="The largest websocket message."),
    keep_alive_s: int | None = _setting("--keep-alive", help="Seconds an idle connection is kept."),
    shutdown_s: int | None = _setting("--shutdown", help="Seconds requests may go on after Ctrl-C."),
    live_policy: str | None = _setting("--live-policy", help="alignatt or agreement."),
    live_step_s: float | None = _setting("--live-step", help="Seconds of sound between two looks at it."),
    live_idle_s: float | None = _setting("--live-idle", help="Seconds after which a silent live session is closed."),
    max_live_sessions: int | None = _setting("--max-live-sessions", help="Live sessions at once."),
    max_live_rate: float | None = _setting("--max-live-rate", help="Live sound taken, in times real time."),
    max_live_buffer_s: float | None = _setting("--max-live-buffer", help="Seconds of live sound that may wait."),
    log_level: str | None = _setting("--log-level", help="debug, info, warning or error."),
    log_format: str | None = _setting("--log-format", help="text or json."),
) -> None:
    """Serve models over HTTP until Ctrl-C.

    What is not given here is taken from CANARY_MODEL, CANARY_HOST, CANARY_PORT … in the environment or in .env.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from server.cli.serve import serve

    serve(**given)


@main.command()
def transcribe(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Sound of any length: files, folders, and patterns in quotes."),
    ],
    model: Model = None,
    language: Annotated[
        str | None,
        typer.Option(
            "--language", "-l", help="What is spoken; if nothing is set, it is found out.", show_default=False
        ),
    ] = None,
    detect_each: Annotated[
        bool, typer.Option("--detect-each", help="Find the language out anew, every few seconds.")
    ] = False,
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
    quantize: Quantize = None,
    format: Annotated[Literal["text", "json", "srt", "vtt"], typer.Option("--format", "-f")] = "text",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Write a file for each here, not to the screen.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Pass over files whose text is in --output-dir already.")
    ] = False,
    loop_guard: Annotated[
        bool | None,
        typer.Option(
            "--loop-guard/--no-loop-guard",
            help="Decode again what repeats itself, or was passed over; on if nothing is set.",
            show_default=False,
        ),
    ] = None,
    line_length: Annotated[
        int | None,
        typer.Option("--subtitle-line-length", help="Characters in a line of srt and vtt; 42 if nothing is set."),
    ] = None,
    lines: Annotated[
        int | None, typer.Option("--subtitle-lines", help="Lines of a subtitle; 2 if nothing is set.")
    ] = None,
) -> None:
    """Transcribe or translate files.

    json is one object a line, one line a file.

    Folders are searched through, and their shape is kept in --output-dir, where files of one name are put under those
    of their folders.

    A file that fails is named on stderr; the others are done all the same, and the exit code is 1.

    What is not given here is taken from CANARY_MODEL, CANARY_DEFAULT_LANGUAGE … in the environment or in .env.
    """
    from server.cli.transcribe import transcribe_files

    if resume and not output_dir:
        raise typer.BadParameter("needs an --output-dir to know what is done", param_hint="--resume")
    if language and detect_each:
        raise typer.BadParameter("--language says what --detect-each would find out", param_hint="--detect-each")
    failed = transcribe_files(
        files,
        model=model,
        language=language,
        target_language=target_language,
        timestamps=timestamps,
        pnc=pnc,
        beam_size=beam_size,
        dtype=dtype,
        quantize=quantize,
        format=format,
        output_dir=output_dir,
        resume=resume,
        loop_guard=loop_guard,
        detect_each=detect_each,
        line_length=line_length,
        lines=lines,
    )
    if failed:
        raise typer.Exit(1)


@main.command()
def convert(
    source: Annotated[str, typer.Argument(help="A .nemo file, a known name or a Hugging Face repository.")],
    out: Annotated[
        Path | None,
        typer.Argument(help="The folder to make. By default the model's name and precision, here.", show_default=False),
    ] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option("--dtype", help="What the weights are stored in. By default float32.", show_default=False),
    ] = None,
    quantize: Quantize = None,
    group_size: Annotated[
        Literal["32", "64", "128"] | None,
        typer.Option(help="Weights that share a scale, with --quantize. By default 64.", show_default=False),
    ] = None,
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
        quantize=quantize,
        group_size=group_size,
        preserve_keys=preserve_keys,
        encoder_only=encoder_only,
        upload_repo=upload_repo,
        verbose=verbose,
    )


@main.command()
def bench(
    model: Model = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    seconds: Annotated[str, typer.Option(help="Lengths of audio for one stream.")] = "10,35",
    concurrency: Annotated[str, typer.Option(help="Clients at once, over HTTP.")] = "1,4,16,64",
    rows: Annotated[str, typer.Option(help="Rows decoded side by side.")] = "1,2,4,8,16,32",
    lengths: Annotated[str, typer.Option(help="Lengths of audio to encode, in seconds.")] = "5,10,15,20,25,30,35,40",
    requests: Annotated[int, typer.Option(min=1, help="Requests at each concurrency, at least one a client.")] = 16,
    pace: Annotated[
        float,
        typer.Option(min=0, help="Tokens written for a second of audio over HTTP; 0 lets the model end its texts."),
    ] = 4.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the median counts.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, help="For matrix products. By default all cores.", show_default=False)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw them here; needs matplotlib.")] = None,
) -> None:
    """Measure a model on this machine: stage by stage, and served.

    An empty list, such as --concurrency "", leaves that part out. The model, its dtype and its packing are taken from
    CANARY_* in the environment or in .env if they are not given here.
    """
    from server.cli.bench.command import bench

    bench(
        model=model,
        dtype=dtype,
        quantize=quantize,
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


if __name__ == "__main__":
    main()
