"""What the commands that transcribe files share: a model for as long as they run, and what became of each file."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np

from model.decoding import DecodingOptions
from model.task import Task, TaskError
from server.engine.registry import LoadProgress, load_model
from server.engine.thread import Engine
from server.engine.waiting import BULK
from server.errors import ServiceError
from server.longform.transcribe import AT_ONCE, OnProgress, transcribe_recording
from server.longform.transcription import Transcription
from server.settings import Settings

# How long to wait for the engine's thread to end.
STOPPING_S = 10.0


class _Loading(LoadProgress):
    """Ends a download or conversion at its next report of progress once `stopped` is set."""

    stopped = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.stopped:
            raise InterruptedError("interrupted while loading the model")
        super().__call__(stage, done, total)


@asynccontextmanager
async def loaded_engine(settings: Settings, files_at_once: int) -> AsyncIterator[Engine]:
    """The settings' model, loaded; unloaded at the end. Raises what loading raises."""
    loading = _Loading()
    engine = Engine.from_settings(
        lambda: load_model(settings, progress=loading), settings, max_queue=files_at_once * AT_ONCE
    )
    try:
        await engine.start()
        yield engine
    finally:
        # The process must not end while the thread runs the model: see `exit_at_once_if_busy`.
        loading.stopped = True
        await engine.stop(STOPPING_S)


async def transcription_or_error(
    engine: Engine,
    blocks: Iterator[np.ndarray],
    task: Task,
    settings: Settings,
    options: DecodingOptions,
    *,
    on_progress: OnProgress | None = None,
    detect_each: bool = False,
) -> Transcription | str:
    """A file's transcription or, if it failed, one line that says why. For the arguments see `transcribe_recording`."""
    try:
        return await transcribe_recording(
            engine,
            blocks,
            task,
            settings,
            options,
            priority=BULK,
            on_progress=on_progress,
            detect_each=detect_each,
        )
    except (ServiceError, TaskError) as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
