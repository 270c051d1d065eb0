"""A server with more to do than it can: how much it still gets done, and whether its use of resources stays flat.

    python -m tests.fault.load                                  # 1×, 2× and 10× of capacity, 5 minutes each
    python -m tests.fault.load --seconds 20 --factors 1,10 --plot load.png
    python -m tests.fault.load --model toy

The model is a stand-in that takes a known time for each second of audio, or the toy, whose speed is measured first.
Requests are sent at a fixed rate, however long answers take: WAV and FLAC files, streams and translations, and beside
them junk, clients that disconnect, slow writers and slow readers. Nobody comes back after a 503.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
import soundfile

from tests.fault.outcome import KINDS, PATHS, Outcome, Service, draw, table
from tests.serving import CANARY, serving

# Seconds of audio that the stand-in transcribes in a second, and the length of each file.
SPEED, FILE_S = 20.0, 4.0
# What the toy gets instead: 6.7 s of German speech, and how often in a file. So it answers about five requests in a
# second, as the stand-in does.
SAMPLE, REPEATS = Path(__file__).parents[2] / "convert" / "toy" / "samples" / "de.flac", 9
# How many clients measure the toy's speed, and for how many seconds.
CLIENTS, MEASURED_S = 8, 10.0
# How many of these are sent for every ten requests that count.
JUNK, DISCONNECTS = 2, 1
SLOW_WRITERS, SLOW_READERS = 8, 4

STAND_IN = """
import sys, time

from server.__main__ import main
from server.engine import registry
from tests.api.conftest import MockCanary

speed = float(sys.argv.pop(1))

class Paced(MockCanary):
    def encodings(self, waveforms, between_layers=None):
        time.sleep(sum(map(len, waveforms)) / 16_000 / speed)
        self.heard.clear()
        self.tasks.clear()
        return super().encodings(waveforms)

registry.load_model = lambda settings, source, progress: Paced()
main()
"""


def recordings(waveform: np.ndarray) -> dict[str, bytes]:
    """16 kHz samples (N,) as a file of each format."""
    files = {}
    for name in ("wav", "flac"):
        file = io.BytesIO()
        soundfile.write(file, waveform, 16_000, format=name)
        files[name] = file.getvalue()
    return files


@asynccontextmanager
async def server(model: str = "stand-in", repeats: int = REPEATS) -> AsyncIterator[Service]:
    """Serves "stand-in" or "toy". Does all kinds of work once, so that workers and threads that stay are started."""
    program = ("-c", STAND_IN, str(SPEED)) if model == "stand-in" else CANARY
    # On one thread, so that the clients have a core of their own.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    with serving("--model", "toy", program=program, environment=alone) as served:
        waveform = np.full(round(FILE_S * 16_000), 0.1, np.float32)
        if model == "toy":
            waveform = np.tile(soundfile.read(SAMPLE, dtype="float32")[0], repeats)
        files, file_s = recordings(waveform), len(waveform) / 16_000
        texts, speed = await _idle_answers(served.url, files), SPEED
        if model == "toy":
            speed = file_s * await _answers_a_second(served.url, files)
        yield Service(served.url, served.process, speed, files, file_s, texts)


def _client(url: str) -> httpx.AsyncClient:
    """Makes a new connection for each request."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False)


def _body(kind: str, files: dict[str, bytes]) -> bytes:
    return files["flac" if kind == "flac" else "wav"]


def _text(kind: str, response: httpx.Response) -> str:
    body = response.text.rpartition("data: ")[2] if kind == "stream" else response.text
    return json.loads(body)["text"]


async def _idle_answers(url: str, files: dict[str, bytes]) -> dict[str, str]:
    """The text that each kind of request gets, several times over, one after the other."""
    texts: dict[str, str] = {}
    async with _client(url) as client:
        for kind, path in PATHS.items():
            for _ in range(4):
                response = (await client.post(path, content=_body(kind, files))).raise_for_status()
                assert texts.setdefault(kind, _text(kind, response)) == _text(kind, response)
    assert all(texts.values()), texts
    return texts


async def _answers_a_second(url: str, files: dict[str, bytes]) -> float:
    """How many requests are answered in a second if some clients always wait for one."""
    until, answered = time.monotonic() + MEASURED_S, 0

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal answered
        for kind in cycle(KINDS):
            (await client.post(PATHS[kind], content=_body(kind, files))).raise_for_status()
            if time.monotonic() > until:
                return
            answered += 1

    async with _client(url) as client, asyncio.TaskGroup() as everybody:
        for _ in range(CLIENTS):
            everybody.create_task(ask(client))
    return answered / MEASURED_S


class Load:
    """One run of `seconds` at `factor` times what the service can do."""

    def __init__(self, service: Service, factor: float, seconds: float):
        self._service = service
        self._address = httpx.URL(service.url)
        self.outcome = Outcome(service, factor, seconds)
        self._junk = b"\xff\xfb\x90\x64" + np.random.default_rng(1).bytes(5000)

    async def run(self) -> Outcome:
        seconds, outcome = self.outcome.seconds, self.outcome
        outcome.before = self._usage()
        async with _client(self._service.url) as self._client:
            self._until = time.monotonic() + seconds
            async with asyncio.TaskGroup() as everybody:
                for _ in range(SLOW_WRITERS):
                    everybody.create_task(self._write_slowly())
                for _ in range(SLOW_READERS):
                    everybody.create_task(self._read_slowly())
                everybody.create_task(self._ask_for_health())
                await self._send(everybody)
            deadline = time.monotonic() + 30
            # Once all is answered, what was needed for it is given back.
            while time.monotonic() < deadline:
                await asyncio.sleep(0.5)
                outcome.after = self._usage()
                if outcome.after["descriptors"] <= outcome.before["descriptors"] + 8:
                    break
        return outcome

    async def _send(self, everybody: asyncio.TaskGroup) -> None:
        every_s = self._service.file_s / self._service.speed / self.outcome.factor
        began = time.monotonic()
        for number, kind in enumerate(cycle(KINDS)):
            await asyncio.sleep(began + number * every_s - time.monotonic())
            if time.monotonic() >= self._until:
                return
            everybody.create_task(self._ask(kind))
            if number % 10 < JUNK:
                everybody.create_task(self._send_junk())
            if number % 10 < DISCONNECTS:
                everybody.create_task(self._send_and_leave())

    async def _ask(self, kind: str) -> None:
        outcome, began = self.outcome, time.monotonic()
        outcome.sent[kind] += 1
        try:
            response = await self._client.post(PATHS[kind], content=_body(kind, self._service.files))
        except httpx.HTTPError as error:
            outcome.answers[type(error).__name__] += 1
            return
        if response.status_code != 200:
            outcome.answers[f"{response.status_code} {response.json()['error']['code']}"] += 1
            if "retry-after" in response.headers:
                outcome.retry_after.append(int(response.headers["retry-after"]))
            return
        is_right = _text(kind, response) == self._service.texts[kind]
        outcome.answers["right" if is_right else "wrong"] += 1
        outcome.latencies.append(time.monotonic() - began)
        if time.monotonic() < self._until:
            outcome.good_s += self._service.file_s

    async def _send_junk(self) -> None:
        self.outcome.sent["junk"] += 1
        response = await self._client.post(PATHS["wav"], content=self._junk)
        assert response.status_code in (400, 503)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._address.host, self._address.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _send_and_leave(self) -> None:
        """Send a file and leave before the answer."""
        self.outcome.sent["disconnect"] += 1
        with contextlib.suppress(OSError):
            async with self._connection() as (_, writer):
                writer.write(_head(len(self._service.files["flac"])) + self._service.files["flac"])
                await writer.drain()
                await asyncio.sleep(0.1)

    async def _write_slowly(self) -> None:
        """Send 1 kB a second, again and again."""
        while time.monotonic() < self._until:
            self.outcome.sent["slow writer"] += 1
            with contextlib.suppress(OSError):
                async with self._connection() as (_, writer):
                    writer.write(_head(10_000_000))
                    while time.monotonic() < self._until and not writer.transport.is_closing():
                        writer.write(bytes(1000))
                        await asyncio.sleep(1)

    async def _read_slowly(self) -> None:
        """Ask for something long and read ten bytes a second."""
        while time.monotonic() < self._until:
            self.outcome.sent["slow reader"] += 1
            with contextlib.suppress(OSError):
                async with self._connection() as (reader, writer):
                    writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    while time.monotonic() < self._until and await reader.read(10):
                        await asyncio.sleep(1)

    async def _ask_for_health(self) -> None:
        while time.monotonic() < self._until:
            began = time.monotonic()
            response = await self._client.get("/health")
            assert response.status_code == 200
            self.outcome.health.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    def _usage(self) -> dict[str, float]:
        process = self._service.process
        children = process.children(recursive=True)
        return {
            "MB": process.memory_info().rss / 1e6,
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
            "children": len(children),
        }


def _head(length: int) -> bytes:
    return f"POST {PATHS['wav']} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


async def loaded(model: str, repeats: int, factors: list[float], seconds: float) -> list[Outcome]:
    """One server under each load in turn."""
    outcomes = []
    async with server(model, repeats) as service:
        await Load(service, 0.5, 5.0).run()
        for factor in factors:
            outcomes.append(await Load(service, factor, seconds).run())
            print(f"{factor:g}×: {dict(outcomes[-1].answers)}", file=sys.stderr)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="for each load")
    parser.add_argument("--factors", default="1,2,10", help="loads, in capacities")
    parser.add_argument("--model", choices=("stand-in", "toy"), default="stand-in")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of the speech in each of the toy's files")
    parser.add_argument("--plot", type=Path, help="an image to write")
    given = parser.parse_args()
    outcomes = asyncio.run(
        loaded(given.model, given.repeats, [float(factor) for factor in given.factors.split(",")], given.seconds)
    )
    print(table(outcomes))
    if given.plot:
        draw(outcomes, given.plot)


if __name__ == "__main__":
    main()
