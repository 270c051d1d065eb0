"""`canary serve`: load the model, say what is running, serve until Ctrl-C."""

import asyncio
import logging
from typing import Any

import uvicorn

from model import blas

from ..app import create_app, create_engine
from ..engine import ModelInfo
from ..settings import VERSION, Settings
from .failures import chosen_settings, fail, one_line_failures

log = logging.getLogger("canary")


def serve(**given: Any) -> None:
    """Serve with the settings of the environment, those `given` (and not None) before them."""
    settings = chosen_settings(**given)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s")
    # uvicorn's own account of its start says less than ours
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level.upper())))
    try:
        with one_line_failures():
            asyncio.run(_serve(settings))
    except KeyboardInterrupt:
        log.info("stopped")


async def _serve(settings: Settings) -> None:
    log.info("canary-server %s loads %s", VERSION, settings.model)
    engine = create_engine(settings)
    info = await engine.start()
    for line in _description(info):
        log.info(line)
    if slow := blas.warning():
        log.warning("!!! %s", slow)
    await _Server(uvicorn_config(create_app(settings, engine), settings)).serve()


def _description(info: ModelInfo) -> list[str]:
    return [
        f"model   {info.name}, languages: {' '.join(info.config.languages)}",
        f"dtype   {info.dtype}",
        f"device  {info.device}; {blas.status()}",
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
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_s,
        h11_max_incomplete_event_size=64 * 1024,
        ws_max_size=int(settings.max_message_mb * 1e6),
    )


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # uvicorn ends the process when it cannot bind, having logged why
            fail(f"cannot listen on {self.config.host}:{self.config.port}; another --port may be free")
        if self.started and self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("serving on %s (Ctrl-C stops)", url)
            log.info("try     curl -F file=@talk.wav '%s/transcribe?language=en'", url)

    async def shutdown(self, sockets: Any = None) -> None:
        log.info("stopping: requests in progress have %d s", self.config.timeout_graceful_shutdown)
        await super().shutdown(sockets)
