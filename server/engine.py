"""The one thread that owns the model, and the line before it.

MLX arrays belong to the thread that made them, so this thread loads the model, runs it and lets it go; only waveforms,
tasks and transcripts cross. It knows no HTTP and no audio formats.
"""

import asyncio
import bisect
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model.config import CanaryConfig
from model.generate import DecodingOptions
from model.prompt import Task, TaskError, check_task
from model.transcript import Transcript

from .errors import EngineStopped, QueueFull, ServiceError, TranscriptionFailed

if TYPE_CHECKING:
    from model.canary import Canary

log = logging.getLogger(__name__)

Outcome = Transcript | Exception


@dataclass(frozen=True)
class ModelInfo:
    """What is running, for people and for /health."""

    config: CanaryConfig
    dtype: str
    device: str
    load_s: float

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(order=True)
class Waiting:
    """A request in line: lower priorities first, then first come."""

    priority: int
    number: int
    waveform: np.ndarray = field(compare=False)
    task: Task = field(compare=False)
    options: DecodingOptions = field(compare=False)
    future: "Future[Transcript]" = field(compare=False, default_factory=Future)


class Engine:
    """Takes requests from any event loop, runs those that wait together in one batch.

    resolve_model: called once, in the engine's own thread; may take minutes (a download, a conversion).
    max_queue: requests that may wait; max_batch: requests that run together.
    """

    def __init__(self, resolve_model: "Callable[[], Canary]", max_queue: int = 32, max_batch: int = 8):
        self._resolve_model = resolve_model
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._changed = threading.Condition()
        self._line: list[Waiting] = []
        self._accepted = 0
        self._running = 0
        self._stopping = False
        self._info: Future[ModelInfo] = Future()
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)

    # ---- from the event loop ----

    async def start(self) -> ModelInfo:
        """Load the model, if that has not been done. Raises what loading raised."""
        if not self._thread.ident:
            self._info.set_running_or_notify_cancel()
            self._thread.start()
        return await asyncio.wrap_future(self._info)

    async def transcribe(
        self, waveform: np.ndarray, task: Task, options: DecodingOptions | None = None, priority: int = 0
    ) -> Transcript:
        """The transcript of one waveform, (N,) float32 at 16 kHz. Cancelling takes the request out of the line.

        Raises TaskError, QueueFull or EngineStopped at once, TranscriptionFailed if the model fails.
        """
        self.check(task)
        request = self._enqueue(waveform, task, options or DecodingOptions(), priority)
        try:
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            self._leave_line(request)
            raise

    def check(self, task: Task) -> None:
        """Raises TaskError, saying what is possible, if the model cannot do `task`."""
        if self.info:
            check_task(task, self.info.config)

    async def stop(self, drain_s: float = 30.0) -> None:
        """Take no more requests, let those that wait finish for `drain_s`, then fail the rest."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if not self._thread.ident:
            return
        await asyncio.to_thread(self._thread.join, drain_s)
        self._refuse_line()

    @property
    def info(self) -> ModelInfo | None:
        """What is loaded; None before that."""
        loaded = self._info.done() and not self._info.exception()
        return self._info.result() if loaded else None

    @property
    def status(self) -> str:
        """loading, ready, stopping or failed."""
        if not self._info.done():
            return "loading"
        if not self.info:
            return "failed"
        return "stopping" if self._stopping else "ready"

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Requests in the batch that runs."""
        return self._running

    def _enqueue(self, waveform: np.ndarray, task: Task, options: DecodingOptions, priority: int) -> Waiting:
        with self._changed:
            if self._stopping:
                raise EngineStopped("The server is stopping.")
            if len(self._line) >= self._max_queue:
                raise QueueFull(f"{len(self._line)} requests are waiting, the most that may; try again in a moment.")
            self._accepted += 1
            request = Waiting(priority, self._accepted, waveform, task, options)
            bisect.insort(self._line, request)
            self._changed.notify()
            return request

    def _leave_line(self, request: Waiting) -> None:
        with self._changed:
            self._line = [waiting for waiting in self._line if waiting is not request]

    def _refuse_line(self) -> None:
        """Take no more, and fail what waits."""
        with self._changed:
            self._stopping = True
            refused, self._line = self._line, []
        for request in refused:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(EngineStopped("The server is stopping."))

    # ---- in the engine's thread ----

    def _serve(self) -> None:
        try:
            canary = self._load()
        except BaseException as error:
            self._info.set_exception(error)
            self._refuse_line()
            return
        try:
            while batch := self._admit():
                outcomes = self._run(canary, batch)
                self._retire(batch, outcomes)
        finally:
            self._refuse_line()

    def _load(self) -> "Canary":
        import mlx.core as mx

        began = time.monotonic()
        canary = self._resolve_model()
        device = f"{mx.default_device().type.name} ({mx.device_info().get('device_name', 'unnamed')})"
        load_s = time.monotonic() - began
        self._info.set_result(ModelInfo(canary.config, str(canary.dtype).removeprefix("mlx.core."), device, load_s))
        return canary

    def _admit(self) -> list[Waiting]:
        """The next requests to run together: the first in line and others with its options. Empty: the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._line or self._stopping)
                if not self._line:
                    return []
                options = self._line[0].options
                chosen = [request for request in self._line if request.options == options][: self._max_batch]
                self._line = [request for request in self._line if request not in chosen]
                # False: cancelled while it waited
                batch = [request for request in chosen if request.future.set_running_or_notify_cancel()]
                self._running = len(batch)
                if batch:
                    return batch

    def _run(self, canary: "Canary", batch: list[Waiting]) -> list[Outcome]:
        """What became of each request; one that fails is found by running each alone."""
        waveforms, tasks = [request.waveform for request in batch], [request.task for request in batch]
        try:
            transcripts = canary.transcribe(waveforms, tasks, batch[0].options)
            return [transcript for _, transcript in zip(batch, transcripts, strict=True)]
        except Exception as error:
            if len(batch) == 1:
                return [_for_the_caller(error)]
        return [outcome for request in batch for outcome in self._run(canary, [request])]

    def _retire(self, batch: list[Waiting], outcomes: list[Outcome]) -> None:
        self._running = 0
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)


def _for_the_caller(error: Exception) -> Exception:
    """An error without a traceback, which would carry this thread's arrays to another; logged if unexpected."""
    if isinstance(error, TaskError | ServiceError):
        return error.with_traceback(None)
    log.error("transcription failed", exc_info=error)
    return TranscriptionFailed("The model failed on this audio; the server's log says why.")
