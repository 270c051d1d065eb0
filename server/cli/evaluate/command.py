"""`canary evaluate`: transcribe recordings whose text is known, and count the errors."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from model import digests
from model.config import WEIGHTS_FILE
from model.decoding import DecodingOptions
from model.task import AUTO, Task, TaskError
from server.cli.evaluate.manifests import ManifestError, Utterance, read_utterances
from server.cli.evaluate.predictions import Prediction, PredictionFile, finished, prediction_of, read_predictions
from server.cli.evaluate.transcribing import Job, transcribe_jobs
from server.cli.failures import chosen_settings, complain, fail, log_to_stderr, one_line_failures
from server.cli.recordings import loaded_engine
from server.engine.thread import ModelInfo
from server.errors import RequestError
from server.settings import VERSION, Settings
from server.text.languages import language_pair

# What scoring needs, by module: the extra `evaluate`.
LIBRARIES = {"jiwer": "jiwer", "whisper_normalizer": "whisper-normalizer", "sacrebleu": "sacrebleu"}


@dataclass(frozen=True)
class Defaults:
    """What applies where the manifest does not say."""

    language: str | None
    target_language: str | None
    pnc: bool


@dataclass(frozen=True)
class Run:
    """What is to be transcribed, and how."""

    utterances: list[Utterance]
    defaults: Defaults
    options: DecodingOptions
    output: Path | None
    resume: bool


def evaluate(
    manifest: Path,
    given: dict[str, Any],
    *,
    language: str | None,
    target_language: str | None,
    pnc: bool,
    beam_size: int | None,
    output: Path | None,
    resume: bool,
    score_only: bool,
    against: Path | None,
    max_wer: float | None,
    json_output: bool,
) -> bool:
    """Whether nothing failed, and the word error rate is at most `max_wer`, in percent. given: settings from the
    command line.

    The figures go to stdout, or to stderr if the JSON goes there.
    """
    settings = chosen_settings(**given)
    if missing := [name for module, name in LIBRARIES.items() if find_spec(module) is None]:
        named = " and ".join(missing)
        fail(f"evaluate needs {named}: install the extra [evaluate], or run: pip install {' '.join(missing)}")
    from server.cli.evaluate.comparing import compared
    from server.cli.evaluate.report import as_json, screen
    from server.cli.evaluate.result import evaluated

    log_to_stderr()
    with one_line_failures():
        # Read now: an error after hours of work would be late.
        other = read_predictions(against, needs_text=False) if against else None
        utterances, without_text = read_utterances(manifest)
        if without_text:
            complain(_left_out(without_text))
        defaults = Defaults(language, target_language, pnc)
        if score_only:
            predictions, details = _predictions_in(utterances, defaults, settings), {}
        else:
            run = Run(utterances, defaults, DecodingOptions(beam_size), output, resume)
            predictions, details = asyncio.run(_transcribed(run, settings))
        comparison = compared(predictions, other, against) if other and against else None
        libraries = {name: version(name) for name in LIBRARIES.values()}
        found = evaluated(str(manifest), predictions, _system_of(predictions), details, libraries, comparison)
    typer.echo(screen(found), err=json_output)
    if json_output:
        typer.echo(as_json(found, VERSION))
    for failure in found.failures:
        complain(f"{failure.utterance.place}: {failure.utterance.path.name}: {failure.error}")
    if max_wer is None:
        return not found.failures
    if found.wer_percent is None:
        fail("--max-wer: there is no word error rate, since no transcription has a reference with words")
    if found.wer_percent > max_wer:
        complain(f"the word error rate is {found.wer_percent:.2f} %, above --max-wer {max_wer:g}")
    return found.wer_percent <= max_wer and not found.failures


def _left_out(paths: Sequence[Path]) -> str:
    named = ", ".join(str(path) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    return f"skipped {len(paths)} audio files without a .txt beside them: {named}"


def _system_of(predictions: Sequence[Prediction]) -> str | None:
    systems = {prediction.system for prediction in predictions}
    return systems.pop() if len(systems) == 1 else None


def _predictions_in(utterances: Sequence[Utterance], defaults: Defaults, settings: Settings) -> list[Prediction]:
    """What the manifest itself holds."""
    predictions = []
    for utterance in utterances:
        job = _job(utterance, defaults, settings)
        prediction = prediction_of(job.utterance)
        if prediction is None:
            raise ManifestError(f"{utterance.place}: pred_text is required with --score-only")
        predictions.append(prediction)
    return predictions


def _job(utterance: Utterance, defaults: Defaults, settings: Settings) -> Job:
    """What to do with an utterance. Its languages and pnc are filled in, unless the language is to be detected."""
    spoken, target = language_pair(
        utterance.language or defaults.language,
        utterance.target_language or defaults.target_language,
        settings.default_language,
    )
    pnc = defaults.pnc if utterance.pnc is None else utterance.pnc
    known = None if spoken == AUTO else spoken
    return Job(replace(utterance, language=known, target_language=target), Task(spoken, target, pnc))


async def _transcribed(run: Run, settings: Settings) -> tuple[list[Prediction], dict[str, Any]]:
    """The predictions in the manifest's order, and what made them."""
    try:
        jobs = [_job(utterance, run.defaults, settings) for utterance in run.utterances]
    except RequestError as error:
        raise typer.BadParameter(str(error)) from None
    if run.output and run.output.exists() and not run.resume:
        raise typer.BadParameter(
            f"{run.output} exists; add --resume to continue it, or choose another file", param_hint="--output"
        )
    async with loaded_engine(settings, settings.max_rows) as engine:
        info = await engine.start()
        for job in jobs:
            try:
                engine.check(job.task)
            except TaskError as error:
                raise ManifestError(f"{job.utterance.place}: {error}") from None
        details = _details(info, settings, run.options)
        system = _system(details)
        done: list[Prediction] = []
        if run.output and run.output.exists():
            done = finished(run.output, [job.utterance for job in jobs], system)
        file = PredictionFile(run.output, done) if run.output else None
        left = {prediction.utterance.key for prediction in done}
        waiting = [job for job in jobs if job.utterance.key not in left]
        try:
            keep = file.add if file else lambda prediction: None
            done += await transcribe_jobs(engine, waiting, settings, run.options, system, keep) if waiting else []
        finally:
            if file:
                file.close()
    order = {job.utterance.key: place for place, job in enumerate(jobs)}
    done.sort(key=lambda prediction: order[prediction.utterance.key])
    if file:
        file.finish(done)
    return done, details


def _details(info: ModelInfo, settings: Settings, options: DecodingOptions) -> dict[str, Any]:
    """What made the texts: enough to make them again."""
    from convert.download import hub_name
    from convert.hub import converted_folder

    source = settings.model[0]
    named = hub_name(source)
    folder = converted_folder(source, info.dtype, settings.quantize, settings.cache)
    return {
        "name": info.name,
        "revision": named[1] if named else None,
        "weights": _digest(folder) if folder else None,
        "dtype": info.dtype,
        "quantize": settings.quantize,
        "device": info.device,
        "beam_size": options.beam_size,
        "pass_s": settings.pass_s,
        "loop_guard": settings.loop_guard,
    }


def _digest(folder: Path) -> str | None:
    """Of the converted weights, the same on every machine. None if the folder does not say."""
    try:
        listed = digests.read(folder)
    except digests.DamagedError:
        return None
    return listed.files[WEIGHTS_FILE].digest if listed and WEIGHTS_FILE in listed.files else None


def _system(details: dict[str, Any]) -> str:
    """The details in one line."""
    parts = [details["name"] + (f"@{details['revision']}" if details["revision"] else "")]
    if details["weights"]:
        parts.append(f"weights {details['weights'][:12]}")
    parts += [details["dtype"], *([f"{details['quantize']} bits"] if details["quantize"] else []), details["device"]]
    parts.append("greedy" if details["beam_size"] in (None, 1) else f"beam {details['beam_size']}")
    if details["pass_s"]:
        parts.append(f"pieces of up to {details['pass_s']:g} s")
    if not details["loop_guard"]:
        parts.append("no loop guard")
    return ", ".join(parts)
