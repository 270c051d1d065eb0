"""`canary transcribe --ray`: an archive of recordings on all machines of a Ray cluster."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.task import Task
from server.cli.cluster.listing import Recording, find_recordings
from server.cli.cluster.results import Results
from server.cli.cluster.shares import Share
from server.cli.cluster.transcriber import Request
from server.cli.failures import complain, fail, log_to_stderr, one_line_failures
from server.cli.progress import ProgressBar
from server.settings import Settings

# What the extra `ray` brings.
MODULES = ("ray", "pandas", "pyarrow")
# The settings that workers get as they are here. Their own CANARY_* and .env hold for the others.
PASSED_ON = (
    *("dtype", "quantize", "cache", "max_audio_s", "max_sample_rate", "max_channels", "pass_s", "loop_guard"),
    "max_rows",
)
# How many batches of recordings each worker is given at a time: while some are transcribed, others are fetched.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Archive:
    """What is read and written, and where. workers: the most; None for as many as there is room for."""

    recordings: Sequence[str]
    output: str
    format: str
    resume: bool
    address: str | None
    workers: int | None


def transcribe_archive(
    archive: Archive,
    settings: Settings,
    task: Task,
    names_language: bool,
    *,
    beam_size: int | None,
    detect_each: bool,
    one_pass: bool,
    head: str | None,
) -> int:
    """Write a record for each recording and return how many failed. For the arguments see `Request`."""
    if not all(map(find_spec, MODULES)):
        fail("--ray needs Ray Data: install the extra ray, or run: pip install 'ray[data]'")
    request = Request(
        _everywhere(settings.model[0]),
        _passed_on(settings),
        task,
        names_language,
        beam_size,
        detect_each,
        one_pass,
        head,
    )
    log_to_stderr()
    with one_line_failures():
        recordings, complaints = find_recordings(archive.recordings)
        for complaint in complaints:
            complain(complaint)
        results = Results(archive.output, archive.format)
        results.begin(_made_with(request, archive.format), archive.resume)
        done = results.finished(recordings)
        waiting = [recording for recording in recordings if recording not in done]
        if done:
            complain(f"{len(done)} of {len(recordings)} recordings are done already")
        if not waiting:
            return len(complaints)
        return len(complaints) + _transcribe(waiting, request, archive, results, settings.max_rows)


def _transcribe(waiting: list[Recording], request: Request, archive: Archive, results: Results, max_rows: int) -> int:
    from server.cli.cluster.pool import connected, living_machines, transcribed

    done = failed = 0
    with connected(archive.address), ProgressBar({each.path: float(each.size) for each in waiting}) as bar:
        machines = living_machines()
        share = Share.of(machines, archive.workers)
        workers = min(archive.workers or share.room(machines), len(waiting))
        try:
            for record in transcribed(waiting, request, share, workers, max_rows * BATCHES_AHEAD):
                done += 1
                bar.finish(record["file"])
                if error := record.get("error"):
                    failed += 1
                    bar.clear()
                    complain(f"{record['file']}: {error['message']}")
                if results.add(record) and not sys.stderr.isatty():
                    complain(f"{done} of {len(waiting)} recordings, {failed} failed")
        finally:
            results.write()
    complain(f"{done} recordings, {failed} failed; results in {archive.output}")
    return failed


def _everywhere(model: str) -> str:
    """A model's name, or an absolute path to it."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def _passed_on(settings: Settings) -> dict[str, Any]:
    """Those that were given here, on the command line, in the environment or in .env."""
    passed = {name: getattr(settings, name) for name in PASSED_ON if name in settings.model_fields_set}
    if settings.cache:
        passed["cache"] = settings.cache.absolute()
    return passed


def _made_with(request: Request, format: str) -> dict[str, Any]:
    """What decides about the results, by the names of the options."""
    return {
        "format": format,
        "model": request.model,
        "dtype": request.settings.get("dtype"),
        "quantize": request.settings.get("quantize"),
        "language": request.task.language,
        "target_language": request.task.target_language,
        "timestamps": request.task.timestamps,
        "pnc": request.task.pnc,
        "beam_size": request.beam_size,
        "detect_each": request.detect_each,
        "one_pass": request.one_pass,
        "head": request.head,
        "pass_s": request.settings.get("pass_s"),
        "loop_guard": request.settings.get("loop_guard"),
    }
