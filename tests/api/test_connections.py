"""Connections that are slow, idle, or too many: none shuts the others out."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from server.web import protocols, uploads
from server.web.uploads import BodyLimit


@pytest.fixture
def client(serve_mock) -> httpx.Client:
    return serve_mock()


UPLOAD = b"POST /transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


class Trickle:
    """Sends `data` over a socket every `every_s` seconds, until it is closed."""

    def __init__(self, connection: socket.socket, data: bytes, every_s: float):
        self._connection, self._data, self._every_s = connection, data, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _send(self) -> None:
        with suppress(OSError):
            while not self._done.wait(self._every_s):
                self._connection.sendall(self._data)


def test_a_body_that_falls_below_the_lowest_rate_is_given_up_after_a_window(client, connected, monkeypatch):
    monkeypatch.setattr(uploads, "WINDOW_S", 0.5)
    began = time.monotonic()
    connected.sendall(UPLOAD % 1_000_000)
    # Half of the rate.
    with Trickle(connected, bytes(200), 0.1):
        answer = received(connected)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"body_too_slow"' in answer
    assert 0.4 < time.monotonic() - began < 5


def test_a_body_that_stops_is_given_up_after_a_window_however_much_came_before(client, connected, monkeypatch):
    monkeypatch.setattr(uploads, "WINDOW_S", 0.5)
    connected.sendall(UPLOAD % 1_000_000 + bytes(500_000))
    assert connected.recv(65_536).startswith(b"HTTP/1.1 408")


def test_a_slow_phone_above_the_lowest_rate_is_waited_for(connected, monkeypatch, wav):
    monkeypatch.setattr(uploads, "WINDOW_S", 1.0)
    sound = wav()
    connected.sendall(UPLOAD % len(sound))
    for start in range(0, len(sound), 2000):
        connected.sendall(sound[start : start + 2000])
        time.sleep(0.1)
    assert connected.recv(65_536).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_during_its_upload_is_no_error(client, caplog):
    deadline = time.monotonic() + 10
    with caplog.at_level("INFO"):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
            connection.sendall(UPLOAD % 1_000_000 + bytes(500))
        while "POST /transcribe 499" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_body_has_a_deadline_that_grows_with_its_size(client, connected, monkeypatch):
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.5)
    monkeypatch.setattr(uploads, "AVERAGE", 100_000)
    monkeypatch.setattr(uploads, "SLOWEST", 10)
    began = time.monotonic()
    connected.sendall(UPLOAD % 100_000)
    with Trickle(connected, bytes(100), 0.05):
        assert connected.recv(65_536).startswith(b"HTTP/1.1 408")
    assert 1.4 < time.monotonic() - began < 5


def test_260_slow_uploads_shut_nobody_out(serve_mock, wav):
    client = serve_mock()
    address = client.base_url.host, client.base_url.port
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(260)]
        done = threading.Event()

        def trickle() -> None:
            while not done.wait(1.0):
                for connection in slow:
                    with suppress(OSError):
                        connection.sendall(bytes(1000))

        for connection in slow:
            with suppress(OSError):
                connection.sendall(UPLOAD % 10_000_000 + bytes(1000))
        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            for path in ("/health", "/ready", "/metrics"):
                assert client.get(path).status_code == 200
            deadline, answers = time.monotonic() + uploads.YOUNG_S + 10, []
            while len(answers) < 20:
                response = client.post("/transcribe", content=wav())
                if response.status_code == 200:
                    answers.append(response)
                else:
                    # All of the slow ones are still young.
                    answers.clear()
                    assert response.status_code == 503
                    assert time.monotonic() < deadline
            assert client.get("/health").status_code == 200
        finally:
            done.set()
            sender.join()


def received(connection: socket.socket) -> bytes:
    """Everything received until the server closes the connection."""
    data = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65_536):
            data += chunk
    return data


@pytest.fixture
def connected(client) -> Iterator[socket.socket]:
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        yield connection


def test_a_connection_on_which_nothing_was_sent_is_closed_without_an_answer(client, monkeypatch):
    """Browsers open spare connections, and would take a 408 for the answer to their next request."""
    monkeypatch.setattr(protocols, "HEAD_TIMEOUT_S", 0.3)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        assert received(connection) == b""


def test_a_request_without_a_complete_head_times_out(client, monkeypatch):
    monkeypatch.setattr(protocols, "HEAD_TIMEOUT_S", 0.5)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        began = time.monotonic()
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"request_too_slow"' in answer
    assert time.monotonic() - began < 5


def test_a_head_that_trickles_in_times_out_even_as_the_second_on_a_connection(connected, monkeypatch):
    connected.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connected.recv(65_536).startswith(b"HTTP/1.1 200")
    monkeypatch.setattr(protocols, "HEAD_TIMEOUT_S", 0.5)
    connected.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    deadline = time.monotonic() + 10
    with suppress(ConnectionError):
        while time.monotonic() < deadline:
            connected.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() < deadline


def test_a_body_may_take_longer_than_a_head(connected, monkeypatch):
    monkeypatch.setattr(protocols, "HEAD_TIMEOUT_S", 0.2)
    connected.sendall(b"POST /transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nju")
    time.sleep(0.6)
    connected.sendall(b"nk")
    assert connected.recv(65_536).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"NONSENSE\r\n\r\n", b"A" * 100_000])
def test_malformed_http_gets_the_usual_error_body(connected, sent):
    connected.sendall(sent)
    head, _, body = received(connected).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    error = json.loads(body)["error"]
    assert (error["code"], error["message"]) == ("bad_request", "Malformed HTTP request.")


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


MODELS = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def asked(address: tuple[str, int], request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer on a connection of its own."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request)
        if request == UPGRADE:
            connection.shutdown(socket.SHUT_WR)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("sent", [MODELS, UPGRADE], ids=["http", "websocket"])
def test_a_connection_over_the_limit_is_refused_with_the_usual_error_body_and_health_answers(
    serve_mock, monkeypatch, sent
):
    monkeypatch.setattr(BodyLimit, "DRAIN_S", 20.0)
    client = serve_mock(max_connections=1)
    address = client.base_url.host, client.base_url.port
    with ExitStack() as stack:
        # The protocol refuses connections 64 above the limit at which the application refuses requests.
        for number in range(65):
            busy = stack.enter_context(socket.create_connection(address, timeout=10))
            busy.sendall(UPLOAD % 10)
            if number:
                assert busy.recv(12) == b"HTTP/1.1 503"
        head, body = asked(address, sent)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in head
        error = json.loads(body)["error"]
        assert (error["code"], error["message"]) == (
            "too_many_requests",
            "Connection limit reached; try again shortly.",
        )
        for path in (b"health", b"ready", b"metrics"):
            head, _ = asked(address, HEALTH.replace(b"health", path))
            assert head.startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 10
    while client.get("/v1/models").status_code != 200:
        assert time.monotonic() < deadline


def test_idle_connections_over_the_limit_make_room_for_others(serve_mock):
    client = serve_mock(max_connections=1)
    address = client.base_url.host, client.base_url.port
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(80)]
        head, _ = asked(address, MODELS)
        assert head.startswith(b"HTTP/1.1 200")
        # The oldest was closed, without an answer.
        assert received(idle[0]) == b""


@pytest.mark.parametrize("sent", [MODELS, UPGRADE], ids=["http", "websocket"])
def test_open_websockets_count_towards_the_limit_of_requests(serve_mock, caplog, sent):
    client = serve_mock(max_connections=1)
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=10) as first:
        first.sendall(UPGRADE)
        assert first.recv(65_536).startswith(b"HTTP/1.1 101")
        head, body = asked(address, sent)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in head
        assert json.loads(body)["error"]["code"] == "too_many_requests"
        assert asked(address, HEALTH)[0].startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_one_address_gets_a_part_of_the_connections_if_other_machines_can_reach_the_server(serve_mock):
    public = serve_mock(host="0.0.0.0", public_without_key=True, max_connections_per_address=1)
    local = serve_mock(max_connections_per_address=1)
    for client, status in ((public, b"503"), (local, b"200")):
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address, timeout=10) as first:
            first.sendall(UPGRADE)
            assert first.recv(65_536).startswith(b"HTTP/1.1 101")
            head, _ = asked(address, MODELS)
            assert head.startswith(b"HTTP/1.1 " + status)
            assert asked(address, HEALTH)[0].startswith(b"HTTP/1.1 200")


def test_the_server_does_not_wait_for_the_body_of_a_request_over_the_limit(serve_mock, mock, monkeypatch):
    monkeypatch.setattr(BodyLimit, "DRAIN_S", 0.1)
    client = serve_mock(max_connections=1)
    address = client.base_url.host, client.base_url.port
    head = b"POST /transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with (
        socket.create_connection(address, timeout=10) as first,
        socket.create_connection(address, timeout=10) as second,
    ):
        first.sendall(UPGRADE)
        assert first.recv(65_536).startswith(b"HTTP/1.1 101")
        done = threading.Event()

        def trickle() -> None:
            with suppress(OSError):
                while not done.wait(0.05):
                    second.sendall(b"x")

        second.sendall(head)
        sender = threading.Thread(target=trickle)
        sender.start()
        answer = received(second)
        done.set()
        sender.join()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"connection: close" in answer


def test_a_client_that_stops_reading_a_large_response_is_disconnected(serve_mock, monkeypatch):
    monkeypatch.setattr(protocols, "UNREAD_S", 0.5)
    client = serve_mock()
    server = client.server  # type: ignore[attr-defined]
    server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    others = set(server.server_state.connections)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        stalled.connect((client.base_url.host, client.base_url.port))
        stalled.sendall(b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 10
        while not server.server_state.connections - others:
            assert time.monotonic() < deadline
        while server.server_state.connections - others:
            assert time.monotonic() < deadline, "the connection is still open"
            time.sleep(0.05)
