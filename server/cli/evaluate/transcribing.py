"""The utterances' texts, by the engine and the long-audio path of `canary transcribe`."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from model.decoding import DecodingOptions
from model.task import Task
from server.audio.decode import AudioLimits
from server.cli.evaluate.audio import beginning, utterance_blocks
from server.cli.evaluate.manifests import Utterance
from server.cli.evaluate.predictions import Prediction
from server.cli.progress import CountBar, ProgressBar, file_length_s
from server.cli.recordings import transcription_or_error
from server.engine.thread import Engine
from server.errors import ModelFailed
from server.settings import Settings

# A first pass takes longer than later ones: it allocates memory, and a GPU compiles its kernels.
WARM_UP_S = 10.0
# How many are tried until one does not fail.
WARM_UP_JOBS = 3


@dataclass(frozen=True)
class Job:
    """content: of the audio file, if it is not at the utterance's path."""

    utterance: Utterance
    task: Task
    content: bytes | None = None

    def blocks(self, limits: AudioLimits) -> Iterator[np.ndarray]:
        return utterance_blocks(self.utterance, limits, self.content)


async def transcribe_jobs(
    engine: Engine,
    jobs: Iterable[Job],
    bar: ProgressBar | CountBar,
    settings: Settings,
    options: DecodingOptions,
    system: str,
    keep: Callable[[Prediction], None],
) -> list[Prediction]:
    """A prediction for each job, in the order in which they are ready; `keep` is called with each at once.

    As many utterances run side by side as the batch has rows. jobs: taken one at a time, in a thread, as rows of the
    batch become free. bar: of the jobs by number, counted from 0. Raises ModelFailed if the model fails for good, and
    what `jobs` raises.
    """
    limits = AudioLimits.from_settings(settings)
    jobs = iter(jobs)
    first = await asyncio.to_thread(lambda: list(islice(jobs, WARM_UP_JOBS)))
    await _warm_up(engine, first, settings, options, limits)
    shares, predictions = TimeShares(), []
    waiting, taking = enumerate(chain(first, jobs)), asyncio.Lock()

    async def next_job() -> tuple[int, Job] | None:
        async with taking:
            return await asyncio.to_thread(next, waiting, None)

    async def work() -> None:
        while taken := await next_job():
            index, job = taken
            shares.start(index)
            done = await transcription_or_error(
                engine,
                job.blocks(limits),
                job.task,
                settings,
                options,
                on_progress=lambda progress, i=index, job=job: bar.update(i, progress.done_s, job.utterance.path.name),
            )
            time_s = shares.finish(index)
            bar.finish(index)
            if isinstance(done, str):
                if engine.status == "failed":
                    raise ModelFailed(done)
                language, length_s = job.utterance.language or "", job.utterance.duration_s
                prediction = Prediction(job.utterance, "", language, length_s, time_s, done, system)
            else:
                prediction = Prediction(job.utterance, done.text, done.language, done.duration, time_s, system=system)
            predictions.append(prediction)
            keep(prediction)

    with bar:
        workers = [asyncio.create_task(work()) for _ in range(settings.max_rows)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return predictions


async def _warm_up(
    engine: Engine, jobs: list[Job], settings: Settings, options: DecodingOptions, limits: AudioLimits
) -> None:
    for job in jobs:
        blocks = beginning(job.blocks(limits), WARM_UP_S)
        if not isinstance(await transcription_or_error(engine, blocks, job.task, settings, options), str):
            return


def progress_of(jobs: Sequence[Job]) -> ProgressBar:
    """Headers are read only where the manifest has no duration."""
    files: dict[Path, float] = {}
    lengths_s = {}
    for index, job in enumerate(jobs):
        path, length_s = job.utterance.path, job.utterance.duration_s
        if length_s is None:
            length_s = files[path] = files[path] if path in files else file_length_s(path)
        lengths_s[index] = length_s
    return ProgressBar(lengths_s)


class TimeShares:
    """Divides the wall time among what runs side by side, so that the shares add up to it."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._until = 0.0
        self._shares_s: dict[int, float] = {}

    def start(self, job: int) -> None:
        self._divide()
        self._shares_s[job] = 0.0

    def finish(self, job: int) -> float:
        """The job's share, in seconds."""
        self._divide()
        return self._shares_s.pop(job)

    def _divide(self) -> None:
        now = self._now()
        for job in self._shares_s:
            self._shares_s[job] += (now - self._until) / len(self._shares_s)
        self._until = now
