"""The models that this server was started with, each with its engine: loaded on first use, unloaded when idle.

Knows no HTTP. Callers name a model as `/v1/models` lists it, never by a path or another repository.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.download import MODELS
from model.family import Model
from server.engine.thread import Engine, ModelInfo
from server.errors import EngineStopped, ModelFailed, ModelLoading, ModelNotFound
from server.settings import Settings

log = logging.getLogger(__name__)

# Names that clients of other services send by default.
_ALIAS = re.compile(r"default|whisper-[\w.-]+|gpt-([\w.-]+-)?transcribe([\w.-]*)|gpt-realtime[\w.-]*", re.IGNORECASE)
# How long to wait after a failure before loading a model again.
RETRY_LOADING_S = 30.0


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
    """One model. id: its name in `/v1/models`; names: all that callers may use; source: what to load."""

    id: str
    names: frozenset[str]
    source: str
    engine: Engine
    progress: LoadProgress = field(default_factory=LoadProgress)
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    was_ready: bool = False
    has_begun: bool = False

    @property
    def state(self) -> str:
        """idle (not loaded), loading, ready, stopping or failed."""
        return self.engine.status if self.has_begun else "idle"


Resolve = Callable[[str, LoadProgress], Model]


class Engines:
    """The engines by model name. resolve: loads a source, in the engine's thread."""

    def __init__(self, settings: Settings, resolve: Resolve | None = None):
        self._settings = settings
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

    def named(self, name: str | None) -> Served:
        """The model of this name; the default for None or for another service's model. Raises ModelNotFound."""
        if not name or _ALIAS.fullmatch(name):
            return next((model for model in self.models if name in model.names), self.default)
        for model in self.models:
            if name in model.names:
                return model
        names = ", ".join(model.id for model in self.models)
        raise ModelNotFound(f"model {name[:60]!r} is not served; must be one of {names}", "model")

    def start(self) -> None:
        """Start to load the default model, without waiting for it."""
        self._begin(self.default)
        if self._settings.idle_unload_s:
            self._unloading = asyncio.create_task(self._unload_idle(self._settings.idle_unload_s))

    def retry(self) -> None:
        """Start to load the default model again if it failed. For a server that gets no requests until it is ready."""
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

        Raises ModelNotFound; ModelLoading if it is not ready within `load_wait_s`; ModelFailed; EngineStopped.
        """
        model = self.named(name)
        model.users += 1
        try:
            yield await self._ready(model)
        finally:
            model.users -= 1
            model.used_at = time.monotonic()

    async def stop(self, drain_s: float) -> None:
        if self._unloading:
            self._unloading.cancel()
        # A model that is still being loaded has no requests to finish.
        stopping = (model.engine.stop(drain_s if model.state == "ready" else 0) for model in self.models)
        await asyncio.gather(*stopping)

    def _served(self, source: str) -> Served:
        model_id = name_of(source)
        repo = MODELS[source].repo if source in MODELS else ""
        engine = self._new_engine(source, progress := LoadProgress())
        return Served(model_id, frozenset({model_id, repo} - {""}), source, engine, progress)

    def _new_engine(self, source: str, progress: LoadProgress) -> Engine:
        return Engine.from_settings(lambda: self._resolve(source, progress), self._settings)

    def _begin(self, model: Served, log_result: bool = True) -> None:
        failed_at = model.engine.failed_at
        if failed_at is not None and time.monotonic() - failed_at > RETRY_LOADING_S:
            self._renew(model)
        if model.state == "idle":
            model.has_begun = True
            # This only starts the thread. Callers that wait for the model get the error if loading fails.
            starting = asyncio.ensure_future(model.engine.start())
            starting.add_done_callback(lambda done: _note_loading(model, done, log_result))

    async def _ready(self, model: Served) -> Engine:
        self._begin(model)
        if model.state == "ready":
            return model.engine
        try:
            await asyncio.wait_for(model.engine.start(), self._settings.load_wait_s)
        except TimeoutError:
            raise ModelLoading(f"{model.id} is still loading; try again in a moment.") from None
        except Exception:
            raise ModelFailed(f"{model.id} could not be loaded; see the server's log.") from None
        if model.state == "failed":
            raise ModelFailed(f"{model.id} failed; see the server's log.")
        if model.state == "stopping":
            raise EngineStopped("The server is stopping.")
        return model.engine

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
                    await old.stop()
                    log.info("unloaded %s after %g s without a request", model.id, idle_s)


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
    model.was_ready = True
    if log_result:
        log.info("%s is loaded, in %.1f s", model.id, done.result().load_s)
