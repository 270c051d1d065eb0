"""The application: routes, limits, error handlers, and engines that start and stop with it."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.engine.admission import AHEAD
from server.engine.registry import Engines
from server.live.capacity import LiveCapacity
from server.settings import VERSION, Settings
from server.web.answers import install_error_handlers
from server.web.docs import install_docs
from server.web.metrics import Metrics
from server.web.middleware import Requests
from server.web.room import Room
from server.web.routes import captions, health, native, openai, page, realtime
from server.web.security import Guard
from server.web.uploads import BodyLimit, Uploads


def create_app(settings: Settings, engines: Engines | None = None) -> FastAPI:
    """The application. It begins to load its default model on start-up, and answers 503 until the model is loaded."""
    engines = engines or Engines(settings)
    live = LiveCapacity.from_settings(settings)
    metrics = Metrics(engines, live)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A thread for each recording that is worked on, so that one whose decoder hangs makes nobody wait.
        threads = len(engines.models) * (settings.max_rows + AHEAD) + 8
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads, "work"))
        engines.start()
        yield
        await engines.stop(settings.shutdown_s)

    app = FastAPI(
        title="canary-server",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect would make many clients drop the body; the 404 names the right path.
        redirect_slashes=False,
    )
    app.state.engines, app.state.settings, app.state.metrics, app.state.live = engines, settings, metrics, live
    # The middleware added last is the outermost.
    app.add_middleware(Room, engines=engines)
    app.add_middleware(Guard, settings=settings)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    uploads = Uploads()
    per_address = settings.max_connections_per_address if settings.is_public else None
    app.add_middleware(
        Requests,
        metrics=metrics,
        uploads=uploads,
        backlog_s=lambda: engines.retry_after_s,
        at_once=settings.max_connections,
        per_address=per_address,
    )
    # Outside Requests, which may answer before the end of a body.
    app.add_middleware(BodyLimit, max_bytes=int(settings.max_upload_mb * 1e6), uploads=uploads)
    install_error_handlers(app)
    for routes in (page, health, native, openai, captions, realtime):
        app.include_router(routes.router)
    app.mount("/static", page.files, name="static")
    install_docs(app)
    return app
