"""The application: routes, limits, errors, and an engine that lives as long as it does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from .engine import Engine
from .errors import install_error_handlers
from .middleware import BodyLimit, RequestId
from .routes import health, native
from .settings import VERSION, Settings

if TYPE_CHECKING:
    from model.canary import Canary


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """An application that starts its engine with itself, and stops it; one already started is taken as it is."""
    engine = engine or create_engine(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop(settings.shutdown_s)

    app = FastAPI(title="canary-server", version=VERSION, lifespan=lifespan)
    app.state.engine, app.state.settings = engine, settings
    # the last added is the outermost
    app.add_middleware(BodyLimit, max_bytes=int(settings.max_upload_mb * 1e6))
    app.add_middleware(RequestId)
    install_error_handlers(app)
    app.include_router(health.router)
    app.include_router(native.router)
    return app


def create_engine(settings: Settings) -> Engine:
    """An engine that will download, convert and load the model that the settings name."""
    return Engine(lambda: load_model(settings), settings.max_queue, settings.max_rows)


def load_model(settings: Settings) -> "Canary":
    from convert.hub import resolve
    from model.canary import Canary, default_dtype

    dtype = settings.dtype or default_dtype()
    return Canary.load(resolve(settings.model, dtype=dtype), dtype)
