"""Two servers behind a load balancer: what a burst of requests loses when one of them is stopped or killed.

    python -m tests.scale.balancers                                  # HAProxy, Caddy and nginx, 80 requests in a burst
    python -m tests.scale.balancers --balancers haproxy --requests 200

Needs the programs (Debian's packages haproxy, caddy and nginx). They run with the configurations in docker/balancers;
only addresses are changed. The servers have the toy. Each request uploads a recording on a connection of its own.
"""

import argparse
import asyncio
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile

from tests.fault.recovery import LANGUAGES, Sample, free_port

CONFIGURATIONS = Path(__file__).parents[2] / "docker" / "balancers"
# The servers' addresses in the configurations.
ADDRESSES = ("10.0.0.5:8000", "10.0.0.6:8000")
# Where Debian keeps haproxy and nginx.
PATH = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))


@dataclass(frozen=True)
class Program:
    """listens: the address in its configuration that it listens on; arguments: to run in the configuration's folder."""

    files: tuple[str, ...]
    listens: str
    arguments: tuple[str, ...]


PROGRAMS = {
    "haproxy": Program(("haproxy.cfg", "machines.cfg"), "bind :8000", ("-f", "haproxy.cfg", "-f", "machines.cfg")),
    "caddy": Program(("Caddyfile",), "\n:8000 {", ("run", "--config", "Caddyfile")),
    "nginx": Program(
        ("nginx.conf",), "listen 8000;", ("-p", ".", "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off; pid pid;")
    ),
}


class Server:
    """`canary serve` with the toy, in a process of its own, always on the same port."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again once it has ended, and wait until it is ready."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CANARY_")}
        environment["CANARY_CACHE"] = os.environ.get("CANARY_CACHE", str(self._folder.parent / "cache"))
        # So that a busy computer has the time to finish all of a burst.
        command = [sys.executable, "-m", "server", "serve", "--port", str(self.port), "--shutdown", "120"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=log)
        wait_until(lambda: is_ready(self.url) or not self.is_running)
        assert self.is_running, (self._folder / "log").read_text()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, once it has finished what it has begun."""
        assert self._process
        self._process.terminate()

    def kill(self, balancer: psutil.Process) -> int:
        """End it at once. Returns how many requests of the balancer were in progress, and perhaps a health check."""
        assert self._process
        # Stopped, so that the number does not change any more.
        self._process.send_signal(signal.SIGSTOP)
        in_flight = connections(balancer, self.port)
        self._process.kill()
        return in_flight

    def join(self) -> int | None:
        """Wait for its end; returns the exit code."""
        return self._process.wait(150) if self._process else None

    @property
    def probes(self) -> int:
        """How many times it was asked for its health."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=10).text
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in text.splitlines()
            if line.startswith("canary_requests_total{") and '"/health"' in line
        )


def connections(balancer: psutil.Process, port: int) -> int:
    """How many a load balancer has to a server's port."""
    processes = [balancer, *balancer.children(recursive=True)]
    every = [connection for process in processes for connection in process.net_connections("tcp")]
    return sum(bool(each.raddr) and each.raddr.port == port for each in every)


@contextlib.contextmanager
def two_servers(folder: Path) -> Iterator[tuple[Server, Server]]:
    first, second = Server(folder / "first"), Server(folder / "second")
    try:
        # One after the other: the first converts the toy.
        first.start()
        second.start()
        yield first, second
    finally:
        for server in (first, second):
            if server.is_running:
                server.stop()
        for server in (first, second):
            server.join()


@contextlib.contextmanager
def balancer(name: str, ports: tuple[int, int], folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A load balancer before the servers on these ports: its process, and its address. folder: for its files."""
    program, path, port = PROGRAMS[name], shutil.which(name, path=PATH), free_port()
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    texts = {file: (CONFIGURATIONS / file).read_text(encoding="utf-8") for file in program.files}
    changes = {program.listens: program.listens.replace("8000", str(port))}
    changes |= {there: f"127.0.0.1:{server_port}" for there, server_port in zip(ADDRESSES, ports, strict=True)}
    for old, new in changes.items():
        assert any(old in text for text in texts.values()), f"the configuration has no {old!r}"
        texts = {file: text.replace(old, new) for file, text in texts.items()}
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    environment, url = {"HOME": str(folder), "PATH": PATH}, f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([path, *program.arguments], cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            wait_until(lambda: is_ready(url) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield psutil.Process(process.pid), url
        finally:
            process.terminate()
            process.wait(30)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def reaches(url: str, server: Server) -> bool:
    """Whether one of four requests through the load balancer comes to this server."""
    before = server.probes
    for _ in range(4):
        httpx.get(f"{url}/health", trust_env=False, timeout=10)
    return server.probes > before


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Burst:
    """What became of requests that were sent at once.

    outcomes: "answered", "wrong", "refused" (503, the queue is full), or what a request was lost to; in_flight: how
    many the killed server had; again: how many of the lost ones were answered when they were sent once more.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    again: int = 0

    @property
    def lost(self) -> Counter[str]:
        return Counter({how: n for how, n in self.outcomes.items() if how not in ("answered", "wrong", "refused")})


async def burst(url: str, requests: int, meanwhile: Callable[[], int | None] = lambda: None) -> Burst:
    """Send so many requests at once. meanwhile: called once a tenth of them are answered; returns `in_flight`."""
    samples = {sample: wav(sample) for sample in map(Sample.read, LANGUAGES)}
    answers, some_are_answered = 0, asyncio.Event()

    async def ask(sample: Sample) -> str:
        nonlocal answers
        try:
            response = await client.post(f"/transcribe?language={sample.language}&format=text", content=samples[sample])
        except httpx.TransportError as error:
            return type(error).__name__
        if response.status_code != 200:
            code = response.json()["error"]["code"]
            return "refused" if code == "queue_full" else f"{response.status_code} {code}"
        answers += 1
        if answers >= requests / 10:
            some_are_answered.set()
        return "answered" if response.text.strip() == sample.text else "wrong"

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300, trust_env=False) as client:
        sent = list(islice(cycle(samples), requests))
        asking = asyncio.gather(*map(ask, sent))
        waiting = asyncio.create_task(some_are_answered.wait())
        await asyncio.wait([asking, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        result = Burst(in_flight=meanwhile() or 0)
        outcomes = await asking
        result.outcomes.update(outcomes)
        lost = [sample for sample, outcome in zip(sent, outcomes, strict=True) if outcome in result.lost]
        result.again = (await asyncio.gather(*map(ask, lost))).count("answered")
    return result


def wav(sample: Sample) -> bytes:
    """As the server reads it itself, without a decoder in another process."""
    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(sample.pcm, np.int16), 16_000, format="WAV")
    return file.getvalue()


def report(name: str, servers: tuple[Server, Server], folder: Path, requests: int) -> None:
    first, second = servers

    def tell(what: str, result: Burst) -> None:
        lost = ", ".join(f"{count} × {how}" for how, count in result.lost.most_common()) or 0
        counts = (result.outcomes[how] for how in ("answered", "refused", "wrong"))
        cells = [name, what, requests, *counts, lost, result.in_flight or "", result.again or ""]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)

    def sent(meanwhile: Callable[[], int | None] = lambda: None) -> Burst:
        return asyncio.run(burst(url, requests, meanwhile))

    def start_again() -> None:
        first.join()
        first.start()
        wait_until(lambda: reaches(url, first))

    with balancer(name, (first.port, second.port), folder) as (process, url):
        tell("both run", sent())
        tell("one is stopped (SIGTERM)", sent(first.stop))
        start_again()
        tell("one is killed (SIGKILL)", sent(lambda: first.kill(process)))
        tell("the other alone", sent())
        start_again()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balancers", default=",".join(PROGRAMS), help="which, separated by commas")
    parser.add_argument("--requests", type=int, default=80, help="in each burst")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, two_servers(Path(name)) as servers:
        print(
            "| balancer | servers | requests | answered | refused | wrong | lost | in flight | sent again, answered |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for each in given.balancers.split(","):
            folder = Path(name) / each
            folder.mkdir()
            report(each, servers, folder, given.requests)


if __name__ == "__main__":
    main()
