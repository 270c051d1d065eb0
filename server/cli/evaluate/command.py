"""`canary evaluate`: transcribe recordings whose text is known, and count the errors."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import typer

from model import digests
from model.config import WEIGHTS_FILE
from model.decoding import DecodingOptions
from model.task import AUTO, Task, TaskError
from server.cli.evaluate.hub_datasets import PREFIX, HubDataset, Row
from server.cli.evaluate.manifests import ManifestError, Utterance, read_utterances
from server.cli.evaluate.predictions import Prediction, PredictionFile, finished, prediction_of, read_predictions
from server.cli.evaluate.transcribing import Job, progress_of, transcribe_jobs
from server.cli.failures import chosen_settings, complain, fail, log_to_stderr, one_line_failures
from server.cli.progress import CountBar
from server.cli.recordings import loaded_engine
from server.engine.info import ModelInfo
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
    """What is to be transcribed, and how. limit: the most utterances; those of a manifest are no more already."""

    utterances: list[Utterance] | HubDataset
    limit: int | None
    defaults: Defaults
    options: DecodingOptions
    output: Path | None
    resume: bool


def evaluate(
    source: str,
    given: dict[str, Any],
    *,
    limit: int | None,
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
    """Whether nothing failed, and the word error rate is at most `max_wer`, in percent. source: a manifest, a folder
    or the address of a dataset; given: settings from the command line.

    The figures go to stdout, or to stderr if the JSON goes there.
    """
    settings = chosen_settings(**given)
    if missing := [name for module, name in LIBRARIES.items() if find_spec(module) is None]:
        named = " and ".join(missing)
        fail(f"evaluate needs {named}: install the extra [evaluate], or run: pip install {' '.join(missing)}")
    if source.startswith(PREFIX) and find_spec("datasets") is None:
        fail(f"{PREFIX} needs the library datasets: install the extra [datasets], or run: pip install datasets")
    from server.cli.evaluate.comparing import compared
    from server.cli.evaluate.report import as_json, screen
    from server.cli.evaluate.result import evaluated

    log_to_stderr()
    with one_line_failures():
        # Read now: an error after hours of work would be late.
        other = read_predictions(against, needs_text=False) if against else None
        if source.startswith(PREFIX):
            utterances = HubDataset(source)
            source = utterances.source
        else:
            utterances, without_text = read_utterances(Path(source))
            utterances = utterances[:limit]
            if without_text:
                complain(_left_out("audio files without a .txt beside them", without_text))
        defaults = Defaults(language, target_language, pnc)
        if score_only and isinstance(utterances, list):
            predictions, details = _predictions_in(utterances, defaults, settings), {}
        else:
            run = Run(utterances, limit, defaults, DecodingOptions(beam_size), output, resume)
            predictions, details = asyncio.run(_transcribed(run, settings))
        if isinstance(utterances, HubDataset) and utterances.without_text:
            complain(_left_out("rows without text", utterances.without_text))
        comparison = compared(predictions, other, against) if other and against else None
        libraries = {name: version(name) for name in LIBRARIES.values()}
        found = evaluated(source, predictions, _system_of(predictions), details, libraries, comparison)
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


def _left_out(what: str, skipped: Sequence[object]) -> str:
    named = ", ".join(map(str, skipped[:3])) + (", …" if len(skipped) > 3 else "")
    return f"skipped {len(skipped)} {what}: {named}"


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


def _jobs(run: Run, settings: Settings) -> tuple[list[Job], Iterable[Job]]:
    """The jobs that can be checked before the model is loaded, and all of them.

    A dataset's rows come as they are asked for. They are all of one kind, so that only the first is checked.
    """
    if isinstance(run.utterances, list):
        jobs = [_job(utterance, run.defaults, settings) for utterance in run.utterances]
        return jobs, jobs

    def job_of(row: Row) -> Job:
        return replace(_job(row.utterance, run.defaults, settings), content=row.content)

    rows = map(job_of, islice(run.utterances, run.limit))
    first = next(rows, None)
    if first is None:
        raise ManifestError(f"{run.utterances.source}: no rows with text")
    return [first], chain([first], rows)


async def _transcribed(run: Run, settings: Settings) -> tuple[list[Prediction], dict[str, Any]]:
    """The predictions in the manifest's order, and what made them."""
    try:
        checked, jobs = _jobs(run, settings)
    except ManifestError:
        raise
    except RequestError as error:
        raise typer.BadParameter(str(error)) from None
    if run.output and run.output.exists() and not run.resume:
        raise typer.BadParameter(
            f"{run.output} exists; add --resume to continue it, or choose another file", param_hint="--output"
        )
    async with loaded_engine(settings, settings.max_rows) as engine:
        info = await engine.start()
        for job in checked:
            try:
                engine.check(job.task)
            except TaskError as error:
                raise ManifestError(f"{job.utterance.place}: {error}") from None
        details = _details(info, settings, run.options)
        system = _system(details)
        kept: list[Prediction] = []
        if run.output and run.output.exists():
            known = [job.utterance for job in checked] if isinstance(run.utterances, list) else None
            kept = finished(run.output, known, system)
        file = PredictionFile(run.output, kept) if run.output else None
        earlier = {prediction.utterance.key: prediction for prediction in kept}
        order: dict[tuple[str, float, str], int] = {}
        done: list[Prediction] = []

        def waiting() -> Iterator[Job]:
            for job in jobs:
                key = job.utterance.key
                order[key] = len(order)
                if key in earlier:
                    done.append(replace(earlier[key], utterance=job.utterance))
                else:
                    yield job

        if isinstance(run.utterances, list):
            bar = progress_of([job for job in checked if job.utterance.key not in earlier])
        else:
            bar = CountBar(run.limit or run.utterances.total)
        try:
            keep = file.add if file else lambda prediction: None
            done += await transcribe_jobs(engine, waiting(), bar, settings, run.options, system, keep)
        finally:
            if file:
                file.close()
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
