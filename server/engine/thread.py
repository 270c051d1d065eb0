"""The one thread that owns the model, and the queue before it.

MLX arrays belong to the thread that made them, so this thread loads the model, runs it and frees it; only waveforms,
tasks and transcripts cross. It knows no HTTP and no audio formats. Each turn of its loop is: admit → encode → step →
retire, so a request joins the running batch at the next token and leaves it at its own end.
"""

import asyncio
import bisect
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from model.cpu import prepare_process
from model.decoding import DecodingOptions
from model.device_errors import DeviceError
from model.family import Model, ModelConfig
from model.task import Task, TaskError
from model.tokenizer import Tokenizer
from model.transcript import Transcript
from server.engine.batching import Batcher, Pass, PassResult
from server.errors import EngineStopped, ModelFailed, QueueFull, ServiceError, TranscriptionFailed
from server.settings import Settings

log = logging.getLogger(__name__)

# Priorities, lowest number first; within a class, first come, first served.
LIVE, INTERACTIVE, BULK = 0, 1, 2


@dataclass(frozen=True)
class ModelInfo:
    """The loaded model, for other threads and for people."""

    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str
    device: str
    load_s: float

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(order=True)
class Waiting:
    """A pass in the queue: the lowest priority first, then first come."""

    priority: int
    number: int
    wanted: Pass = field(compare=False)
    future: "Future[PassResult]" = field(compare=False, default_factory=Future)
    since: float = field(compare=False, default_factory=time.monotonic)
    queue_s: float = field(compare=False, default=0.0)


class Engine:
    """Takes passes from any event loop and runs them side by side.

    resolve_model: called once, in the engine's own thread; may take minutes (a download, a conversion).
    max_queue: passes that may wait; max_rows: decoder rows that run together, one for each text and beam hypothesis.
    """

    def __init__(self, resolve_model: Callable[[], Model], max_queue: int = 32, max_rows: int = 16):
        self._resolve_model = resolve_model
        self._max_queue = max_queue
        self._max_rows = max_rows
        self._changed = threading.Condition()
        self._queue: list[Waiting] = []
        self._accepted = 0
        self._running: dict[int, Waiting] = {}
        self._cancelled: set[int] = set()
        self._rows = 0
        self._stopping = False
        # When loading or the loop failed, by the monotonic clock.
        self.failed_at: float | None = None
        self._info: Future[ModelInfo] = Future()
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)

    @classmethod
    def from_settings(
        cls, resolve_model: Callable[[], Model], settings: Settings, max_queue: int | None = None
    ) -> Self:
        """With the settings' limits. max_queue: of a caller that sends no more than so many passes at a time."""
        return cls(resolve_model, max_queue or settings.max_queue, settings.max_rows)

    # ---- from the event loop ----

    async def start(self) -> ModelInfo:
        """Load the model, if that has not been done yet. Raises what loading raised."""
        if not self._thread.ident:
            prepare_process()
            self._info.set_running_or_notify_cancel()
            self._thread.start()
        return await asyncio.wrap_future(self._info)

    async def transcribe(
        self, waveform: np.ndarray, task: Task, options: DecodingOptions | None = None, priority: int = INTERACTIVE
    ) -> Transcript:
        """The transcript of one waveform, (N,) float32 at 16 kHz, no longer than the model's `longest_s`. See `run`."""
        result = await self.run(Pass(waveform, (task,), options or DecodingOptions()), priority)
        return result.transcripts[0]

    async def run(self, wanted: Pass, priority: int = INTERACTIVE) -> PassResult:
        """One pass. Cancelling takes it out of the queue, or frees its rows within a step.

        Raises TaskError, QueueFull, EngineStopped or ModelFailed at once, TranscriptionFailed if the model fails on it.
        """
        for task in wanted.tasks:
            self.check(task)
        request = self._enqueue(wanted, priority)
        try:
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            self._give_up(request)
            raise

    def check(self, task: Task) -> None:
        """Raise TaskError, saying what is supported, if the model cannot do `task`."""
        if self.info:
            self.info.config.check(task)

    async def stop(self, drain_s: float = 30.0) -> None:
        """Take no more requests, let those there are finish for `drain_s`, then refuse those still in line."""
        self._take_no_more()
        await asyncio.to_thread(self.close, drain_s)

    def close(self, drain_s: float = 30.0) -> None:
        """`stop` for callers without an event loop: waits in the calling thread."""
        self._take_no_more()
        if self._thread.ident:
            self._thread.join(drain_s)
            self._refuse_line()

    @property
    def info(self) -> ModelInfo | None:
        """The loaded model; None until it is loaded."""
        loaded = self._info.done() and not self._info.exception()
        return self._info.result() if loaded else None

    @property
    def status(self) -> str:
        """loading, ready, stopping or failed."""
        if self.failed_at is not None:
            return "failed"
        if not self._info.done():
            return "loading"
        return "stopping" if self._stopping else "ready"

    @property
    def waiting(self) -> int:
        """Passes in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Passes in the batch."""
        return len(self._running)

    @property
    def rows(self) -> int:
        """Decoder rows in use."""
        return self._rows

    def _take_no_more(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _enqueue(self, wanted: Pass, priority: int) -> Waiting:
        with self._changed:
            if self._stopping:
                raise self._refusal()
            if len(self._queue) >= self._max_queue:
                raise QueueFull(f"Queue full: {len(self._queue)} requests are waiting; try again in a moment.")
            self._accepted += 1
            request = Waiting(priority, self._accepted, wanted)
            bisect.insort(self._queue, request)
            self._changed.notify()
            return request

    def _give_up(self, request: Waiting) -> None:
        with self._changed:
            self._queue = [waiting for waiting in self._queue if waiting is not request]
            if request.number in self._running:
                self._cancelled.add(request.number)

    def _refuse_line(self) -> None:
        """Accept no more passes, and fail those that wait."""
        with self._changed:
            self._stopping = True
            refused, self._queue = self._queue, []
        for request in refused:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(self._refusal())

    def _refusal(self) -> ServiceError:
        if self.failed_at is not None:
            return ModelFailed("The model failed; see the server's log.")
        return EngineStopped("The server is stopping.")

    # ---- in the engine's thread ----

    def _serve(self) -> None:
        try:
            self._work()
        finally:
            # Not at the top: a process that only shows its help should not wait for MLX, which may not be installed.
            if "mlx.core" in sys.modules:
                from model.loading import give_memory_back

                give_memory_back()

    def _work(self) -> None:
        """Load the model and run it until the engine stops. Nothing refers to the model when this returns."""
        try:
            model = self._load()
        except BaseException as error:
            self.failed_at = time.monotonic()
            self._info.set_exception(error)
            self._refuse_line()
            return
        batcher = Batcher(model, self._max_rows)
        try:
            while self._wait_for_work():
                self._free_cancelled(batcher)
                outcomes = batcher.join([(request.number, request.wanted) for request in self._admit(batcher)])
                outcomes += batcher.step()
                self._retire(outcomes)
                self._rows = batcher.rows
        except DeviceError as error:
            self.failed_at = time.monotonic()
            log.critical("the device failed, and the model has to be loaded again: %s", error, exc_info=True)
        except Exception:
            self.failed_at = time.monotonic()
            log.critical("the engine's loop failed", exc_info=True)
        finally:
            # Passes are left here only by such a failure: fail them, so that nobody waits for ever.
            self._refuse_line()
            self._retire([(number, self._refusal()) for number in list(self._running)])

    def _load(self) -> Model:
        began = time.monotonic()
        model = self._resolve_model()
        load_s = time.monotonic() - began

        from model.loading import device_name

        self._info.set_result(ModelInfo(model.config, model.tokenizer, model.dtype, device_name(), load_s))
        return model

    def _wait_for_work(self) -> bool:
        """Wait until there is work; False means that the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._running or self._stopping)
            return bool(self._queue or self._running)

    def _free_cancelled(self, batcher: Batcher) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, set()
            for number in cancelled:
                self._running.pop(number, None)
        for number in cancelled:
            batcher.cancel(number)

    def _admit(self, batcher: Batcher) -> list[Waiting]:
        """The next passes to join, in order: as many as have room and are encoded together. None overtakes another."""
        admitted: list[Waiting] = []
        with self._changed:
            while self._queue and batcher.has_room_for(self._queue[0].wanted, [r.wanted for r in admitted]):
                request = self._queue.pop(0)
                # False if it was cancelled while it waited.
                if request.future.set_running_or_notify_cancel():
                    request.queue_s = time.monotonic() - request.since
                    self._running[request.number] = request
                    admitted.append(request)
        return admitted

    def _retire(self, outcomes: "list[tuple[int, PassResult | Exception]]") -> None:
        for number, outcome in outcomes:
            with self._changed:
                request = self._running.pop(number, None)
                self._cancelled.discard(number)
            if request is None:
                continue
            if isinstance(outcome, Exception):
                request.future.set_exception(_for_the_caller(outcome))
            else:
                timing = replace(outcome.timing, queue_s=request.queue_s)
                request.future.set_result(replace(outcome, timing=timing))


def _for_the_caller(error: Exception) -> Exception:
    """The error without its traceback, which would carry arrays to another thread; logged if unexpected."""
    if isinstance(error, TaskError | ServiceError):
        return error.with_traceback(None)
    log.error("transcription failed", exc_info=error)
    return TranscriptionFailed("The model failed on this audio; see the server's log.")
