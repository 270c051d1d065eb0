"""A server in a process of its own, and N clients that each send it one audio after another."""

import http.client
import io
import queue
import re
import statistics
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from server.cli.bench.stages import SAMPLE_RATE, sound

# Seconds of audio, in turn: from short remarks to nearly the longest that one pass takes.
MIXED_LENGTHS = (4.0, 22.0, 9.0, 30.0, 6.0, 15.0, 35.0, 11.0)
STARTING_S = 600.0
REQUEST_S = 3600.0


class BenchError(Exception):
    """The server did not start, or did not answer as it should."""


@dataclass(frozen=True)
class Load:
    """`concurrency` clients at once. Throughput is seconds of audio per second; times are in seconds."""

    concurrency: int
    requests: int
    audio_s: float
    wall_s: float
    throughput: float
    p50_s: float
    p95_s: float
    first_segment_p50_s: float
    server_peak_mb: float | None


@dataclass(frozen=True)
class Answer:
    first_segment_s: float
    whole_s: float


class BenchServer:
    """A running server: its address and process id."""

    def __init__(self, process: "subprocess.Popen[str]", url: str):
        self.process = process
        self._largest_seen_mb = 0.0
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded. Raises BenchError if that fails."""
        until = time.monotonic() + STARTING_S
        while time.monotonic() < until and self.process.poll() is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
            time.sleep(0.1)
        raise BenchError("the server's model was not loaded")

    def transcribe(self, wav: bytes) -> Answer:
        """Send one file, and read its segments as they come."""
        began = time.monotonic()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=REQUEST_S)
        connection.request("POST", "/transcribe?language=en&stream=true", wav, {"content-type": "audio/wav"})
        response = connection.getresponse()
        if response.status != 200:
            raise BenchError(f"the server answered {response.status}: {response.read(500).decode(errors='replace')}")
        first = None
        for line in response:
            if first is None and line.startswith(b"event: segment"):
                first = time.monotonic() - began
            if line.startswith(b"event: error"):
                raise BenchError(f"the server failed: {response.read(500).decode(errors='replace')}")
        connection.close()
        whole = time.monotonic() - began
        self.sample_memory()
        return Answer(whole if first is None else first, whole)

    def peak_mb(self) -> float | None:
        """Peak resident memory in 10⁶ bytes: from the kernel on Linux, elsewhere the largest sample."""
        if sys.platform == "linux":
            found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
            return int(found[1]) * 1024 / 1e6 if found else None
        return self._largest_seen_mb or None

    def sample_memory(self) -> None:
        """Sample the resident memory for `peak_mb`, where the kernel does not record the peak."""
        if sys.platform != "linux":
            command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
            kilobytes = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            self._largest_seen_mb = max(self._largest_seen_mb, int(kilobytes or 0) * 1024 / 1e6)


@contextmanager
def running_server(
    model: str, dtype: str | None, tokens_per_s: float, environment: dict[str, str]
) -> Iterator[BenchServer]:
    """A server on a free port, stopped afterwards. tokens_per_s: see `paced`; 0 lets the model end its texts."""
    command = [sys.executable, "-m", "server.cli.bench.paced", model, dtype or "", str(tokens_per_s)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    addresses: queue.Queue[str | None] = queue.Queue()
    last: list[str] = []
    threading.Thread(target=_watch, args=(process, addresses, last), daemon=True).start()
    try:
        url = addresses.get(timeout=STARTING_S)
        if url is None:
            raise BenchError(f"the server did not start: {last[-1] if last else 'no output'}")
        server = BenchServer(process, url)
        server.wait_until_ready()
        yield server
    except queue.Empty:
        raise BenchError("the server did not start in time") from None
    finally:
        process.terminate()
        process.wait()


def _watch(process: "subprocess.Popen[str]", addresses: "queue.Queue[str | None]", last: list[str]) -> None:
    """Read the server's log to the end: its address goes to `addresses`, its last line to `last`, in case it fails."""
    assert process.stderr
    for line in process.stderr:
        last[:] = [line.strip()]
        if found := re.search(r"serving on (http://\S+)", line):
            addresses.put(found[1])
    addresses.put(None)


def measured_load(server: BenchServer, concurrency: int, requests: int) -> Load:
    """Send `requests` requests of mixed lengths, `concurrency` at a time."""
    lengths = [MIXED_LENGTHS[i % len(MIXED_LENGTHS)] for i in range(requests)]
    files = {length: wav_file(sound(length)) for length in set(lengths)}
    server.transcribe(files[lengths[0]])
    began = time.monotonic()
    with ThreadPoolExecutor(concurrency) as clients:
        answers = list(clients.map(lambda length: server.transcribe(files[length]), lengths))
    wall_s = time.monotonic() - began
    whole = sorted(answer.whole_s for answer in answers)
    return Load(
        concurrency=concurrency,
        requests=requests,
        audio_s=sum(lengths),
        wall_s=wall_s,
        throughput=sum(lengths) / wall_s,
        p50_s=statistics.median(whole),
        p95_s=whole[min(len(whole) - 1, int(0.95 * len(whole)))],
        first_segment_p50_s=statistics.median(answer.first_segment_s for answer in answers),
        server_peak_mb=server.peak_mb(),
    )


def wav_file(waveform: np.ndarray) -> bytes:
    """(N,) float32 at 16 kHz as 16-bit WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
