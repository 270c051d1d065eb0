"""uvicorn's protocols with the limits they lack: timeouts for slow request heads and for clients that do not read."""

import asyncio
from asyncio import TimerHandle, Transport
from typing import Any

import h11
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from server.errors import TooManyRequests
from server.web.answers import answer, error_response
from server.web.middleware import PROBES

# How long a request's head may take, counted from its first byte or from when the connection was made.
HEAD_TIMEOUT_S = 20.0
# A client that reads fewer bytes per second of the data waiting for it, over this many seconds, is disconnected.
MIN_BYTES_PER_S, UNREAD_S = 1000, 30.0
# How many frames one websocket message may be split into.
MAX_FRAGMENTS = 10_000


class _ReadTimeout(asyncio.Protocol):
    """Aborts the connection of a client that does not read, even while it is being closed."""

    transport: Transport
    loop: asyncio.AbstractEventLoop
    _read_timer: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        # Pause writing as soon as the system's send buffer is full.
        transport.set_write_buffer_limits(0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_read_timer()

    def resume_writing(self) -> None:
        self._stop_read_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_read_timer()
        super().connection_lost(exc)

    def _start_read_timer(self) -> None:
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(UNREAD_S, self._check_progress, self.transport.get_write_buffer_size())

    def _check_progress(self, unread_before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread and unread_before - unread < MIN_BYTES_PER_S * UNREAD_S:
            self.transport.abort()
        elif unread:
            self._start_read_timer()

    def _stop_read_timer(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
            self._read_timer = None


class Http(_ReadTimeout, H11Protocol):
    """Times out slow request heads. Answers malformed HTTP and too many connections with the usual error body.

    When the connection limit is reached, the connection that has been idle for longest is closed.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # `_application` enforces the limit instead, for websockets too.
        self.limit_concurrency = None
        self._head_timer: TimerHandle | None = None
        self._head_has_begun = False
        self._idle_since = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no complete request head has arrived since the last answer."""
        return self.conn.their_state is h11.IDLE

    @property
    def can_be_closed(self) -> bool:
        return self.is_idle and not self.transport.is_closing()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._start_head_timer()
        if _is_full(self):
            self._close_longest_idle()

    def data_received(self, data: bytes) -> None:
        self.app = _application(self)
        super().data_received(data)
        self._head_has_begun = self.is_idle
        if self.is_idle:
            self._start_head_timer()
        else:
            self._stop_head_timer()

    def on_response_complete(self) -> None:
        self._idle_since, self._head_has_begun = self.loop.time(), False
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(error_response(400, "Malformed HTTP request.", "bad_request"))

    def _refuse(self, response: Response) -> None:
        """Send a response that belongs to no parsed request, and close."""
        head = h11.Response(status_code=response.status_code, headers=[*response.raw_headers, CLOSE_HEADER])
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_timed_out)

    def _head_timed_out(self) -> None:
        if not self._head_has_begun:
            # Browsers open spare connections, and would take a 408 for the answer to their next request.
            self.transport.close()
        elif not self.transport.is_closing():
            message = f"No complete request head was received within {HEAD_TIMEOUT_S:g} s."
            self._refuse(error_response(408, message, "request_too_slow"))

    def _close_longest_idle(self) -> None:
        idle = [each for each in self.connections if isinstance(each, Http) and each is not self and each.can_be_closed]
        if idle:
            min(idle, key=lambda each: each._idle_since).transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


def _is_full(protocol: H11Protocol | WebSocketsSansIOProtocol) -> bool:
    limit = protocol.config.limit_concurrency
    return limit is not None and len(protocol.connections) >= limit


def _application(protocol: H11Protocol | WebSocketsSansIOProtocol) -> Any:
    """The application for the next request; at the connection limit, one that answers only probes."""
    app: Any = protocol.config.loaded_app
    if not _is_full(protocol):
        return app

    async def only_probes(scope: Scope, receive: Receive, send: Send) -> None:
        response: Any = app
        if scope["type"] != "http" or scope["path"] not in PROBES:
            # Most of these connections are idle or refused: nothing tells when the next one closes.
            response = answer(TooManyRequests("Connection limit reached; try again shortly."))
            response.raw_headers.append(CLOSE_HEADER)
        await response(scope, receive, send)

    return only_probes


class WebSocket(_ReadTimeout, WebSocketsSansIOProtocol):
    """Takes any received data as a sign of life, and does not answer the pings of a client that does not read."""

    _last_received_at = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = _application(self)

    def data_received(self, data: bytes) -> None:
        self._last_received_at = self.loop.time()
        super().data_received(data)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response and self.close_sent:
            # The handshake was answered with a refusal; otherwise uvicorn would log an error.
            self.handshake_complete = True

    def keepalive_timeout(self) -> None:
        # The pong may be queued behind audio that is not read yet.
        if self.read_paused or self._last_received_at > self.ping_sent_at:
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()
            if not self.writable.is_set():
                self.transport.abort()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            # Drop the pong: it would only add to what the client does not read.
            self.conn.data_to_send()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.conn.fail(1009, f"message split into more than {MAX_FRAGMENTS} frames")
            self.handle_parser_exception()
