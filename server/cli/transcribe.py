"""`canary transcribe`: files in, text out, without a server."""

import asyncio
import glob
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import soundfile
import typer
from tqdm import tqdm

from model.canary.generate import DecodingOptions
from model.canary.prompt import AUTO, Task, TaskError
from server.audio.decode import AudioLimits, decode_blocks
from server.cli.failures import chosen_settings, complain, one_line_failures
from server.engine.registry import load_model
from server.engine.thread import BULK, Engine
from server.errors import RequestError, ServiceError
from server.longform.recording import transcribe_recording
from server.longform.transcribe import AT_ONCE, Progress, Transcription
from server.settings import Settings
from server.text import formats
from server.text.languages import language_pair
from server.text.subtitles import SubtitleRules

# What is taken from a folder, where nobody named the file.
SOUNDS = {".aac", ".flac", ".m4a", ".mka", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"}
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
# Files that are worked on side by side.
FILES_AT_ONCE = 4


@dataclass(frozen=True)
class Job:
    """A file, and where its text goes; None is standard output."""

    path: Path
    output: Path | None

    @property
    def is_done(self) -> bool:
        return self.output is not None and self.output.exists()


@dataclass(frozen=True)
class Wish:
    """What is wanted of every file."""

    task: Task
    source: str
    options: DecodingOptions
    format: formats.Format
    rules: SubtitleRules
    detect_each: bool


def transcribe_files(
    files: list[Path],
    *,
    model: str | None,
    language: str | None,
    target_language: str | None,
    timestamps: str | None,
    pnc: bool,
    beam_size: int | None,
    dtype: str | None,
    quantize: str | None = None,
    format: formats.Format,
    output_dir: Path | None = None,
    resume: bool = False,
    loop_guard: bool | None = None,
    detect_each: bool = False,
    line_length: int | None = None,
    lines: int | None = None,
) -> int:
    """Write each file's transcript, in the order given; returns how many files failed.

    files: files, folders (all sound in them) and patterns.
    """
    settings = chosen_settings(
        model=[model] if model else None,
        dtype=dtype,
        quantize=quantize,
        loop_guard=loop_guard,
        subtitle_line_length=line_length,
        subtitle_lines=lines,
    )
    try:
        task = Task(
            *language_pair(AUTO if detect_each else language, target_language, settings.default_language),
            pnc=pnc,
            timestamps=timestamps or ("segment" if format in ("srt", "vtt") else "none"),
        )
    except RequestError as error:
        raise typer.BadParameter(str(error)) from None
    jobs, missing = found_jobs(files, output_dir, SUFFIXES[format])
    if format in ("srt", "vtt") and not output_dir and len(jobs) > 1:
        raise typer.BadParameter(
            f"{format} is written for one file; {len(jobs)} were given: name an --output-dir", param_hint="--format"
        )
    if resume:
        jobs = [job for job in jobs if not job.is_done]
    rules = SubtitleRules.chosen(settings)
    source = _language_source(task, language)
    wish = Wish(task, source, DecodingOptions(beam_size), format, rules, detect_each)
    if not jobs:
        return missing
    with one_line_failures():
        return missing + asyncio.run(_run(jobs, wish, settings))


def _language_source(task: Task, given: str | None) -> str:
    if task.language == AUTO:
        return "detected"
    return "request" if given else "default"


def found_jobs(files: list[Path], output_dir: Path | None, suffix: str) -> tuple[list[Job], int]:
    """Every file meant, once, and how many of `files` mean none, which is said."""
    # By absolute path, so that a file that is named twice is taken once, in its first place.
    found: dict[str, tuple[Path, Path]] = {}
    missing = 0
    for named in files:
        if named.is_dir():
            inside = sorted(p for p in named.rglob("*") if p.suffix.lower() in SOUNDS and p.is_file())
            meant = {path: path.relative_to(named) for path in inside}
        elif not named.exists() and glob.has_magic(str(named)):
            matches = sorted(Path(match) for match in glob.glob(str(named), recursive=True))
            meant = {path: Path(path.name) for path in matches if path.is_file()}
        else:
            meant = {named: Path(named.name)}
        if not meant:
            complain(f"{named}: no sound files there; taken are {', '.join(sorted(SOUNDS))}")
            missing += 1
        for path, place in meant.items():
            found.setdefault(os.path.abspath(path), (path, place))
    outputs = _outputs({whole: place for whole, (_, place) in found.items()}, suffix) if output_dir else {}
    jobs = [Job(path, output_dir / outputs[whole] if output_dir else None) for whole, (path, _) in found.items()]
    return jobs, missing


def _outputs(places: dict[str, Path], suffix: str) -> dict[str, Path]:
    """Where in the output folder each file's text goes, no two to one place. places: by absolute path."""
    places = _apart(places)
    names = Counter(_folded(place.with_suffix("")) for place in places.values())
    # a.wav and a.mp3 cannot both become a.txt, and a.wav.flac not a.wav.txt beside them.
    names.update({_folded(place) for place in places.values() if place.suffix})
    return {
        whole: place.with_suffix(suffix) if names[_folded(place.with_suffix(""))] == 1 else Path(f"{place}{suffix}")
        for whole, place in places.items()
    }


def _apart(places: dict[str, Path]) -> dict[str, Path]:
    """The places, those that are the same for several files under the names of their folders: as many as it takes."""
    files = defaultdict(set)
    for whole, place in places.items():
        files[_folded(place)].add(_folded(whole))
    same = {whole for whole, place in places.items() if len(files[_folded(place)]) > 1}
    if not same:
        return places
    longer = {whole: Path(*Path(whole).parts[1:][-len(places[whole].parts) - 1 :]) for whole in same}
    return _apart(places | longer)


def _folded(path: Path | str) -> str:
    """What is equal where a file system takes Talk.wav and talk.wav for one."""
    return str(path).casefold()


async def _run(jobs: list[Job], wish: Wish, settings: Settings) -> int:
    """Work on all jobs, a few at a time; returns how many failed."""
    engine = Engine.from_settings(lambda: load_model(settings), settings, max_queue=FILES_AT_ONCE * AT_ONCE)
    await engine.start()
    try:
        try:
            engine.check(wish.task)
        except TaskError as error:
            raise typer.BadParameter(str(error)) from None
        failed = 0
        async for job, done in _in_order(engine, jobs, wish, settings):
            if isinstance(done, str):
                complain(done)
                failed += 1
            else:
                for warning in done.warnings:
                    complain(f"{job.path}: {warning.message}")
                _write(_text(done, job, wish, named=len(jobs) > 1), job)
        return failed
    finally:
        # Nothing is left to do, but a thread that is letting its model go must not be cut off by the process's end.
        await engine.stop(5.0)


async def _in_order(
    engine: Engine, jobs: list[Job], wish: Wish, settings: Settings
) -> AsyncIterator[tuple[Job, Transcription | str]]:
    """(job, transcription) in order; of a file that failed, what to say of it."""
    turn = asyncio.Semaphore(FILES_AT_ONCE)
    with _Bar(jobs) as bar:
        working = [asyncio.create_task(_transcription(engine, job, wish, settings, turn, bar)) for job in jobs]
        try:
            for job, work in zip(jobs, working, strict=True):
                done = await work
                bar.clear()
                yield job, done
        finally:
            for work in working:
                work.cancel()


async def _transcription(
    engine: Engine, job: Job, wish: Wish, settings: Settings, turn: asyncio.Semaphore, bar: "_Bar"
) -> Transcription | str:
    async with turn:
        try:
            return await transcribe_recording(
                engine,
                decode_blocks(job.path, AudioLimits.from_settings(settings)),
                wish.task,
                settings,
                wish.options,
                priority=BULK,
                on_progress=lambda progress: bar.tell(job, progress),
                detect_each=wish.detect_each,
            )
        except (ServiceError, TaskError) as error:
            return f"{job.path}: {error}"
        except OSError as error:
            return f"{job.path}: {error.strerror or error}"
        finally:
            bar.finish(job)


def _text(done: Transcription, job: Job, wish: Wish, named: bool) -> str:
    match wish.format:
        case "json":
            return json.dumps({"file": str(job.path), **done.to_dict(wish.source)}, ensure_ascii=False) + "\n"
        case "text":
            return f"{job.path}: {done.text}\n" if named and not job.output else f"{done.text}\n"
        case _:
            return formats.render(done, wish.format, wish.rules)


def _write(text: str, job: Job) -> None:
    if not job.output:
        typer.echo(text, nl=False)
        return
    job.output.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole: what is there is done, whenever the command was stopped.
    part = job.output.with_name(job.output.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, job.output)


class _Bar:
    """Percent and time left over all files, on a terminal alone. A file whose header tells no length is not counted."""

    def __init__(self, jobs: list[Job]):
        self._lengths_s = {job: _length_s(job.path) for job in jobs} if sys.stderr.isatty() else {}
        self._done_s = dict.fromkeys(jobs, 0.0)
        self._bar = tqdm(
            total=round(sum(self._lengths_s.values()), 1),
            bar_format="{percentage:3.0f}% |{bar}| {desc}{elapsed}, {remaining} left",
            leave=False,
            disable=not self._lengths_s,
        )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self, job: Job, progress: Progress) -> None:
        self._bar.set_description_str(f"{job.path.name} ", refresh=False)
        self._move(job, progress.done_s)

    def finish(self, job: Job) -> None:
        self._move(job, self._lengths_s.get(job, 0.0))

    def clear(self) -> None:
        """Make way for a line."""
        self._bar.clear()

    def _move(self, job: Job, done_s: float) -> None:
        done_s = min(done_s, self._lengths_s.get(job, 0.0))
        self._bar.update(max(0.0, done_s - self._done_s[job]))
        self._done_s[job] = max(self._done_s[job], done_s)


def _length_s(path: Path) -> float:
    try:
        return soundfile.info(str(path)).duration
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return 0.0
