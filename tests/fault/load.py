"""A server with more to do than it can: what it still gets done, and whether it stays well.

    python -m tests.fault.load                                  # 1×, 2× and 10× of capacity, 5 minutes each
    python -m tests.fault.load --seconds 20 --factors 1,10 --plot load.png

The model is a stand-in that takes a known time for each second of audio. Requests are sent at a fixed rate, however
long answers take: WAV and FLAC files, streams and translations, and beside them junk, clients that disconnect, slow
writers and slow readers. Nobody comes back after a 503.
"""

import argparse
import asyncio
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile

# Seconds of audio that the stand-in transcribes in a second, and the length of each file.
SPEED, FILE_S = 20.0, 4.0
KINDS = ("wav", "flac", "stream", "translation")
# So many of these for every ten requests that count.
JUNK, DISCONNECTS = 2, 1
SLOW_WRITERS, SLOW_READERS = 8, 4
TEXT = f"{FILE_S:g} s & <none>."

SERVER = """
import sys, time
from dataclasses import dataclass

from server.__main__ import main
from server.engine import registry
from tests.api.conftest import MockCanary

speed = float(sys.argv.pop(1))

class Paced(MockCanary):
    def encodings(self, waveforms):
        time.sleep(sum(map(len, waveforms)) / 16_000 / speed)
        self.heard.clear()
        self.tasks.clear()
        return super().encodings(waveforms)

registry.load_model = lambda settings, source, progress: Paced()
main()
"""


@dataclass
class Outcome:
    """What became of the load. Times in seconds; health: how long each answer of /health took."""

    factor: float
    seconds: float
    sent: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    """Of the requests that count: "right", "503 queue_full", or what else became of them."""
    good_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    retry_after: list[int] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

    @property
    def offered(self) -> float:
        """The load that was really sent; less than `factor` if this machine is too busy for more."""
        return sum(self.sent[kind] for kind in KINDS) * FILE_S / SPEED / self.seconds

    @property
    def goodput(self) -> float:
        """Seconds of audio transcribed rightly in a second."""
        return self.good_s / self.seconds

    @property
    def health_p99_ms(self) -> float:
        return 1000 * statistics.quantiles(self.health, n=100)[98]

    @property
    def lost(self) -> Counter[str]:
        """The answers that are neither right nor a refusal."""
        return Counter({how: n for how, n in self.answers.items() if how not in ("right", "503 queue_full")})


def sound(format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(round(FILE_S * 16_000), 0.1, np.float32), 16_000, format=format)
    return file.getvalue()


@contextlib.contextmanager
def server():
    """Yields the process and its URL."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-c", SERVER, str(SPEED), "serve", "--model", "stand-in", "--port", "0"]
        process = subprocess.Popen(command, stderr=log)
        try:
            while True:
                log.seek(0)
                if found := [line.split()[-5] for line in log if "serving on" in line]:
                    break
                assert process.poll() is None, "the server did not start"
                time.sleep(0.1)
            yield psutil.Process(process.pid), found[0]
        finally:
            process.terminate()
            process.wait(60)


class Load:
    """One run. capacity: requests in a second."""

    def __init__(self, url: str, process: psutil.Process, factor: float, seconds: float):
        self._url, self._process = url, process
        self._address = httpx.URL(url)
        self.outcome = Outcome(factor, seconds)
        self._files = {"wav": sound("WAV"), "flac": sound("FLAC")}
        self._junk = b"\xff\xfb\x90\x64" + np.random.default_rng(1).bytes(5000)

    async def run(self) -> Outcome:
        seconds, outcome = self.outcome.seconds, self.outcome
        outcome.before = self._usage()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=120, trust_env=False) as self._client:
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
        every_s = FILE_S / SPEED / self.outcome.factor
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
        path = "/translate?language=de&target_language=en" if kind == "translation" else "/transcribe?language=en"
        if kind == "stream":
            path += "&stream=true"
        try:
            response = await self._client.post(path, content=self._files["flac" if kind == "flac" else "wav"])
        except httpx.HTTPError as error:
            outcome.answers[type(error).__name__] += 1
            return
        if response.status_code != 200:
            outcome.answers[f"{response.status_code} {response.json()['error']['code']}"] += 1
            if "retry-after" in response.headers:
                outcome.retry_after.append(int(response.headers["retry-after"]))
            return
        body = response.text.rpartition("data: ")[2] if kind == "stream" else response.text
        is_right = json.loads(body).get("text") == TEXT
        outcome.answers["right" if is_right else "wrong"] += 1
        outcome.latencies.append(time.monotonic() - began)
        if time.monotonic() < self._until:
            outcome.good_s += FILE_S

    async def _send_junk(self) -> None:
        self.outcome.sent["junk"] += 1
        response = await self._client.post("/transcribe?language=en", content=self._junk)
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
                writer.write(_head(len(self._files["flac"])) + self._files["flac"])
                await writer.drain()
                await asyncio.sleep(0.1)

    async def _write_slowly(self) -> None:
        """Send 1 kB a second, again and again."""
        while time.monotonic() < self._until:
            self.outcome.sent["slow writer"] += 1
            with contextlib.suppress(OSError):
                async with self._connection() as (reader, writer):
                    writer.write(_head(10_000_000))
                    while time.monotonic() < self._until and not reader.at_eof():
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
        children = self._process.children(recursive=True)
        return {
            "MB": self._process.memory_info().rss / 1e6,
            "descriptors": self._process.num_fds(),
            "threads": self._process.num_threads(),
            "children": len(children),
        }


def _head(length: int) -> bytes:
    return f"POST /transcribe?language=en HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def table(outcomes: list[Outcome]) -> str:
    """In Markdown, with the use of resources before and after each run."""
    rows = [
        "| load | requests | right | refused | lost | goodput, audio s/s | latency, median, 95 % | retry-after | "
        "/health 99 % | MB | descriptors | threads | children |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        slow = statistics.quantiles(outcome.latencies, n=20)
        retry = f"{statistics.median(outcome.retry_after):.0f} s" if outcome.retry_after else ""
        used = (f"{outcome.before[name]:.0f} → {outcome.after[name]:.0f}" for name in outcome.before)
        cells = [
            f"{outcome.factor:g}×",
            str(outcome.sent.total()),
            str(outcome.answers["right"]),
            str(outcome.answers["503 queue_full"]),
            str(outcome.lost.total()),
            f"{outcome.goodput:.1f} of {SPEED:g}",
            f"{slow[9]:.2f}, {slow[18]:.2f} s",
            retry,
            f"{outcome.health_p99_ms:.0f} ms",
            *used,
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(outcomes: list[Outcome], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    names = [f"{outcome.factor:g}×" for outcome in outcomes]
    left.bar(names, [outcome.goodput for outcome in outcomes], color="#3b6ea5")
    left.axhline(SPEED, color="black", linewidth=1, linestyle="--")
    left.set(title="Goodput", xlabel="load, of capacity", ylabel="seconds of audio per second")
    for outcome, name in zip(outcomes, names, strict=True):
        times = np.sort(outcome.health) * 1000
        right.plot(times, np.linspace(0, 100, len(times)), label=name)
    right.axvline(100, color="black", linewidth=1, linestyle="--")
    right.set(title="/health", xlabel="ms", ylabel="% answered within", xscale="log")
    right.legend(title="load")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="for each load")
    parser.add_argument("--factors", default="1,2,10", help="loads, in capacities")
    parser.add_argument("--plot", type=Path, help="an image to write")
    given = parser.parse_args()
    outcomes = []
    with server() as (process, url):
        asyncio.run(Load(url, process, 0.5, 5.0).run())
        for factor in map(float, given.factors.split(",")):
            outcomes.append(asyncio.run(Load(url, process, factor, given.seconds).run()))
            print(f"{factor:g}×: {dict(outcomes[-1].answers)}", file=sys.stderr)
    print(table(outcomes))
    if given.plot:
        draw(outcomes, given.plot)


if __name__ == "__main__":
    main()
