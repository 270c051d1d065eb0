"""`canary serve`: listen, load the model, say what is running, serve until Ctrl-C."""

import asyncio
import logging
from typing import Any

import uvicorn

from server.cli.failures import chosen_settings, fail, one_line_failures
from server.engine.registry import Engines
from server.engine.thread import ModelInfo
from server.logs import configure_logging
from server.settings import VERSION, Settings
from server.web.app import create_app
from server.web.protocols import Http, WebSocket

log = logging.getLogger("canary")


def serve(**given: Any) -> None:
    """Serve with the settings of the environment, those `given` (and not None) before them."""
    settings = chosen_settings(**given)
    if settings.is_public and not settings.api_keys and not settings.public_without_key:
        fail(
            f"{settings.host} can be reached by others, and there is no API key: set one with --api-key or "
            "CANARY_API_KEYS, or say --public-without-key"
        )
    configure_logging(settings.log_level, settings.log_format)
    try:
        with one_line_failures():
            asyncio.run(_serve(settings))
    except KeyboardInterrupt:
        log.info("stopped")


async def _serve(settings: Settings) -> None:
    log.info("canary-server %s loads %s", VERSION, settings.model[0])
    try:
        engines = Engines(settings)
    except ValueError as error:
        fail(error)
    server = _Server(uvicorn_config(create_app(settings, engines), settings))
    loading = asyncio.create_task(_load(engines, server))
    await server.serve()
    if loading.done() and not loading.cancelled():
        loading.result()
    loading.cancel()


async def _load(engines: Engines, server: "_Server") -> None:
    """Load the default model beside the server, which answers 503 meanwhile, and ends where that fails."""
    try:
        info = await engines.loaded()
    except Exception:
        server.should_exit = True
        raise
    for line in _description(info):
        log.info(line)
    await server.listening.wait()
    server.say_how_to_try()


def _description(info: ModelInfo) -> list[str]:
    return [
        f"model   {info.name}, languages: {' '.join(info.config.languages)}",
        f"dtype   {info.dtype}",
        f"device  {info.device}",
        f"loaded in {info.load_s:.1f} s",
    ]


def uvicorn_config(app: Any, settings: Settings) -> uvicorn.Config:
    """uvicorn with every limit set: its defaults have none for connections and none for shutting down."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Over max_connections the application answers, in the shape of every error; this is for what does not ask.
        limit_concurrency=settings.max_connections + 64,
        backlog=min(2048, settings.max_connections + 64),
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_s,
        http=Http,
        h11_max_incomplete_event_size=64 * 1024,
        ws=WebSocket,
        ws_max_size=int(settings.max_message_mb * 1e6),
        # Sound does not become smaller, and captions are small.
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
    )


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.listening = asyncio.Event()
        self.url = ""

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # uvicorn ends the process when it cannot bind, having logged why
            fail(f"cannot listen on {self.config.host}:{self.config.port}; another --port may be free")
        if self.started and self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("serving on %s (Ctrl-C stops)", self.url)
            self.listening.set()

    def say_how_to_try(self) -> None:
        log.info("try     curl -F file=@talk.wav '%s/transcribe?format=text'", self.url)

    async def shutdown(self, sockets: Any = None) -> None:
        log.info("stopping: requests in progress have %d s", self.config.timeout_graceful_shutdown)
        await super().shutdown(sockets)
