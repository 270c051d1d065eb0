"""How long a server takes to recover from a fault under load, and what its clients lose meanwhile.

    python -m tests.fault.recovery            # every fault, as a table
    python -m tests.fault.recovery --seconds 5

Sixteen clients send files, streams, translations and live audio, each with a new connection for each request, to a
server with the toy. In the middle of a decoder step the model's thread hangs or raises, or the process dies.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import soundfile
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from server.engine import watchdog

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"
LANGUAGES = ("en", "de", "es", "fr")
IN_THREAD = ("hang", "SystemExit", "MemoryError")
OF_PROCESS = ("SIGSEGV", "SIGKILL")
CASES = [(fault, False) for fault in IN_THREAD] + [(fault, True) for fault in (*IN_THREAD, *OF_PROCESS)]
# The watchdog's floor in seconds where the model hangs. Otherwise it is that of the service, so that a busy computer is
# not taken for a second fault.
FLOOR_S = 3.0

# `canary`, whose model fails in a step once the file FAULT exists. A server started again runs the same script.
SCRIPT = """
import os, signal, sys, threading
from pathlib import Path

from server.__main__ import main
from server.engine import batching, watchdog

flag, fault, watchdog.FLOOR_S = Path(sys.argv.pop(1)), sys.argv.pop(1), float(sys.argv.pop(1))
watchdog.ASSUMED_S, watchdog.TICK_S = dict.fromkeys(watchdog.ASSUMED_S, 0.01), 0.1
step = batching.Batcher.step

def faulty(self):
    if self.rows and flag.exists():
        flag.unlink()
        match fault:
            case "hang":
                threading.Event().wait()
            case "SystemExit":
                raise SystemExit
            case "MemoryError":
                raise MemoryError
            case _:
                os.kill(os.getpid(), getattr(signal, fault))
    return step(self)

batching.Batcher.step = faulty
main()
"""


@dataclass(frozen=True)
class Answer:
    """What became of one request. how: "right", "wrong", "refused" (no connection), or what it was lost to."""

    kind: str
    sent: float
    ended: float
    how: str


@dataclass
class Outcome:
    """What became of the requests around one fault. Times are by the monotonic clock; ready_s: from the fault until
    `/ready` answers 200 again."""

    fault: str
    supervised: bool
    fault_at: float = 0.0
    ready_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    metrics: str = ""
    log: str = ""

    @property
    def recovered_at(self) -> float:
        return self.fault_at + self.ready_s

    @property
    def lost(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.how not in ("right", "wrong", "refused")]

    def count(self, how: str) -> int:
        return sum(answer.how == how for answer in self.answers)


@dataclass(frozen=True)
class Sample:
    """A recording, with its text and translation."""

    language: str
    audio: bytes
    pcm: bytes
    text: str
    translation: str

    @classmethod
    def read(cls, language: str) -> "Sample":
        path = SAMPLES / f"{language}.flac"
        told = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))[path.name]
        pcm = soundfile.read(path, dtype="int16")[0].tobytes()
        other = "de" if language == "en" else "en"
        return cls(language, path.read_bytes(), pcm, told["text"], told["translations"][other])


class Lost(Exception):
    """The request was accepted and not answered."""


class Clients:
    """Sixteen clients, each of which sends one request after another until `stop`."""

    def __init__(self, port: int):
        self._port = port
        self._url = f"http://127.0.0.1:{port}"
        self.answers: list[Answer] = []
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        kinds: dict[str, Callable[[Sample], Awaitable[bool]]] = {
            "file": self._file,
            "stream": self._stream,
            "translation": self._translation,
            "live": self._live,
        }
        samples = [Sample.read(language) for language in LANGUAGES]
        await asyncio.gather(*(self._client(kind, kinds[kind], sample) for kind in kinds for sample in samples))

    async def _client(self, kind: str, ask: Callable[[Sample], Awaitable[bool]], sample: Sample) -> None:
        while not self.stopping.is_set():
            sent = time.monotonic()
            try:
                how = "right" if await ask(sample) else "wrong"
            except (httpx.ConnectError, ConnectionRefusedError):
                how = "refused"
            except (Lost, httpx.TransportError, ConnectionClosed, ConnectionError, InvalidHandshake) as error:
                how = str(error) or type(error).__name__
            self.answers.append(Answer(kind, sent, time.monotonic(), how))
            if how != "right":
                await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def _post(self, path: str, sample: Sample):
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as client,
            client.stream("POST", path, content=sample.audio) as response,
        ):
            if response.status_code != 200:
                error = json.loads(await response.aread())["error"]
                assert int(response.headers["retry-after"]) > 0, error
                assert "x-should-retry" not in response.headers, error
                raise Lost(f"{response.status_code} {error['code']}")
            yield response

    async def _file(self, sample: Sample) -> bool:
        async with self._post(f"/transcribe?language={sample.language}&format=text", sample) as response:
            return (await response.aread()).decode().strip() == sample.text

    async def _translation(self, sample: Sample) -> bool:
        target = "de" if sample.language == "en" else "en"
        path = f"/translate?language={sample.language}&target_language={target}&format=text"
        async with self._post(path, sample) as response:
            return (await response.aread()).decode().strip() == sample.translation

    async def _stream(self, sample: Sample) -> bool:
        async with self._post(f"/transcribe?language={sample.language}&stream=true", sample) as response:
            kind = ""
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "error":
                    raise Lost(f"event {json.loads(value)['error']['code']}")
                elif name == "data" and kind == "done":
                    return json.loads(value)["text"] == sample.text
        raise Lost("the stream ended early")

    async def _live(self, sample: Sample) -> bool:
        text = []
        async with connect(f"ws://127.0.0.1:{self._port}/stream", proxy=None, open_timeout=60) as server:
            await server.send(json.dumps({"type": "start", "sample_rate": 16_000, "language": sample.language}))
            speaking = asyncio.create_task(self._speak(server, sample))
            try:
                async for received in server:
                    message = json.loads(received)
                    if message["type"] == "error":
                        raise Lost(f"event {message['code']}")
                    if message["type"] == "result" and message["is_final"]:
                        text.append(message["text"])
                    if message["type"] == "done":
                        return " ".join(text) == sample.text
            finally:
                speaking.cancel()
        raise Lost("the session ended early")

    async def _speak(self, server, sample: Sample) -> None:
        """At four times the speed of speech."""
        with contextlib.suppress(ConnectionClosed):
            for at in range(0, len(sample.pcm), 6400):
                await server.send(sample.pcm[at : at + 6400])
                await asyncio.sleep(0.05)
            await server.send('{"type": "stop"}')


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextlib.contextmanager
def served(fault: str, supervised: bool, folder: Path, port: int) -> Iterator[Path]:
    """A server in a process of its own. Yields the file whose existence makes its model fail."""
    flag = folder / "fault"
    floor_s = FLOOR_S if fault == "hang" else watchdog.FLOOR_S
    command = [sys.executable, "-c", SCRIPT, str(flag), fault, str(floor_s), "serve", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CANARY_")}
    environment["CANARY_CACHE"] = os.environ.get("CANARY_CACHE", str(folder / "cache"))
    # However busy this machine is, no live session is refused for that.
    environment["CANARY_MAX_LIVE_STEP_S"] = "30"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command + ["--supervise"] * supervised, stdout=log, stderr=log, cwd=folder, env=environment
        ) as server,
    ):
        try:
            yield flag
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            finally:
                server.kill()


async def recovery(fault: str, supervised: bool, seconds: float = 2.0) -> Outcome:
    """Inject the fault after `seconds` of load, and go on for as long once the server is ready again."""
    outcome, port = Outcome(fault, supervised), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(fault, supervised, folder, port) as flag:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as probe:
                await _until(probe, lambda ready, metrics: ready)
                clients = Clients(port)
                running = asyncio.ensure_future(clients.run())
                await asyncio.sleep(seconds)
                flag.touch()
                while flag.exists():
                    await asyncio.sleep(0.005)
                outcome.fault_at = time.monotonic()
                by_process = restarts(fault, supervised)
                count = r"canary_restarts_total\{" if by_process else r'canary_model_reloads_total\{model="toy"\} [1-9]'
                outcome.metrics = await _until(probe, lambda ready, metrics: ready and bool(re.search(count, metrics)))
                outcome.ready_s = time.monotonic() - outcome.fault_at
                await asyncio.sleep(seconds)
                clients.stopping.set()
                await running
        outcome.answers = clients.answers
        outcome.log = (folder / "log").read_text()
    return outcome


def restarts(fault: str, supervised: bool) -> bool:
    """Whether the supervisor mends this by another process, instead of the server by loading its model again."""
    return supervised and fault in ("hang", *OF_PROCESS)


async def _until(probe: httpx.AsyncClient, is_so: Callable[[bool, str], bool]) -> str:
    """Poll, on new connections, until the server's readiness and metrics are so; returns the metrics."""
    async with asyncio.timeout(120):
        while True:
            try:
                ready = await probe.get("/ready", headers={"connection": "close"})
                metrics = await probe.get("/metrics", headers={"connection": "close"})
                if is_so(ready.status_code == 200, metrics.text):
                    return metrics.text
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)


def row(outcome: Outcome) -> str:
    lost = outcome.lost
    mode = "supervised" if outcome.supervised else "alone"
    mended = "process" if restarts(outcome.fault, outcome.supervised) else "model"
    cells = [
        *(outcome.fault, mode, mended, f"{outcome.ready_s:.1f} s", len(outcome.answers), len(lost)),
        *(sum(answer.sent > outcome.recovered_at for answer in lost), outcome.count("refused"), outcome.count("wrong")),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="Seconds of load before the fault, and after it.")
    given = parser.parse_args()
    print("| fault | server | started again | ready again | requests | lost | lost later | refused | wrong |")
    print("|---|---|---|---|---|---|---|---|---|")
    for fault, supervised in CASES:
        print(row(asyncio.run(recovery(fault, supervised, given.seconds))), flush=True)


if __name__ == "__main__":
    main()
