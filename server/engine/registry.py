"""The models that this server was started with, each with its engine: loaded on first use, unloaded when idle, and
loaded again when the engine fails.

Knows no HTTP. Callers name a model as `/v1/models` lists it, never by a path or another repository.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.download import MODELS, known_model
from model.family import Model
from model.task import CanaryOnlyError, TaskError
from server.engine.admission import Admission, most_passes
from server.engine.failure import Failure
from server.engine.info import ModelInfo
from server.engine.thread import Engine
from server.errors import EngineStopped, ModelGivenUp, ModelLoading, ModelNotFound
from server.settings import Settings

log = logging.getLogger(__name__)

# Names that clients of other services send by default.
_ALIAS = re.compile(r"default|whisper-[\w.-]+|gpt-([\w.-]+-)?transcribe([\w.-]*)|gpt-realtime[\w.-]*", re.IGNORECASE)
# How long to wait before each attempt to load a failed model again. After the last one it is given up.
RELOAD_AFTER_S = (1.0, 5.0, 25.0)
# A model that has worked this long since it was loaded gets all the attempts again.
PROVEN_S = 300.0
# A model that was given up, or could never be loaded, is tried again on request, but not sooner than this.
RETRY_LOADING_S = 30.0
# How many threads may hang, each with a model in memory, when the model is loaded again.
MAX_HUNG = 1
# How long to wait for a failed engine to free its memory before its model is loaded again.
FREEING_S = 30.0


@dataclass
class LoadProgress:
    """How far loading is. The stages "downloading" and "converting" have numbers, "loading" has none."""

    stage: str = "loading"
    done: int = 0
    total: int = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stage, self.done, self.total = stage, done, total


@dataclass(eq=False)
class Served:
    """One model. id: its name in `/v1/models`; names: all that callers may use; source: what to load.

    ready_at: when it was last loaded, by the monotonic clock; reloading: the next attempt to load it after a failure;
    attempts: how many there were since it last worked for a while; hung: failed engines whose threads may still hang;
    failures: how many there were, by reason (see `failure.MESSAGES`); reloads: how many attempts there ever were.
    """

    id: str
    names: frozenset[str]
    source: str
    engine: Engine
    admission: Admission = field(init=False)
    progress: LoadProgress = field(default_factory=LoadProgress)
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    was_ready: bool = False
    has_begun: bool = False
    ready_at: float = 0.0
    reloading: asyncio.Task[None] | None = None
    attempts: int = 0
    hung: list[Engine] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    reloads: int = 0
    last_failure: Failure | None = None

    @property
    def state(self) -> str:
        """idle (not loaded), loading (also while it waits to be loaded again), ready, stopping or failed."""
        if self.reloading:
            return "loading"
        return self.engine.status if self.has_begun else "idle"

    @property
    def translates(self) -> bool:
        """Whether the model translates, as far as that is known before it is loaded."""
        if info := self.engine.info:
            return info.config.translates
        known = known_model(self.source)
        return known is not None and known.family == "canary"


Resolve = Callable[[str, LoadProgress], Model]


class Engines:
    """The engines by model name.

    resolve: loads a source, in the engine's thread; on_lost: for a process that a supervisor can start again, called in
    the event loop when a model hangs or is given up. Without it, a thread that hangs is left behind.
    """

    def __init__(
        self, settings: Settings, resolve: Resolve | None = None, on_lost: Callable[[Failure], None] | None = None
    ):
        self._settings = settings
        self._on_lost = on_lost
        self._stopping = False
        self._resolve = resolve or (lambda source, progress: load_model(settings, source, progress))
        self.models = [self._served(source) for source in settings.model]
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two models have the same name: {', '.join(ids)}")
        self.started_at = int(time.time())
        self._unloading: asyncio.Task[None] | None = None

    @property
    def default(self) -> Served:
        return self.models[0]

    @property
    def max_rows(self) -> int:
        return self._settings.max_rows

    @property
    def retry_after_s(self) -> int:
        """Seconds until all models have done what they have admitted, at their measured speeds."""
        return max(model.admission.retry_after_s for model in self.models)

    def named(self, name: str | None) -> Served:
        """The model of this name; the default for None or for another service's model. Raises ModelNotFound."""
        if not name or _ALIAS.fullmatch(name):
            return next((model for model in self.models if name in model.names), self.default)
        for model in self.models:
            if name in model.names:
                return model
        names = ", ".join(model.id for model in self.models)
        raise ModelNotFound(f"model {name[:60]!r} is not served; must be one of {names}", "model")

    def with_suggestion(self, error: TaskError) -> TaskError:
        """The error and, if a Canary could do what another model cannot, the name of one that is served."""
        canary = next((model for model in self.models if model.translates), None)
        if not isinstance(error, CanaryOnlyError) or not canary:
            return error
        return CanaryOnlyError(f"{error}, such as {canary.id!r} on this server", error.param)

    def start(self) -> None:
        """Start to load the default model, without waiting for it."""
        self._begin(self.default)
        if self._settings.idle_unload_s:
            self._unloading = asyncio.create_task(self._unload_idle(self._settings.idle_unload_s))

    def retry(self) -> None:
        """Start to load the default model again if it failed. A server may get no requests until it is ready."""
        if self.default.state == "failed":
            self._begin(self.default)

    async def loaded(self, name: str | None = None) -> ModelInfo:
        """Load the model, however long that takes. Raises whatever loading raises."""
        model = self.named(name)
        self._begin(model, log_result=False)
        return await model.engine.start()

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Engine]:
        """A ready engine, which is not unloaded inside the `with` block.

        Raises ModelNotFound; ModelLoading if it is not ready within `load_wait_s`; ModelGivenUp; EngineStopped.
        """
        model = self.named(name)
        model.users += 1
        try:
            yield await self._ready(model)
        finally:
            model.users -= 1
            model.used_at = time.monotonic()

    async def stop(self, drain_s: float) -> None:
        self._stopping = True
        if self._unloading:
            self._unloading.cancel()
        for model in self.models:
            if model.reloading:
                model.reloading.cancel()
        # A model that is still being loaded has no requests to finish.
        stopping = (model.engine.stop(drain_s if model.state == "ready" else 0) for model in self.models)
        await asyncio.gather(*stopping)

    def _served(self, source: str) -> Served:
        model_id = name_of(source)
        repo = MODELS[source].repo if source in MODELS else ""
        engine = self._new_engine(source, progress := LoadProgress())
        served = Served(model_id, frozenset({model_id, repo} - {""}), source, engine, progress)
        served.admission = Admission.from_settings(self._settings, lambda: served.engine.waiting)
        return served

    def _new_engine(self, source: str, progress: LoadProgress) -> Engine:
        # Recordings are refused before they come to the engine.
        most = most_passes(self._settings)
        return Engine.from_settings(
            lambda: self._resolve(source, progress), self._settings, max_queue=most, on_failure=self._report_failure
        )

    def _begin(self, model: Served, log_result: bool = True) -> None:
        """Start to load the model if it is not loaded, or if it failed a while ago."""
        failure = model.engine.failure
        if failure and not model.reloading and time.monotonic() - failure.at > RETRY_LOADING_S and _may_load(model):
            self._renew(model)
            model.reloads += 1
        if model.state == "idle":
            model.has_begun = True
            self._loop = asyncio.get_running_loop()
            # This only starts the thread. Callers that wait for the model get the error if loading fails.
            starting = asyncio.ensure_future(model.engine.start())
            starting.add_done_callback(lambda done: _note_loading(model, done, log_result))

    def _report_failure(self, engine: Engine) -> None:
        """Called by an engine that fails, in its thread. Callers are told after `_mend` has been called."""
        # The loop is closed if the process is about to end.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._mend, engine)

    def _mend(self, engine: Engine) -> None:
        """Count an engine's failure, and load its model again unless there have been too many attempts."""
        model = next((model for model in self.models if model.engine is engine), None)
        failure = engine.failure
        if not model or not failure or self._stopping:
            return
        model.last_failure = failure
        model.failures[failure.reason] += 1
        if failure.reason == "hang":
            model.hung.append(engine)
        if failure.reason == "load" and not model.was_ready:
            # It may never load: a request decides whether to try again.
            return
        if failure.reason != "load" and failure.at - model.ready_at > PROVEN_S:
            model.attempts = 0
        is_given_up = model.attempts >= len(RELOAD_AFTER_S) or not _may_load(model)
        if self._on_lost and (is_given_up or failure.reason == "hang"):
            self._on_lost(failure)
        elif is_given_up:
            log.error("giving up on %s after loading it again %d times: %s", model.id, model.attempts, failure.message)
        else:
            wait_s = RELOAD_AFTER_S[model.attempts]
            model.attempts += 1
            log.warning("loading %s again in %g s: %s", model.id, wait_s, failure.message)
            self._renew(model)
            model.reloading = asyncio.ensure_future(self._reload(model, engine, failure, wait_s))

    async def _reload(self, model: Served, failed: Engine, failure: Failure, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        if failure.reason != "hang":
            # Two models may not fit into memory.
            await asyncio.to_thread(failed.close, FREEING_S)
        model.reloading = None
        model.reloads += 1
        self._begin(model)

    async def _ready(self, model: Served) -> Engine:
        self._begin(model)
        if model.state == "ready":
            return model.engine
        try:
            await asyncio.wait_for(self._started(model), self._settings.load_wait_s)
        except TimeoutError:
            raise ModelLoading(f"{model.id} is still loading; try again in a moment.") from None
        except EngineStopped:
            raise
        except Exception:
            raise ModelGivenUp(f"{model.id} could not be loaded; see the server's log.") from None
        if model.state == "failed":
            raise ModelGivenUp(f"{model.id} failed; see the server's log.")
        if model.state == "stopping":
            raise EngineStopped("The server is stopping.")
        return model.engine

    async def _started(self, model: Served) -> None:
        """Wait until the model is loaded, and loaded again if it has failed. Raises what loading raised."""
        while True:
            while model.reloading:
                if self._stopping:
                    raise EngineStopped("The server is stopping.")
                # Unlike awaiting it, this neither cancels the task nor is cancelled with it.
                await asyncio.wait({model.reloading})
            try:
                await model.engine.start()
                return
            except Exception:
                if not model.reloading:
                    raise

    def _renew(self, model: Served) -> None:
        model.progress = LoadProgress()
        model.engine = self._new_engine(model.source, model.progress)
        model.has_begun = False

    async def _unload_idle(self, idle_s: float) -> None:
        while True:
            await asyncio.sleep(min(1.0, idle_s / 4))
            for model in self.models:
                if model.state == "ready" and not model.users and time.monotonic() - model.used_at > idle_s:
                    old = model.engine
                    self._renew(model)
                    model.attempts = 0
                    await old.stop()
                    log.info("unloaded %s after %g s without a request", model.id, idle_s)


def _may_load(model: Served) -> bool:
    """Whether no more than MAX_HUNG of the model's threads still hang, each with its memory."""
    model.hung = [engine for engine in model.hung if engine.is_running]
    return len(model.hung) <= MAX_HUNG


def name_of(source: str) -> str:
    """A model's name for callers: a known name or repository unchanged, a file or folder without its path."""
    if source in MODELS:
        return source
    path = Path(source).expanduser()
    if path.exists() or path.suffix == ".nemo" or path.is_absolute():
        return path.name.removesuffix(".nemo")
    return source.partition("@")[0]


def load_model(settings: Settings, source: str | None = None, progress: LoadProgress | None = None) -> Model:
    """Load a model, after downloading and converting it if necessary; again, if its conversion in the cache is damaged.

    source: by default the first in the settings.
    """
    from convert.hub import resolve, resolve_again
    from model.arrays import default_dtype
    from model.digests import DamagedError
    from model.loading import load

    dtype = settings.dtype or default_dtype()
    source = source or settings.model[0]
    options: Any = {
        "dtype": dtype,
        "quantize": settings.quantize,
        "cache_dir": settings.cache,
        "progress": progress,
    }
    folder = resolve(source, **options)
    if progress:
        progress("loading", 0, 0)
    try:
        return load(folder, dtype)
    except DamagedError as error:
        # Without its traceback, which refers to the model.
        damage = error.with_traceback(None)
    return load(resolve_again(source, damage, **options), dtype)


def _note_loading(model: Served, done: "asyncio.Future[ModelInfo]", log_result: bool) -> None:
    """Log how loading ended, if `log_result`. Reads the error in any case, or asyncio would complain."""
    if done.cancelled():
        return
    if error := done.exception():
        if log_result:
            log.error("%s could not be loaded: %s", model.id, error)
        return
    model.was_ready, model.ready_at = True, time.monotonic()
    if log_result:
        log.info("%s is loaded, in %.1f s", model.id, done.result().load_s)
