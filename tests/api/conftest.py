"""Fixtures that start a real server on a free port and talk to it over HTTP."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn

from model.canary.config import CanaryConfig
from model.decoding import Detection, Generated
from model.task import Task
from model.transcript import Segment, Transcript, Word
from server.cli.serve import uvicorn_config
from server.engine.registry import Engines, Resolve
from server.settings import Settings
from server.web.app import create_app
from tests.configs import canary_config

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Iterator[Path]:
    """An empty cache for this test session, so that the first start converts the toy."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANARY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., httpx.Client]]:
    """Start a server with these settings and return a client for it. All servers stop at the end of the session.

    resolve: replaces the function that loads models; wait: until the default model is loaded.
    """
    running = []

    def start(resolve: Resolve | None = None, wait: bool = True, **settings) -> httpx.Client:
        # However busy this machine is with other tests, no live session is refused for that.
        usual = {"port": 0, "shutdown_s": 5, "max_live_step_s": 30.0}
        all_settings = Settings(_env_file=None, **(usual | settings))
        app = create_app(all_settings, Engines(all_settings, resolve))
        server = uvicorn.Server(uvicorn_config(app, all_settings))
        started_or_failed = threading.Event()
        startup = server.startup

        async def observed_startup(sockets=None) -> None:
            await startup(sockets)
            started_or_failed.set()

        def run() -> None:
            try:
                server.run()
            except SystemExit:  # raised by uvicorn if it cannot start
                pass
            finally:
                started_or_failed.set()

        server.startup = observed_startup  # type: ignore[method-assign]
        thread = threading.Thread(target=run, name="server")
        thread.start()
        assert started_or_failed.wait(120)
        assert server.started, "the server did not start; its log says why"
        port = server.servers[0].sockets[0].getsockname()[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        if all_settings.api_keys:
            client.headers["authorization"] = f"Bearer {all_settings.api_keys[0].get_secret_value()}"
        client.server = server  # type: ignore[attr-defined]
        running.append((client, server, thread))
        while wait and client.get("/ready").status_code == 503:
            time.sleep(0.01)
        return client

    yield start
    for client, server, _ in running:
        client.close()
        server.should_exit = True
    for _, _, thread in running:
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def toy(start_server, cache) -> httpx.Client:
    """A client of a server with the toy model."""
    return start_server(model="toy")


@dataclass(frozen=True)
class Sample:
    """A recording that ships with the toy, with its text, word times and translations."""

    language: str
    path: Path
    text: str
    words: list[dict]
    translations: dict[str, str]

    @property
    def audio(self) -> bytes:
        return self.path.read_bytes()

    @property
    def duration(self) -> float:
        return soundfile.info(self.path).duration


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """The toy's recordings by language."""
    index = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return {
        sample["language"]: Sample(
            sample["language"], SAMPLES / name, sample["text"], sample["words"], sample["translations"]
        )
        for name, sample in index.items()
    }


@dataclass
class MockCanary:
    """A model with known answers. It waits while `gate` is cleared and fails on audio with a peak above 0.9."""

    config: CanaryConfig = field(default_factory=lambda: canary_config(languages=("en", "de", "fr")))
    tokenizer: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(encode=lambda text, language: text.split())
    )
    dtype: str = "float32"
    encodes_together: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    heard: list[int] = field(default_factory=list)  # the length in samples of each audio it received
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def encodings(self, waveforms, between_layers=None) -> list[SimpleNamespace]:
        self.heard += [len(waveform) for waveform in waveforms]
        self.entered.set()
        assert self.gate.wait(30)
        if max(waveform.max() for waveform in waveforms) > 0.9:
            raise RuntimeError("secret internals at 0xdeadbeef")
        return [SimpleNamespace(features_s=0.0, encode_s=0.0) for _ in waveforms]

    def detect_language(self, encoded) -> Detection:
        return Detection("de", 0.9, "en", {"de": 0.9, "en": 0.1, "fr": 0.0})

    def utterance(self, key, encoded, task, *_) -> int:
        self.tasks.append(task)
        return key

    def running_batch(self) -> SimpleNamespace:
        """A batch in which every request is finished as soon as it joins."""
        return SimpleNamespace(
            rows=0, join=lambda keys: [Generated(key, [1, 2], [0.0, 0.0]) for key in keys], step=list
        )

    def attention(self, encoded, task, tokens) -> np.ndarray:
        return np.ones((len(tokens), 4), np.float32) / 4

    def transcript(self, generated, waveform, task, encoded=None) -> Transcript:
        duration = len(waveform) / 16000
        text = f"{duration:g} s & <{task.timestamps}>" + ("." if task.pnc else "")
        words = tuple(Word(word, i / 10, (i + 1) / 10) for i, word in enumerate(text.split()))
        segment = Segment(0.0, duration, text, tuple(generated.tokens), words if task.timestamps == "word" else ())
        return Transcript(text, task.language, task.target, duration, (segment,))


@pytest.fixture
def mock() -> Iterator[MockCanary]:
    mock = MockCanary()
    yield mock
    mock.gate.set()


@pytest.fixture
def serve_mock(start_server, mock) -> Callable[..., httpx.Client]:
    """Start a server whose models are all `mock`."""

    def serve(**settings) -> httpx.Client:
        return start_server(lambda source, progress: mock, **{"model": ("mock",), **settings})

    return serve


@pytest.fixture(scope="session")
def wav() -> Callable[..., bytes]:
    """Make a WAV file with a constant level."""

    def write(seconds: float = 1.0, level: float = 0.1) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, np.full(round(seconds * 16000), level, np.float32), 16000, format="WAV")
        return file.getvalue()

    return write
