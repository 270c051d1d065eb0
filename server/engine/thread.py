"""The one thread that owns the model, and the queue before it.

MLX arrays belong to the thread that made them, so this thread loads the model, runs it and frees it; only waveforms,
tasks and transcripts cross. It knows no HTTP and no audio formats. Each turn of its loop is: admit → encode → step →
retire, so a request joins the running batch at the next token and leaves it at its own end. Looks at growing audio
need not wait for the next turn: they go first between the layers of a long encoding.

If the loop ends for any reason, or the watchdog finds that it hangs, the engine has failed: all running and waiting
requests get an error, and no more are accepted. A failed engine is not used again; `registry` replaces it.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Self

import numpy as np

from model.decoding import DecodingOptions
from model.family import Model
from model.process import prepare_process
from model.task import Task
from model.transcript import Transcript
from server.engine.batching import Batcher
from server.engine.failure import Failure, for_the_caller, reason_for
from server.engine.info import ModelInfo
from server.engine.passes import Pass, PassResult
from server.engine.waiting import INTERACTIVE, LIVE, Meter, PassQueue, Waiting
from server.engine.watchdog import Heartbeat, Watchdog, Work
from server.errors import EngineStopped, ModelFailed, QueueFull, ServiceError, WaitedTooLong
from server.settings import Settings

log = logging.getLogger(__name__)


class Engine:
    """Takes passes from any event loop and runs them side by side.

    resolve_model: called once, in the engine's own thread; may take minutes (a download, a conversion).
    max_queue: passes that may wait; max_rows: decoder rows that run together, one for each text and beam hypothesis.
    on_failure: called once when the engine fails, in any thread, before running and waiting requests get their error;
    clock: measures the model's time, in seconds.
    """

    def __init__(
        self,
        resolve_model: Callable[[], Model],
        max_queue: int = 32,
        max_rows: int = 16,
        on_failure: Callable[["Engine"], None] = lambda engine: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._resolve_model = resolve_model
        self._max_queue = max_queue
        self._max_rows = max_rows
        self._changed = threading.Condition()
        self._queue = PassQueue()
        self._meter = Meter(self._queue, self._changed, clock)
        self._accepted = 0
        self._running: dict[int, Waiting] = {}
        self._cancelled: set[int] = set()
        self._rows = 0
        self._stopping = False
        self._on_failure = on_failure
        # Why loading or the loop failed.
        self.failure: Failure | None = None
        self._heartbeat = Heartbeat()
        self._watchdog = Watchdog(self._heartbeat, self._has_hung)
        self._info: Future[ModelInfo] = Future()
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)

    @classmethod
    def from_settings(
        cls,
        resolve_model: Callable[[], Model],
        settings: Settings,
        max_queue: int | None = None,
        on_failure: Callable[["Engine"], None] = lambda engine: None,
    ) -> Self:
        """With the settings' limits. max_queue: of a caller that sends no more than so many passes at a time."""
        return cls(resolve_model, max_queue or settings.max_queue, settings.max_rows, on_failure)

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

        Raises TaskError, QueueFull, EngineStopped or ModelFailed at once; WaitedTooLong if it is still in the queue at
        `wanted.start_by`; ModelFailed if the engine fails; TranscriptionFailed if the model fails on this pass alone.
        """
        for task in wanted.tasks:
            self.check(task)
        request = self._enqueue(wanted, priority)
        timer = None
        if wanted.start_by is not None:
            left_s = wanted.start_by - time.monotonic()
            timer = asyncio.get_running_loop().call_later(left_s, self._expire, request)
        try:
            return await asyncio.wrap_future(request.future)
        except asyncio.CancelledError:
            self._give_up(request)
            raise
        finally:
            if timer:
                timer.cancel()

    def check(self, task: Task) -> None:
        """Raise TaskError, saying what is supported, if the model cannot do `task`."""
        if self.info:
            self.info.config.check(task)

    async def stop(self, drain_s: float = 30.0) -> None:
        """Accept no more requests, give those there are `drain_s` to finish, then refuse those still in the queue."""
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
        if self.failure:
            return "failed"
        if not self._info.done():
            return "loading"
        return "stopping" if self._stopping else "ready"

    @property
    def is_running(self) -> bool:
        """Whether the engine's thread runs. A failed one's ends soon, unless it hangs."""
        return self._thread.is_alive()

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

    @property
    def spent_s(self) -> dict[str, float]:
        """The model's time so far for passes of live sessions ("live") and of files ("files")."""
        return {"live": self._queue.live.spent_s, "files": self._queue.files.spent_s}

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
            self._queue.add(request)
            self._changed.notify()
            return request

    def _give_up(self, request: Waiting) -> None:
        with self._changed:
            self._queue.remove(request)
            if request.number in self._running:
                self._cancelled.add(request.number)

    def _expire(self, request: Waiting) -> None:
        """Answer a request that did not start in time, if it still waits."""
        with self._changed:
            if not self._queue.remove(request):
                return
        request.refuse(WaitedTooLong())

    def _refuse_line(self) -> None:
        """Accept no more passes, and fail those that wait."""
        with self._changed:
            self._stopping = True
            refused = self._queue.clear()
        for request in refused:
            request.refuse(self._refusal())

    def _refusal(self) -> ServiceError:
        if self.failure:
            return ModelFailed(f"The request was not finished, because {self.failure.message}; try again in a moment.")
        return EngineStopped("The server is stopping.")

    # ---- from the watchdog's thread ----

    def _has_hung(self, work: Work) -> None:
        self._fail("hang", f"{work} was not done within {work.limit_s:.1f} s")
        self._tell_all()

    # ---- from any thread ----

    def _fail(self, reason: str, why: str = "", error: BaseException | None = None) -> None:
        """Mark the engine failed, unless it has failed before. why: for the log; "" if another will log it."""
        with self._changed:
            if self.failure:
                return
            self.failure = Failure(reason, time.monotonic())
        if why:
            log.critical("%s: %s", self.failure.message, why, exc_info=error)
        self._on_failure(self)

    def _tell_all(self) -> None:
        """Fail whatever runs or waits, so that nobody waits forever."""
        self._refuse_line()
        with self._changed:
            numbers = list(self._running)
            self._changed.notify_all()
        self._retire([(number, self._refusal()) for number in numbers])

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
            self._fail("load")
            # asyncio lets SystemExit and KeyboardInterrupt end its loop, and with it the server.
            self._info.set_exception(
                error if isinstance(error, Exception) else RuntimeError(f"loading ended with {type(error).__name__}")
            )
            self._refuse_line()
            return
        self._watchdog.start()
        try:
            batcher = Batcher(model, self._max_rows, self._heartbeat.beat, self._let_looks_go_first)
            while self._wait_for_work():
                self._turn(batcher)
        # Also SystemExit and the like, which would end a thread silently.
        except BaseException as error:
            self._fail(reason_for(error), str(error) or type(error).__name__, error)
        finally:
            self._heartbeat.rest()
            self._watchdog.stop()
            self._tell_all()

    def _turn(self, batcher: Batcher) -> None:
        self._free_cancelled(batcher)
        self._advance(batcher, self._admit(batcher))
        self._heartbeat.rest()

    def _advance(self, batcher: Batcher, joining: Sequence[Waiting]) -> None:
        """Encode passes and add them to the batch, then one step of all in it."""
        # A method of its own, so that its outcomes are not kept while the engine waits for work.
        self._meter.begin(joining, [len(request.wanted.waveform) + 1 for request in joining])
        outcomes = batcher.join([(request.number, request.wanted) for request in joining])
        self._meter.charge()
        stepping = self._in_batch(batcher)
        self._meter.begin(stepping, [request.wanted.rows for request in stepping])
        outcomes += batcher.step()
        self._meter.charge()
        self._retire(outcomes)
        self._rows = batcher.rows

    def _let_looks_go_first(self, batcher: Batcher) -> None:
        """Between two layers of an encoding: run the looks at growing audio that are next, until they are done.

        Only those that are next together, so that the encoding goes on, however many there are.
        """
        with self._meter.paused():
            if looks := self._admit(batcher, only_looks=True):
                self._advance(batcher, looks)
                while any(look.number in self._running for look in looks):
                    self._advance(batcher, [])

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
            if not (self._queue or self._running):
                self._queue.level()
            self._changed.wait_for(lambda: self._queue or self._running or self._stopping)
            return bool(self._queue or self._running)

    def _free_cancelled(self, batcher: Batcher) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, set()
            for number in cancelled:
                self._running.pop(number, None)
        for number in cancelled:
            batcher.cancel(number)

    def _admit(self, batcher: Batcher, only_looks: bool = False) -> list[Waiting]:
        """The next passes to join, in order: as many as have room and are encoded together. None overtakes another.

        only_looks: stop at one that is no look at growing audio.
        """
        admitted: list[Waiting] = []
        with self._changed:
            while request := self._queue.next(any(other.priority == LIVE for other in self._running.values())):
                if only_looks and not request.wanted.grows:
                    break
                if not batcher.has_room_for(request.wanted, [other.wanted for other in admitted]):
                    break
                self._queue.take(request)
                if request.is_late:
                    request.refuse(WaitedTooLong())
                # False if it was cancelled while it waited.
                elif request.future.set_running_or_notify_cancel():
                    request.queue_s = time.monotonic() - request.since
                    self._running[request.number] = request
                    admitted.append(request)
        return admitted

    def _in_batch(self, batcher: Batcher) -> list[Waiting]:
        """The passes in the batch. Others that run may still be encoded."""
        with self._changed:
            return [request for number, request in self._running.items() if number in batcher.running]

    def _retire(self, outcomes: "list[tuple[int, PassResult | Exception]]") -> None:
        for number, outcome in outcomes:
            with self._changed:
                request = self._running.pop(number, None)
                self._cancelled.discard(number)
            if request is None:
                continue
            if isinstance(outcome, Exception):
                request.future.set_exception(for_the_caller(outcome))
            else:
                timing = replace(outcome.timing, queue_s=request.queue_s, model_s=request.model_s)
                request.future.set_result(replace(outcome, timing=timing))
