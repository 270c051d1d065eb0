"""Whatever is sent to a server, each line of its log is one event, and JSON if that was asked for."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests import muxing

JUNK = np.random.default_rng(1).integers(0, 256, 200_000, np.uint8).tobytes()
SECOND = muxing.tone()
# How files begin, by container: the rest of each is junk.
BEGINNINGS = {
    "wav": muxing.encoded(SECOND, 16000, "WAV")[:44],
    "aiff": muxing.encoded(SECOND, 16000, "AIFF")[:54],
    "flac": muxing.encoded(SECOND, 16000, "FLAC")[:200],
    "mp3": muxing.encoded(SECOND, 16000, "MP3")[:600],
    "ogg": muxing.encoded(SECOND, 16000, "OGG", "VORBIS")[:5000],
    "caf": muxing.encoded(SECOND, 16000, "CAF")[:80],
    "m4a": muxing.written_by_av(SECOND, 16000, "ipod", "aac")[:600],
    "mp4": muxing.written_by_av(SECOND, 16000, "mp4", "aac", **muxing.FRAGMENTS)[:900],
    "mov": muxing.written_by_av(SECOND, 16000, "mov", "aac")[:600],
    "webm": muxing.written_by_av(SECOND, 48000, "webm", "libopus")[:400],
    "aac": muxing.written_by_av(SECOND, 16000, "adts", "aac")[:400],
    # Frame after frame that looks like sound and is not: mpg123 writes a line for each.
    "mp3-frames": b"".join(b"\xff\xfb\x90\x00" + JUNK[i : i + 413] for i in range(0, 100_000, 413)),
}
NOT_HTTP = {
    "words": b"GARBAGE\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    "length": b"POST /transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "chunks": b"POST /transcribe HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    "cut off": b"POST /transcribe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
    "second": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nJUNK\r\n\r\n",
}


@dataclass
class Server:
    """A server with a JSON log. lines: what it wrote to stderr."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    is_ready: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"serving on (http://[\d.:]+)", line):
                self.url = found[1]
            if "try     curl" in line:
                self.is_ready.set()


@pytest.fixture(scope="module")
def server(cache, tmp_path_factory) -> Iterator[Server]:
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--log-format", "json", "--cache", str(cache)]
    folder = tmp_path_factory.mktemp("server")
    process = subprocess.Popen(
        [*command, "--dtype", "float32"], stderr=subprocess.PIPE, text=True, cwd=folder, errors="replace"
    )
    with process:
        server = Server(process)
        reading = threading.Thread(target=server.read)
        reading.start()
        assert server.is_ready.wait(120), server.lines
        try:
            yield server
        finally:
            process.terminate()
            reading.join(60)


def events(server: Server, since: int) -> list[dict]:
    """What was logged after the first `since` lines, up to a request that is made now."""
    mark = httpx.get(f"{server.url}/a-mark", trust_env=False, timeout=60).headers["x-request-id"]
    while not any(mark in line for line in server.lines[since:]):
        assert server.process.poll() is None
    lines = [line for line in server.lines[since:] if mark not in line]
    assert all(line.startswith("{") for line in lines), [line for line in lines if not line.startswith("{")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("container", BEGINNINGS)
def test_a_damaged_recording_is_at_most_two_events_in_the_log_whatever_its_container(server, container):
    since = len(server.lines)
    files = {"file": (container, BEGINNINGS[container] + JUNK)}
    status = httpx.post(f"{server.url}/transcribe", files=files, trust_env=False, timeout=60).status_code
    logged = events(server, since)
    # The decoder may say why.
    assert len(logged) <= 2
    assert {event["level"] for event in logged} == {"info"}
    assert logged[-1]["status"] == status


@pytest.mark.parametrize("what", NOT_HTTP)
def test_a_malformed_request_is_at_most_two_events_without_a_traceback(server, what):
    since = len(server.lines)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(NOT_HTTP[what])
        connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while connection.recv(65_536):
                pass
    logged = events(server, since)
    assert len(logged) <= 2
    for event in logged:
        assert event["level"] in ("info", "warning")
        assert "exception" not in event


UNCAUGHT = """
import logging, sys, threading, time, warnings
from server.logs import configure_logging
configure_logging("info", sys.argv[1])
logging.getLogger("a").error("in the log", exc_info=ValueError("one\\ntwo"))
logging.getLogger("a").warning("with a stack", stack_info=True)
warnings.warn("a warning")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
class Broken:
    def __del__(self):
        raise OSError("while it is freed")
Broken()
raise KeyError("in the main thread")
"""


def test_whatever_nobody_catches_is_one_line_of_json_with_its_traceback_inside(tmp_path):
    run = subprocess.run([sys.executable, "-c", UNCAUGHT, "json"], capture_output=True, text=True, timeout=60, env=None)
    told = [json.loads(line) for line in run.stderr.splitlines()]
    assert [event["level"] for event in told] == ["error", "warning", "warning", "critical", "error", "critical"]
    logged, stack, warned, in_thread, freed, in_main = told
    assert logged["exception"] == "ValueError: one\ntwo"
    assert "Stack (most recent call last)" in stack["stack"]
    assert "a warning" in warned["message"]
    assert in_thread["message"] == "unexpected error in thread worker"
    assert in_thread["exception"].endswith("ZeroDivisionError: division by zero")
    assert freed["exception"].endswith("OSError: while it is freed")
    assert in_main["exception"].endswith("KeyError: 'in the main thread'")
    assert run.returncode == 1


def test_a_text_log_has_each_warning_on_one_line(tmp_path):
    run = subprocess.run([sys.executable, "-c", UNCAUGHT, "text"], capture_output=True, text=True, timeout=60)
    assert sum("a warning" in line for line in run.stderr.splitlines()) == 1


# ---- keys ----


KEY = "a-long-secret-key"


def refused(run_canary, *options: str | Path) -> str:
    """What `canary serve` says before it ends, since there is no such model."""
    run = run_canary("serve", "--model", "none.nemo", "--port", "0", *options)
    assert run.returncode != 0
    assert KEY not in run.stdout + run.stderr
    return run.stderr


def test_api_key_as_an_option_still_works_with_one_line_that_names_what_to_use(run_canary):
    told = refused(run_canary, "--host", "0.0.0.0", "--api-key", KEY)
    (line,) = [line for line in told.splitlines() if "deprecated" in line]
    assert "use CANARY_API_KEYS or --api-key-file" in line
    assert "no such file" in told.splitlines()[-1]


def test_a_key_file_that_others_can_read_is_warned_of_in_one_line(run_canary, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# for the office\n\n{KEY}\n  another-long-key  \n")
    file.chmod(0o644)
    warned = f"other users of this machine can read the API keys in {file}; run: chmod 600 {file}"
    assert warned in refused(run_canary, "--host", "0.0.0.0", "--api-key-file", file)
    file.chmod(0o600)
    told = refused(run_canary, "--host", "0.0.0.0", "--api-key-file", file)
    assert "other users" not in told
    assert "no such file" in told.splitlines()[-1]
