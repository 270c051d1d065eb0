"""`canary serve`: listen, load the model, log what is served, and serve until Ctrl-C."""

import asyncio
import errno
import logging
import resource
import socket
import sys
from typing import Any

import uvicorn

from server.cli.commands import exit_at_once_if_busy
from server.cli.failures import chosen_settings, fail, one_line_failures
from server.cli.supervise import become_supervisor
from server.cli.supervised import Supervised
from server.engine.info import ModelInfo
from server.engine.registry import Engines
from server.logs import configure_logging
from server.settings import VERSION, Settings
from server.web.app import create_app
from server.web.protocols import Http, WebSocket

log = logging.getLogger("canary")

# macOS accepts no higher limit on open files, even where it says that there is none.
OPEN_MAX = 10_240


def serve(**given: Any) -> None:
    """Serve until Ctrl-C. given: settings from the command line."""
    settings = chosen_settings(**given)
    check_access(settings)
    supervised = Supervised.from_environment()
    if settings.supervise and not supervised:
        # The child is started exactly as this process was.
        command = [sys.executable, *sys.orig_argv[1:]]
        become_supervisor(command, _listening_sockets(settings), settings.log_level, settings.log_format)
    configure_logging(settings.log_level, settings.log_format)
    _raise_open_files_limit()
    _warn_about_keys(settings, "api_keys" in given)
    try:
        with one_line_failures():
            asyncio.run(_serve(settings, supervised))
    except KeyboardInterrupt:
        log.info("stopped")
        exit_at_once_if_busy(0)


def check_access(settings: Settings) -> None:
    """End the command if other machines could use the server without a key and nobody allowed that."""
    if settings.is_public and not settings.accepted_keys and not settings.public_without_key:
        fail(
            f"other machines can reach {settings.host}, and there is no API key: set one with CANARY_API_KEYS or "
            "--api-key-file, or allow it with --public-without-key"
        )


def _raise_open_files_limit() -> None:
    """Allow this process as many open files as the system lets it have: shells often allow 1024, macOS 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, OPEN_MAX), hard))


def _warn_about_keys(settings: Settings, given_as_option: bool) -> None:
    if given_as_option:
        log.warning("--api-key is deprecated, since other users can see it; use CANARY_API_KEYS or --api-key-file")
    path = settings.api_key_file
    if path and path.stat().st_mode & 0o077:
        log.warning("other users of this machine can read the API keys in %s; run: chmod 600 %s", path, path)


async def _serve(settings: Settings, supervised: Supervised | None) -> None:
    leave = (lambda failure: supervised.leave(failure, server.stop)) if supervised else None
    try:
        engines = Engines(settings, on_lost=leave)
    except ValueError as error:
        fail(error)
    if not supervised:
        await _refuse_taken_port(settings)
    log.info("canary-server %s is loading %s", VERSION, settings.model[0])
    app = create_app(settings, engines)
    server = _Server(uvicorn_config(app, settings))
    tasks = [asyncio.create_task(_load(engines, server, supervised))]
    if supervised:
        app.state.metrics.count_restarts(supervised.restarts)
        tasks.append(asyncio.create_task(supervised.beat(on_orphaned=server.stop)))
    await server.serve(supervised.sockets if supervised else None)
    if supervised:
        supervised.exit_if_left()
    loading = tasks[0]
    if loading.done() and not loading.cancelled():
        loading.result()
    for task in tasks:
        task.cancel()


def _listening_sockets(settings: Settings) -> list[socket.socket]:
    """Sockets that already listen, one for each address of the host, as uvicorn would open them."""
    host, port, sockets = settings.host, settings.port, []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, address[0]) for family, *_, address in found):
            sockets.append(socket.create_server((address, port), family=family, backlog=_backlog(settings)))
            # If any port will do, all addresses have the same.
            port = sockets[0].getsockname()[1]
    except OSError as error:
        fail(_cannot_listen(host, port, error))
    return sockets


def _backlog(settings: Settings) -> int:
    """How many connections may wait to be accepted."""
    return min(2048, settings.max_connections + 64)


async def _refuse_taken_port(settings: Settings) -> None:
    """Fail before the model is loaded if uvicorn will not be able to listen."""
    try:
        listening = await asyncio.get_running_loop().create_server(asyncio.Protocol, settings.host, settings.port)
    except OSError as error:
        fail(_cannot_listen(settings.host, settings.port, error))
    listening.close()
    await listening.wait_closed()


def _cannot_listen(host: str, port: int, error: OSError | None = None) -> str:
    if error is not None and error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host} port {port}: {error.strerror or error}"
    return f"port {port} on {host} is in use; choose another with --port or CANARY_PORT (0 picks a free one)"


async def _load(engines: Engines, server: "_Server", supervised: Supervised | None) -> None:
    """Load the default model while the server already answers, with 503. If loading fails, the server ends."""
    try:
        info = await engines.loaded()
    except Exception:
        server.stop()
        raise
    if supervised:
        supervised.tell_ready()
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
    """uvicorn with every limit set; by default it limits neither connections nor the time to shut down."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Up to this number, connections beyond max_connections get a proper error from the application.
        limit_concurrency=settings.max_connections + 64,
        backlog=_backlog(settings),
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_s,
        http=Http,
        h11_max_incomplete_event_size=64 * 1024,
        ws=WebSocket,
        ws_max_size=int(settings.max_message_mb * 1e6),
        # Audio does not compress, and captions are short.
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
    )


class _Server(uvicorn.Server):
    """Logs its address as soon as it listens."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.listening = asyncio.Event()
        self.url = ""

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # uvicorn exits if it cannot listen; here the port was taken after `_refuse_taken_port` checked it.
            fail(_cannot_listen(self.config.host, self.config.port))
        if self.started and self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("serving on %s (press Ctrl-C to stop)", self.url)
            self.listening.set()

    def stop(self, within_s: int | None = None) -> None:
        """Take no more requests, and end once those in progress are done. within_s: instead of `shutdown_s`."""
        if within_s is not None:
            self.config.timeout_graceful_shutdown = within_s
        self.should_exit = True

    def say_how_to_try(self) -> None:
        log.info("try     curl -F file=@talk.wav '%s/transcribe?format=text'", self.url)

    async def shutdown(self, sockets: Any = None) -> None:
        log.info("stopping; running requests have %d s to finish", self.config.timeout_graceful_shutdown)
        await super().shutdown(sockets)
