"""uvicorn's protocols, with bounds where they have none: on a request's head, and on what a client does not read."""

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

# How long a request's head may take: from its first byte, or from when the connection was made.
HEAD_S = 20.0
# Who has taken less than this many bytes a second of what waits for it, over so long, does not read.
SLOWEST, UNREAD_S = 1000, 30.0
# Pieces that a websocket message may come in.
MAX_FRAGMENTS = 10_000


class _Read(asyncio.Protocol):
    """Aborts the connection of a client that does not read, even one that is being closed."""

    transport: Transport
    loop: asyncio.AbstractEventLoop
    _looking: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        # writing is paused as soon as the system does not take all of it
        transport.set_write_buffer_limits(0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        self._stop_looking()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_looking()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._stop_looking()
        self._looking = self.loop.call_later(UNREAD_S, self._look, self.transport.get_write_buffer_size())

    def _look(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left and before - left < SLOWEST * UNREAD_S:
            self.transport.abort()
        elif left:
            self._look_later()

    def _stop_looking(self) -> None:
        if self._looking:
            self._looking.cancel()
            self._looking = None


class Http(_Read, H11Protocol):
    """Gives up a head that does not come; answers what is no HTTP, and too many connections, in the shape of errors."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # `_application` keeps to it, of websockets too
        self.limit_concurrency = None
        self._expecting: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        self.app = _application(self)
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        else:
            self._stop_expecting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(error_response(400, "This is not HTTP that can be read.", "bad_request"))

    def _refuse(self, response: Response) -> None:
        """Answer without a request, and close."""
        head = h11.Response(status_code=response.status_code, headers=[*response.raw_headers, CLOSE_HEADER])
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        if self._expecting is None:
            self._expecting = self.loop.call_later(HEAD_S, self._give_up)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._refuse(error_response(408, f"No request came within {HEAD_S:g} s.", "request_too_slow"))

    def _stop_expecting(self) -> None:
        if self._expecting:
            self._expecting.cancel()
            self._expecting = None


def _application(protocol: H11Protocol | WebSocketsSansIOProtocol) -> Any:
    """What answers a request that begins: over the most connections, of either kind, what refuses it."""
    most = protocol.config.limit_concurrency
    full = most is not None and len(protocol.connections) >= most
    return _too_many if full else protocol.config.loaded_app


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    response = answer(TooManyRequests("All connections that there may be are in use."))
    response.raw_headers.append(CLOSE_HEADER)
    await response(scope, receive, send)


class WebSocket(_Read, WebSocketsSansIOProtocol):
    """Takes whoever sends for alive, answers no pings of who does not read, and is refused over the most."""

    _heard_at = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = _application(self)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        super().data_received(data)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response and self.close_sent:
            # Refused is answered as well; uvicorn would log an error.
            self.handshake_complete = True

    def keepalive_timeout(self) -> None:
        # The answer to a ping may be behind sound that there was no room to read.
        if self.read_paused or self._heard_at > self.ping_sent_at:
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
            self.conn.data_to_send()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.conn.fail(1009, f"a message may come in {MAX_FRAGMENTS} pieces")
            self.handle_parser_exception()
