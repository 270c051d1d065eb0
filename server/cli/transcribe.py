"""`canary transcribe`: files in, text out, without a server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from model.generate import DecodingOptions
from model.prompt import Task, TaskError, check_task
from model.transcript import Transcript

from ..audio import decode
from ..engines import load_model
from ..errors import AudioError, RequestError
from ..formats import to_dict, to_srt, to_vtt
from ..languages import language_code
from ..pipeline import audio_limits
from ..settings import Settings
from .failures import chosen_settings, complain, one_line_failures

if TYPE_CHECKING:
    from model.canary import Canary


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
    format: str,
) -> int:
    """Print each file's transcript, in the order given; returns how many files failed."""
    settings = chosen_settings(model=model, dtype=dtype)
    try:
        task = Task(
            language_code(language or settings.default_language),
            target_language and language_code(target_language, "target_language"),
            pnc=pnc,
            timestamps=timestamps or ("segment" if format in ("srt", "vtt") else "none"),
        )
    except RequestError as error:
        raise typer.BadParameter(str(error)) from None
    with one_line_failures():
        canary = load_model(settings)
    try:
        check_task(task, canary.config)
    except TaskError as error:
        raise typer.BadParameter(str(error)) from None

    failed = 0
    source = "request" if language else "default"
    for path, transcript in _transcripts(canary, files, task, DecodingOptions(beam_size=beam_size), settings):
        if transcript is None:
            failed += 1
        else:
            typer.echo(_written(transcript, path, format, source, named=len(files) > 1), nl=False)
    return failed


def _transcripts(
    canary: "Canary", files: list[Path], task: Task, options: DecodingOptions, settings: Settings
) -> Iterator[tuple[Path, Transcript | None]]:
    """(file, transcript) in the order given, computed in batches; None for a file that failed, which is said."""
    for first in range(0, len(files), settings.max_rows):
        batch = files[first : first + settings.max_rows]
        waveforms = {path: waveform for path in batch if (waveform := _waveform(path, settings)) is not None}
        transcripts = _batch(canary, waveforms, task, options)
        for path in batch:
            yield path, transcripts.get(path)


def _batch(
    canary: "Canary", waveforms: dict[Path, np.ndarray], task: Task, options: DecodingOptions
) -> dict[Path, Transcript]:
    """The transcripts of those files that the model does not fail on; which ones it does, running each alone tells."""
    if not waveforms:
        return {}
    try:
        return dict(zip(waveforms, canary.transcribe(list(waveforms.values()), task, options), strict=True))
    except Exception as error:
        if len(waveforms) == 1:
            complain(f"{next(iter(waveforms))}: the model failed: {error}")
            return {}
    alone = [_batch(canary, {path: waveform}, task, options) for path, waveform in waveforms.items()]
    return {path: transcript for result in alone for path, transcript in result.items()}


def _waveform(path: Path, settings: Settings) -> np.ndarray | None:
    try:
        return decode(path, audio_limits(settings))
    except (AudioError, OSError) as error:
        complain(f"{path}: {error.strerror if isinstance(error, OSError) else error}")
        return None


def _written(transcript: Transcript, path: Path, format: str, source: str, named: bool) -> str:
    match format:
        case "json":
            return json.dumps({"file": str(path), **to_dict(transcript, source)}, ensure_ascii=False) + "\n"
        case "srt":
            return to_srt(transcript)
        case "vtt":
            return to_vtt(transcript)
        case _:
            return f"{path}: {transcript.text}\n" if named else f"{transcript.text}\n"
