"""Clients that mean harm, or are broken, on real sockets: each is let go, others go on, and nothing is left of it."""

import asyncio
import json
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from server.web import protocols
from server.web.routes import websockets
from tests.live.test_captions import START, captioned, cut, opened, told, until

TEXT, BINARY, CONTINUED, PING = 1, 2, 0, 9


@pytest.fixture(scope="module")
def tight(start_server, cache) -> httpx.Client:
    """A server that looks often, over sockets that hold little: who does not read is noticed soon."""
    client = start_server(model="toy", live_step_s=0.1)
    # what is accepted takes it over
    client.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return client


@pytest.fixture
def nothing_left(tight) -> Iterator[None]:
    """Fails if a session, a connection, a task or a process is still there some time after the test."""
    state, loop = tight.server.server_state, tight.server.servers[0].get_loop()
    tight.get("/health")

    def left() -> tuple:
        tight.get("/health")
        return sessions(tight), len(state.connections), len(state.tasks), len(asyncio.all_tasks(loop)), len(children())

    before = left()
    yield
    deadline = time.monotonic() + 20
    while (after := left()) != before:
        assert time.monotonic() < deadline, f"sessions, connections, tasks, processes: {before} before, {after} after"
        time.sleep(0.05)


def sessions(client: httpx.Client) -> int:
    found = re.search(r"^canary_live_sessions (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return int(float(found.group(1)))


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def megabytes() -> float:
    """Resident memory of this process, which holds the server."""
    return psutil.Process().memory_info().rss / 1e6


def frame(opcode: int, data: bytes = b"", fin: bool = True) -> bytes:
    """Masked with zeros, as it may be."""
    size = len(data)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size) if size < 65_536 else b""
    return bytes([fin << 7 | opcode]) + (length or b"\xff" + struct.pack("!Q", size)) + b"\0\0\0\0" + data


@contextmanager
def raw(client: httpx.Client, path: str) -> Iterator[socket.socket]:
    """A websocket whose messages nobody reads for us, and that holds little."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.settimeout(30)
        connection.connect((client.base_url.host, client.base_url.port))
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1)
        assert b"101 Switching" in answer
        yield connection


def flood(connection: socket.socket, data: bytes, seconds: float = 60) -> int:
    """Send it again and again until the server has enough; returns how many bytes that took."""
    sent, deadline = 0, time.monotonic() + seconds
    with suppress(ConnectionError):
        while True:
            assert time.monotonic() < deadline, "the server never had enough"
            sent += connection.send(data)
    return sent


def close_code(connection: socket.socket) -> int:
    """The code in the close frame that ends what the server sends."""
    received = b""
    with suppress(ConnectionError):
        while piece := connection.recv(4096):
            received += piece
    return struct.unpack("!H", received[received.rindex(b"\x88") + 2 :][:2])[0]


@pytest.mark.usefixtures("nothing_left")
async def test_who_speaks_and_never_reads_is_let_go_and_others_are_captioned_meanwhile(
    tight, pcm, samples, monkeypatch, caplog
):
    monkeypatch.setattr(websockets, "SEND_S", 1.0)
    monkeypatch.setattr(protocols, "UNREAD_S", 5.0)
    url = f"ws://{tight.base_url.host}:{tight.base_url.port}"
    before = megabytes()
    with raw(tight, "/stream") as deaf, caplog.at_level(logging.INFO):
        deaf.sendall(frame(TEXT, json.dumps(START | {"target_language": "de"}).encode()))
        speaking = threading.Thread(target=flood, args=(deaf, frame(BINARY, pcm(tail_s=1.0)), 120))
        speaking.start()
        shown, _ = await captioned(url, cut(pcm(), 32_000))
        assert " ".join(shown.words) == samples["en"].text
        await asyncio.to_thread(speaking.join)
    assert "a live session was ended: the client does not read its messages" in caplog.text
    assert megabytes() - before < 100


@pytest.mark.usefixtures("nothing_left")
def test_who_asks_again_and_again_and_never_reads_the_answers_is_let_go(tight, monkeypatch, caplog):
    monkeypatch.setattr(websockets, "SEND_S", 1.0)
    monkeypatch.setattr(protocols, "UNREAD_S", 5.0)
    asked = frame(TEXT, b'{"type": "session.update", "session": {}}')
    with raw(tight, "/v1/realtime") as deaf, caplog.at_level(logging.INFO):
        assert flood(deaf, asked) < 10_000_000
    assert "a live session was ended: the client does not read its messages" in caplog.text


@pytest.mark.usefixtures("nothing_left")
def test_pings_that_nobody_waits_for_an_answer_to_take_no_memory(tight, monkeypatch):
    monkeypatch.setattr(protocols, "UNREAD_S", 6.0)
    before = megabytes()
    with raw(tight, "/stream") as deaf:
        sent = flood(deaf, frame(PING, bytes(125)) * 2000)
    assert sent > 10_000_000
    assert megabytes() - before < 0.5 * sent / 1e6


@pytest.mark.usefixtures("nothing_left")
def test_a_message_in_pieces_without_end_is_given_up(tight):
    with raw(tight, "/stream") as connection:
        connection.sendall(frame(TEXT, fin=False) + frame(CONTINUED, fin=False) * (protocols.MAX_FRAGMENTS + 1))
        assert close_code(connection) == 1009
    with raw(tight, "/stream") as connection:
        connection.sendall(frame(BINARY, bytes(600_000), fin=False) + frame(CONTINUED, bytes(600_000), fin=False))
        assert close_code(connection) == 1009


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(3), 1002),
        (frame(CONTINUED, b"of nothing"), 1002),
        (frame(PING, bytes(126)), 1002),
        (frame(PING, fin=False), 1002),
        (b"\x82\x02no mask", 1002),
        (b"\xf2\x80\0\0\0\0", 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
    ids=["not utf-8", "unknown", "continued", "long ping", "ping in pieces", "unmasked", "reserved bits", "http"],
)
def test_frames_that_are_none_close_their_connection_with_the_protocols_code(tight, sent, code):
    with raw(tight, "/stream") as connection:
        connection.sendall(sent)
        assert close_code(connection) == code


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("path", ["/stream", "/v1/realtime"])
def test_a_thousand_messages_at_once_do_not_hold_up_who_asks_for_health(tight, path):
    with raw(tight, path) as connection:
        with suppress(ConnectionError):
            connection.sendall(frame(BINARY) * 40_000)
        assert tight.get("/health").status_code == 200


async def test_who_sends_more_than_is_taken_is_not_held_for_dead(start_server, cache, pcm, samples):
    """The answers to pings are behind the sound that waits."""
    client = start_server(model="toy", max_live_rate=2.0, max_live_buffer_s=1.1)
    client.server.config.ws_ping_interval, client.server.config.ws_ping_timeout = 0.2, 1.0
    url = f"ws://{client.base_url.host}:{client.base_url.port}"
    began = time.monotonic()
    shown, _ = await captioned(url, cut(pcm() * 2, 32_000))
    assert time.monotonic() - began > 2
    assert " ".join(shown.words) == " ".join([samples["en"].text] * 2)


@pytest.mark.usefixtures("nothing_left")
async def test_who_answers_no_ping_and_sends_nothing_is_let_go(tight, monkeypatch):
    config = tight.server.config
    monkeypatch.setattr(config, "ws_ping_interval", 0.2)
    monkeypatch.setattr(config, "ws_ping_timeout", 0.2)
    with raw(tight, "/stream") as silent:
        assert await asyncio.to_thread(close_code, silent) == 1011


@pytest.mark.usefixtures("nothing_left")
async def test_finalizing_again_and_again_takes_no_memory_and_ends_in_done(tight, pcm):
    url = f"ws://{tight.base_url.host}:{tight.base_url.port}"
    before = megabytes()
    async with opened(url) as ws:
        for _ in range(200):
            for _ in range(50):
                await ws.send('{"type": "finalize"}')
            await ws.send(bytes(320))
        await ws.send('{"type": "stop"}')
        assert [m["type"] for m in await until(ws, "done")] == ["done"]
        with pytest.raises(ConnectionClosed):
            await told(ws)
    assert megabytes() - before < 50
