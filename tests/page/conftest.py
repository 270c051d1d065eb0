"""The page in Chromium, with a real server and the toy model behind it."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import soxr
from playwright.sync_api import Browser, Page, Playwright, WebSocketRoute, expect, sync_playwright

# Generous, for busy machines.
expect.set_options(timeout=30_000)

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"
CHROMIUM = next(
    filter(
        None,
        [
            os.environ.get("CHROMIUM"),
            *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
            shutil.which("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
        ],
    ),
    None,
)
SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip


HOW_TO_GET_IT = "no Chromium was found: apt-get install chromium, or name one in CHROMIUM=/path/to/it"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM:
        return
    skip = pytest.mark.skip(reason=HOW_TO_GET_IT)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not CHROMIUM:
        terminalreporter.write_line(f"The page was not tested; {HOW_TO_GET_IT}")


@pytest.fixture(scope="session")
def serve(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Starts a server with these settings, as the command line does, and returns its address."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(served(**{"CANARY_CACHE": cache, **settings}))


@pytest.fixture(scope="session")
def address(serve) -> str:
    return serve()


@contextmanager
def served(port: int = 0, models: tuple[str, ...] = ("toy",), **environment: str) -> Iterator[str]:
    """A server with toy models. Yields its address; 0 is any free port."""
    named = [argument for model in models for argument in ("--model", model)]
    command = [sys.executable, "-m", "server", "serve", *named, "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as server:
        assert server.stderr
        lines = []
        for line in server.stderr:
            lines.append(line)
            if "serving on http" in line:
                break
        else:
            raise AssertionError("".join(lines))
        # Keep reading, or the server would block on a full pipe.
        reader = threading.Thread(target=lambda rest: [None for _ in rest], args=(server.stderr,))
        reader.start()
        try:
            yield line.split("serving on ")[1].split()[0]
        finally:
            server.terminate()
            server.wait(30)
            reader.join(30)


# Not for the whole session: while it lives, its event loop is the thread's, and tests with their own would fail.
@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def launch(playwright: Playwright) -> Iterator[Callable[..., Browser]]:
    """Starts a Chromium with further switches."""
    browsers: list[Browser] = []

    def start(*switches: str) -> Browser:
        browsers.append(playwright.chromium.launch(executable_path=CHROMIUM, args=[*SWITCHES, *switches]))
        return browsers[-1]

    yield start
    for browser in browsers:
        browser.close()


@pytest.fixture(scope="module")
def chromium(launch) -> Browser:
    return launch()


@pytest.fixture
def visit(chromium, address) -> Iterator[Callable[..., Page]]:
    """Opens the page, by default in the module's Chromium, and checks that nothing is logged as an error.

    `prepare` is called before the page loads; `may_fail` is for tests that make its scripts fail.
    """
    contexts, complaints = [], []

    def open_page(
        browser: Browser = chromium,
        at: str = address,
        prepare: Callable[[Page], Any] | None = None,
        may_fail: bool = False,
        wait_until: Literal["load", "commit"] = "load",
        **options: Any,
    ) -> Page:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        if not may_fail:
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        if prepare:
            prepare(page)
        page.goto(at, wait_until=wait_until)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # Browsers log each failed connection, and some tests make them fail.
    expected = ("Failed to load resource", "WebSocket connection to")
    assert [text for text in complaints if not text.startswith(expected)] == []


@pytest.fixture
def page(visit) -> Page:
    """The page, ready."""
    page = visit()
    page.locator("#start:enabled").wait_for()
    return page


class FakeStream:
    """The server's end of WS /stream, played by a test.

    `connections` has every connection, `started` every start message, `sound` every frame. With `refuse` it closes
    connections at once, with `hold` it sends no ready, and with `ignore_stop` it does not answer stop.
    """

    def __init__(self) -> None:
        self.connections: list[WebSocketRoute] = []
        self.started: list[dict] = []
        self.sound: list[bytes] = []
        self.stopped = 0
        self.refuse = False
        self.hold = False
        self.ignore_stop = False

    def install(self, page: Page) -> None:
        page.route_web_socket("**/stream", self._connected)

    def _connected(self, connection: WebSocketRoute) -> None:
        self.connections.append(connection)
        if self.refuse:
            connection.close(code=1011)
            return
        connection.on_message(lambda message: self._take(connection, message))

    def _take(self, connection: WebSocketRoute, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.sound.append(message)
            return
        told = json.loads(message)
        if told["type"] == "start":
            self.started.append(told)
            if not self.hold:
                self.ready()
        if told["type"] == "stop":
            self.stopped += 1
            if not self.ignore_stop:
                self.say({"type": "done", "duration": 1.0})

    def ready(self) -> None:
        self.say({"type": "ready"})

    def seconds(self) -> float:
        """How much sound has come."""
        return sum(map(len, self.sound)) / 2 / self.started[-1]["sample_rate"]

    def say(self, message: dict) -> None:
        self.connections[-1].send(json.dumps(message))

    def result(self, segment: int, text: str, stable: int | None = None, **more: Any) -> None:
        """Sends a result: a final one if `stable` is None."""
        final = stable is None
        self.say(
            {
                "type": "result", "segment_id": segment, "text": text, "stable_chars": len(text) if final else stable,
                "is_final": final, "speech_final": final, "start": segment * 2.0, "end": segment * 2.0 + 1.5,
                "language": "en", **more,
            }
        )  # fmt: skip


@pytest.fixture
def stream() -> FakeStream:
    return FakeStream()


@pytest.fixture
def faked(visit, stream) -> Page:
    """The page, ready, with live captions played by the test."""
    page = visit(prepare=stream.install)
    page.locator("#start:enabled").wait_for()
    return page


@pytest.fixture(scope="session")
def samples() -> dict[str, dict]:
    """The recordings that ship with the toy, by language: path, text and translations."""
    told = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return {sample["language"]: {**sample, "path": SAMPLES / name} for name, sample in told.items()}


@pytest.fixture
def microphone(launch, tmp_path) -> Callable[[Path], Browser]:
    """A Chromium whose microphone hears a recording once, and then silence."""

    def hear(recording: Path) -> Browser:
        sound, rate = soundfile.read(recording, dtype="float32")
        quiet = np.zeros(48_000)
        wav = tmp_path / "heard.wav"
        soundfile.write(wav, np.concatenate([quiet, soxr.resample(sound, rate, 48_000), quiet, quiet]), 48_000)
        return launch(f"--use-file-for-fake-audio-capture={wav}%noloop")

    return hear


@dataclass
class Cue:
    start: float
    end: float
    text: str


def _read_srt(srt: str) -> list[Cue]:
    blocks = srt.strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [str(i + 1) for i in range(len(blocks))]
    return [_cue(block.split("\n", 1)[1], ",") for block in blocks]


def _read_vtt(vtt: str) -> list[Cue]:
    head, *blocks = vtt.strip().split("\n\n")
    assert head == "WEBVTT"
    assert "-->" not in "".join(block.split("\n", 1)[1] for block in blocks)
    return [_cue(block, ".") for block in blocks]


def _cue(block: str, mark: str) -> Cue:
    times, text = block.split("\n", 1)
    clock = rf"(\d\d):([0-5]\d):([0-5]\d)\{mark}(\d\d\d)"
    match = re.fullmatch(f"{clock} --> {clock}", times)
    assert match, times
    h, m, s, ms, *rest = map(int, match.groups())
    start, end = h * 3600 + m * 60 + s + ms / 1000, rest[0] * 3600 + rest[1] * 60 + rest[2] + rest[3] / 1000
    assert start < end
    return Cue(start, end, text)


@pytest.fixture(scope="session")
def read_cues() -> Callable[[str, str], list[Cue]]:
    """Reads the cues of a file, given its format ("srt" or "vtt") and content; fails if it is malformed."""
    return lambda format, text: {"srt": _read_srt, "vtt": _read_vtt}[format](text)
