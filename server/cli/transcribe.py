"""`canary transcribe`: files in, text out, without a server."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from model.decoding import DecodingOptions
from model.task import AUTO, Task, TaskError
from server.audio.decode import AudioLimits, decode_blocks, prepare_decoding
from server.cli.failures import chosen_settings, complain, log_to_stderr, one_line_failures
from server.cli.inputs import Job, find_jobs, missing_paths, no_audio
from server.cli.progress import ProgressBar
from server.cli.recordings import loaded_engine, transcription_or_error
from server.engine.thread import Engine
from server.errors import RequestError
from server.longform.transcription import Transcription, language_source
from server.settings import Settings
from server.text import formats
from server.text.languages import language_pair
from server.text.subtitles import SubtitleRules

SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
# Files that are transcribed at the same time.
FILES_AT_ONCE = 4


@dataclass(frozen=True)
class FileRequest:
    """What to do with every file."""

    task: Task
    names_language: bool
    options: DecodingOptions
    format: formats.Format
    rules: SubtitleRules
    detect_each: bool


def transcribe_files(
    files: list[str],
    given: dict[str, Any],
    *,
    language: str | None,
    target_language: str | None,
    timestamps: str | None,
    pnc: bool,
    beam_size: int | None,
    format: formats.Format | Literal["parquet"] | None,
    output_dir: str | None,
    resume: bool,
    detect_each: bool,
    one_pass: bool,
    head: str | None,
    ray: bool,
    address: str | None,
    workers: int | None,
) -> int:
    """Write the transcript of each file and return how many failed.

    files: files, folders and patterns. given: settings from the command line. address, workers: with `ray`, see
    `server.cli.cluster`.
    Transcripts on standard output are in the order of the files; with `output_dir`, each is written when it is ready.
    """
    settings = chosen_settings(**given)
    try:
        task = Task(
            *language_pair(AUTO if detect_each else language, target_language, settings.default_language),
            pnc=pnc,
            timestamps=timestamps or ("segment" if format in ("srt", "vtt") else "none"),
        )
    except RequestError as error:
        raise typer.BadParameter(str(error)) from None
    if ray:
        from server.cli.cluster.command import Archive, transcribe_archive

        if not output_dir:
            raise typer.BadParameter("needs --output-dir, for the results", param_hint="--ray")
        if format not in (None, "json", "parquet"):
            raise typer.BadParameter(f"must be json or parquet with --ray, not {format}", param_hint="--format")
        archive = Archive(files, output_dir, format or "json", resume, address, workers)
        return transcribe_archive(
            archive,
            settings,
            task,
            bool(language),
            beam_size=beam_size,
            detect_each=detect_each,
            one_pass=one_pass,
            head=head,
        )
    if format == "parquet":
        raise typer.BadParameter("parquet needs --ray", param_hint="--format")
    request = FileRequest(
        task,
        bool(language),
        DecodingOptions(beam_size, head=head, one_pass=one_pass),
        format or "text",
        SubtitleRules.from_settings(settings),
        detect_each,
    )
    return _transcribe_here([Path(file) for file in files], request, settings, output_dir, resume)


def _transcribe_here(
    files: list[Path], request: FileRequest, settings: Settings, output_dir: str | None, resume: bool
) -> int:
    """`transcribe_files` in this process."""
    if missing := missing_paths(files):
        for path in missing:
            complain(f"{path}: no such file or folder")
        return len(missing)
    jobs, empty = find_jobs(files, Path(output_dir) if output_dir else None, SUFFIXES[request.format])
    for path in empty:
        complain(no_audio(path))
    if request.format in ("srt", "vtt") and not output_dir and len(jobs) > 1:
        raise typer.BadParameter(
            f"{request.format} without --output-dir takes one file, not {len(jobs)}", param_hint="--format"
        )
    if resume:
        jobs = [job for job in jobs if not job.is_done]
    if not jobs:
        return len(empty)
    log_to_stderr()
    with one_line_failures():
        return len(empty) + asyncio.run(_transcribe(jobs, request, settings))


async def _transcribe(jobs: list[Job], request: FileRequest, settings: Settings) -> int:
    """Load the model and work on all jobs, a few at a time; returns how many failed."""
    # It starts up while the model is loaded.
    prepare_decoding(jobs[0].path)
    async with loaded_engine(settings, FILES_AT_ONCE) as engine:
        try:
            engine.check(request.task)
            if engine.info:
                engine.info.config.check_options(request.options)
        except TaskError as error:
            raise typer.BadParameter(str(error)) from None
        return await _transcribe_all(engine, jobs, request, settings)


async def _transcribe_all(engine: Engine, jobs: list[Job], request: FileRequest, settings: Settings) -> int:
    turn = asyncio.Semaphore(FILES_AT_ONCE)
    failed = 0
    with ProgressBar.of_files([job.path for job in jobs]) as bar:
        working = [asyncio.create_task(_transcribe_one(engine, job, request, settings, turn, bar)) for job in jobs]
        try:
            # Output on the screen keeps the order of the files.
            for finished in working if jobs[0].output is None else asyncio.as_completed(working):
                job, done = await finished
                bar.clear()
                if isinstance(done, str):
                    complain(done)
                    failed += 1
                else:
                    for warning in done.warnings:
                        complain(f"{job.path}: {warning.message}")
                    _write(_text(done, job, request, named=len(jobs) > 1), job)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
    return failed


async def _transcribe_one(
    engine: Engine, job: Job, request: FileRequest, settings: Settings, turn: asyncio.Semaphore, bar: ProgressBar
) -> tuple[Job, Transcription | str]:
    """The job and its transcription or, if it failed, the line that says why."""
    async with turn:
        done = await transcription_or_error(
            engine,
            decode_blocks(job.path, AudioLimits.from_settings(settings)),
            request.task,
            settings,
            request.options,
            on_progress=lambda progress: bar.update(job.path, progress.done_s, job.path.name),
            detect_each=request.detect_each,
        )
        bar.finish(job.path)
        return job, f"{job.path}: {done}" if isinstance(done, str) else done


def _text(done: Transcription, job: Job, request: FileRequest, named: bool) -> str:
    match request.format:
        case "json":
            body = done.to_dict(language_source(request.task, request.names_language, done))
            return json.dumps({"file": str(job.path), **body}, ensure_ascii=False) + "\n"
        case "text":
            return f"{job.path}: {done.text}\n" if named and not job.output else f"{done.text}\n"
        case _:
            return formats.render(done, request.format, request.rules)


def _write(text: str, job: Job) -> None:
    if not job.output:
        typer.echo(text, nl=False)
        return
    job.output.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that --resume never mistakes half a file for a whole one.
    part = job.output.with_name(job.output.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, job.output)
