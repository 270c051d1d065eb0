"""What runs on each machine: a model that stays, and recordings side by side that fill its batch."""

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np

from model.config import SAMPLE_RATE
from model.task import Task, TaskError
from server import Canary
from server.canary import Audio
from server.cli.cluster.attempts import MOST_ATTEMPTS, Turns
from server.cli.cluster.listing import Recording, is_local, storage
from server.cli.failures import expected_errors
from server.errors import ModelFailed, ServiceError, task_code
from server.longform.transcription import Transcription, language_source

# The column of an answer, and the key that it has instead of a record when the model cannot be used.
RECORD, REFUSAL = "record", "refusal"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to do with every recording. settings: for `Canary.from_pretrained`, beside the model."""

    model: str
    settings: dict[str, Any]
    task: Task
    names_language: bool
    beam_size: int | None
    detect_each: bool
    one_pass: bool


class Transcriber:
    """An actor of Ray Data. Many calls run at a time, each in a thread of its own."""

    def __init__(self, request: Request, attempts: Any):
        """Load the model. An error that a user can mend is not raised, but the answer to each call.

        attempts: the handle of an actor, `Attempts`.
        """
        self._request = request
        self._attempts = attempts
        self._turns = Turns()
        self._refusal = None
        try:
            self._canary = Canary.from_pretrained(request.model, **request.settings)
            # Nothing is said in it, but the task is checked.
            self._transcription(np.zeros(SAMPLE_RATE, np.float32))
        except (*expected_errors(), TaskError) as error:
            self._refusal = f"{platform.node()}: {error}"

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """A column of records as JSON, for columns with the fields of recordings."""
        if self._refusal:
            return {RECORD: [json.dumps({REFUSAL: self._refusal})]}
        columns = zip(*(rows[name] for name in ("path", "size", "version")), strict=True)
        recordings = [Recording(str(path), int(size), str(version)) for path, size, version in columns]
        with ThreadPoolExecutor(len(recordings)) as threads:
            return {RECORD: [json.dumps(record) for record in threads.map(self._attempt, recordings)]}

    def _attempt(self, recording: Recording) -> dict[str, Any]:
        """The record, unless this recording has ended too many workers."""
        import ray  # pyright: ignore[reportMissingImports]

        def tell(method: Any) -> Any:
            return ray.get(method.remote(recording.path))

        attempts = tell(self._attempts.count)
        if attempts >= MOST_ATTEMPTS:
            return failed_record(recording, "worker_lost", f"{attempts} workers ended while they transcribed it")
        # One that was there when a worker ended must not take others along again.
        with self._turns.turn(alone=attempts > 0):
            tell(self._attempts.begin)
            record = self.record(recording)
        tell(self._attempts.end)
        return record

    def record(self, recording: Recording) -> dict[str, Any]:
        """The recording's record in the results: its transcript, or the error."""
        try:
            with _opened(recording.path) as audio:
                done = self._transcription(audio)
        except ModelFailed:
            # A failed model is not used again: Ray starts another process.
            os._exit(1)
        except TaskError as error:
            return failed_record(recording, task_code(error), str(error))
        except ServiceError as error:
            return failed_record(recording, error.code, str(error))
        except OSError as error:
            return failed_record(recording, "unreadable_file", error.strerror or str(error))
        # Storages raise errors of their own, and one recording must not end the others.
        except Exception as error:
            log.exception("%s", recording.path)
            return failed_record(recording, "internal_error", f"{type(error).__name__}: {error}")
        source = language_source(self._request.task, self._request.names_language, done)
        return _named(recording) | done.to_dict(source)

    def _transcription(self, audio: Audio) -> Transcription:
        request, task = self._request, self._request.task
        return self._canary.transcribe(
            audio,
            task.language,
            task.target_language,
            pnc=task.pnc,
            timestamps=task.timestamps,
            beam_size=request.beam_size,
            detect_each=request.detect_each,
            one_pass=request.one_pass,
        )


def failed_record(recording: Recording, code: str, message: str) -> dict[str, Any]:
    return _named(recording) | {"error": {"code": code, "message": message}}


def _named(recording: Recording) -> dict[str, Any]:
    return {"file": recording.path, "size": recording.size, "version": recording.version}


@contextmanager
def _opened(path: str) -> Iterator[Path | BinaryIO]:
    """A local file's path, or a copy of what a URL names: decoders seek, which is slow over a network."""
    files, inside = storage(path)
    if is_local(files):
        yield Path(inside)
        return
    # It has no name, so nothing is left behind when this process is killed.
    with TemporaryFile() as copy:
        with files.open(inside, "rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
        yield copy
