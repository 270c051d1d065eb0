"""Two servers behind HAProxy, Caddy and nginx, with the configurations in docker/balancers.

`python -m tests.scale.balancers` shows the same with larger bursts, as a table.
"""

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

import httpx
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.fault.recovery import Sample

from .balancers import PROGRAMS, Server, balancer, burst, reaches, two_servers, wait_until

# What a balancer answers, or the client sees, for a request that a dead server had.
LOST = {"502 bad_gateway", "RemoteProtocolError", "ReadError"}


@dataclass(frozen=True)
class Balanced:
    name: str
    url: str
    process: psutil.Process
    log: Path
    servers: tuple[Server, Server]


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[tuple[Server, Server]]:
    with two_servers(tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.fixture(scope="module", params=PROGRAMS)
def balanced(request, servers, tmp_path_factory) -> Iterator[Balanced]:
    folder = tmp_path_factory.mktemp(request.param)
    first, second = servers
    start(servers)
    with balancer(request.param, (first.port, second.port), folder) as (process, url):
        yield Balanced(request.param, url, process, folder / "log", servers)


@pytest.fixture
def both(balanced) -> Balanced:
    """Both servers run, and get requests."""
    start(balanced.servers)
    for server in balanced.servers:
        wait_until(lambda server=server: reaches(balanced.url, server))
    return balanced


def start(servers: tuple[Server, Server]) -> None:
    """Start those that an earlier test has ended."""
    for server in servers:
        if not server.is_running:
            server.start()


def client(balanced: Balanced) -> httpx.Client:
    return httpx.Client(base_url=balanced.url, timeout=120, trust_env=False)


async def session(balanced: Balanced, sample: Sample) -> ClientConnection:
    """A live session that has been sent half of the sample."""
    opened = await connect(f"{balanced.url.replace('http', 'ws')}/stream", proxy=None, open_timeout=60)
    await opened.send(json.dumps({"type": "start", "sample_rate": 16_000, "language": sample.language}))
    assert json.loads(await opened.recv())["type"] == "ready"
    await opened.send(sample.pcm[: len(sample.pcm) // 4 * 2])
    return opened


async def finished(opened: ClientConnection, sample: Sample) -> str | None:
    """The session's text once the rest has been sent; None if the connection is lost. Closes it."""
    final = []
    try:
        await opened.send(sample.pcm[len(sample.pcm) // 4 * 2 :])
        await opened.send('{"type": "stop"}')
        async for received in opened:
            message = json.loads(received)
            if message["type"] == "result" and message["is_final"]:
                final.append(message["text"])
            if message["type"] == "done":
                return " ".join(final)
    except ConnectionClosed:
        pass
    finally:
        await opened.close()
    return None


def test_recordings_are_transcribed_by_both_servers(both):
    result = asyncio.run(burst(both.url, 8))
    assert result.outcomes == {"answered": 8}


def test_the_servers_see_the_clients_host_and_origin(both):
    with client(both) as asking:
        refused = asking.get("/v1/models", headers={"host": "attacker.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert asking.get("/v1/models", headers={"origin": both.url}).status_code == 200

    async def from_page(origin: str) -> None:
        async with connect(f"{both.url.replace('http', 'ws')}/stream", proxy=None, origin=origin):  # type: ignore[arg-type]
            pass

    asyncio.run(from_page(both.url))
    with pytest.raises(InvalidStatus, match="403"):
        asyncio.run(from_page("http://attacker.example"))


def test_an_upload_is_passed_on_as_it_comes(both):
    """The server refuses one for its declared length, and the client hears that long before the end."""
    head = "POST /transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000000\r\n\r\n"
    address, sent = httpx.URL(both.url), 0
    with socket.create_connection((address.host, address.port), 30) as connection, DefaultSelector() as answers:
        answers.register(connection, EVENT_READ)
        connection.sendall(head.encode())
        while not answers.select(0.01):
            sent += connection.send(bytes(65_536))
            assert sent < 1e9
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")


class WaitingForTheClient(BaseHTTPRequestHandler):
    """A server that sends its second event only once the client has had the first."""

    client_had_it = threading.Event()
    in_time = False

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: first\n\n")
        WaitingForTheClient.in_time = self.client_had_it.wait(20)
        self.wfile.write(b"data: second\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("name", PROGRAMS)
def test_events_are_passed_on_as_they_come(name, tmp_path, monkeypatch):
    monkeypatch.setattr(WaitingForTheClient, "client_had_it", threading.Event())
    monkeypatch.setattr(WaitingForTheClient, "in_time", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), WaitingForTheClient) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with (
                balancer(name, (server.server_port, server.server_port), tmp_path) as (_, url),
                httpx.stream("POST", url, timeout=60, trust_env=False) as response,
            ):
                lines = filter(None, response.iter_lines())
                assert next(lines) == "data: first"
                WaitingForTheClient.client_had_it.set()
                assert next(lines) == "data: second"
        finally:
            server.shutdown()
    assert WaitingForTheClient.in_time


def test_killing_a_server_loses_only_what_was_in_progress_on_it(both):
    victim, _ = both.servers
    result = asyncio.run(burst(both.url, 24, lambda: victim.kill(both.process)))
    victim.join()
    assert set(result.outcomes) <= {"answered", *LOST}
    assert 1 <= result.lost.total() <= result.in_flight
    assert result.again == result.lost.total()
    assert asyncio.run(burst(both.url, 24)).outcomes == {"answered": 24}


def test_stopping_a_server_loses_nothing_and_once_it_is_started_again_it_gets_requests(both):
    leaving, _ = both.servers
    result = asyncio.run(burst(both.url, 16, leaving.stop))
    leaving.join()
    assert result.outcomes == {"answered": 16}
    leaving.start()
    wait_until(lambda: reaches(both.url, leaving))


def test_a_live_session_goes_on_when_the_other_server_is_killed(both):
    sample = Sample.read("en")

    async def texts() -> list[str | None]:
        # With one request in progress each, least connections gives each server its own.
        sessions = [await session(both, sample) for _ in range(2)]
        both.servers[0].kill(both.process)
        return [await finished(opened, sample) for opened in sessions]

    found = asyncio.run(texts())
    both.servers[0].join()
    assert Counter(found) == {sample.text: 1, None: 1}


def test_without_any_server_the_answer_has_the_usual_format(both):
    for server in both.servers:
        server.stop()
        server.join()
    status = 502 if both.name == "nginx" else 503
    with client(both) as asking:
        # Until its next health check, Caddy tries both servers and answers 502.
        wait_until(lambda: asking.post("/transcribe", content=b"x" * 1000).status_code == status)
        answer = asking.post("/transcribe", content=b"x" * 1000)
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["retry-after"]) > 0
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert (error["type"], error["code"]) == ("server_error", "bad_gateway" if both.name == "nginx" else "unavailable")
    if both.name == "haproxy":
        # HAProxy writes it to its log once the answer has been sent.
        wait_until(lambda: f"({error['request_id']})" in both.log.read_text())
