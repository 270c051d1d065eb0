"""Several models: loaded on first use, unloaded when idle, and what clients are told while a model is not loaded."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from server.engine import registry as engines


@pytest.fixture
def loads() -> list[str]:
    """The sources of the models that were loaded, in order."""
    return []


@pytest.fixture
def may_finish() -> Iterator[threading.Event]:
    """While it is cleared, loading a model does not finish."""
    may_finish = threading.Event()
    may_finish.set()
    yield may_finish
    may_finish.set()


@pytest.fixture
def serve_models(start_server, mock, loads, may_finish) -> Callable[..., httpx.Client]:
    """Start a server whose models are all the mock, loaded in a way the tests control."""

    def resolve(source, progress):
        loads.append(source)
        progress("downloading", 30, 120)
        assert may_finish.wait(30)
        if "broken" in source:
            raise ValueError("secret internals")
        return mock

    return lambda **settings: start_server(resolve, **settings)


def test_the_first_model_is_loaded_at_the_start_and_the_others_on_first_use(serve_models, loads, wav):
    client = serve_models(model=("first", "org/second@v1", "/a/way/to/third.nemo"))
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["first", "org/second", "third"]
    assert loads == ["first"]
    for name in ("third", "first", "", "whisper-1", "third"):
        response = client.post(
            "/v1/audio/transcriptions", files={"file": wav()}, data={"model": name, "language": "en"}
        )
        assert response.status_code == 200, response.text
    assert loads == ["first", "/a/way/to/third.nemo"]
    assert client.post("/transcribe?model=org/second&language=en", content=wav()).json()["model"] == "org/second"
    assert client.get("/v1/models/org%2Fsecond").json()["id"] == "org/second"
    states = {model["id"]: model["state"] for model in client.get("/ready").json()["models"]}
    assert states == {"first": "ready", "org/second": "ready", "third": "ready"}


def test_a_known_model_can_also_be_named_by_its_repository(serve_models):
    client = serve_models(model=("canary-1b-v2",))
    assert client.get("/v1/models/nvidia%2Fcanary-1b-v2").json() == {
        "id": "canary-1b-v2",
        "object": "model",
        "created": pytest.approx(time.time(), abs=60),
        "owned_by": "nvidia",
    }


def test_an_idle_model_is_unloaded_and_loaded_again_on_the_next_request(serve_models, loads, wav):
    client = serve_models(model=("first",), idle_unload_s=0.2)
    deadline = time.monotonic() + 20
    while client.get("/ready").json()["models"][0]["state"] != "idle":
        assert time.monotonic() < deadline
    assert client.get("/ready").status_code == 200
    assert client.get("/health").json()["dtype"] is None
    assert client.post("/transcribe?language=en", content=wav()).status_code == 200
    assert loads == ["first", "first"]


def test_a_model_in_use_is_not_unloaded(serve_models, mock, loads, wav):
    client = serve_models(model=("first",), idle_unload_s=0.2)
    mock.gate.clear()
    responses: list[httpx.Response] = []
    request = threading.Thread(target=lambda: responses.append(client.post("/transcribe?language=en", content=wav())))
    request.start()
    assert mock.entered.wait(20)
    load_count = len(loads)
    time.sleep(1)  # several times the idle limit
    assert client.get("/ready").json()["models"][0]["state"] == "ready"
    mock.gate.set()
    request.join(20)
    assert responses[0].status_code == 200
    assert len(loads) == load_count


# Prints the process's memory in MB before a model is loaded, with it, and after it is unloaded. 200 MB of ballast are
# added to the toy's 5.
UNLOADED = """
import asyncio, threading
import mlx.core as mx, numpy as np, psutil
from model.task import Task
from server.engine.registry import Engines, load_model
from server.settings import Settings

def megabytes():
    return psutil.Process().memory_info().rss / 1e6

def heavy(source, progress):
    canary = load_model(settings, source, progress)
    canary.ballast = [mx.random.normal((500_000,)) for _ in range(100)]
    mx.eval(canary.ballast)
    return canary

async def main():
    before = megabytes()
    engines = Engines(settings, heavy)
    engines.start()
    async with engines.use() as engine:
        await engine.transcribe(np.random.default_rng(1).standard_normal(200_000).astype(np.float32), Task("en"))
        loaded = megabytes()
    while any(thread.name == "model" for thread in threading.enumerate()):
        await asyncio.sleep(0.05)
    print(before, loaded, megabytes())
    await engines.stop(5)

settings = Settings(_env_file=None, model="toy", idle_unload_s=0.2)
# Libraries stay: those that a model is computed with are loaded by the first one.
load_model(settings).encodings([np.zeros(16_000, np.float32)])
asyncio.run(main())
"""


def test_the_memory_of_an_unloaded_model_is_returned_to_the_system(cache):
    if sys.platform != "linux":  # only glibc's malloc keeps freed memory
        return
    done = subprocess.run([sys.executable, "-c", UNLOADED], capture_output=True, text=True, timeout=120, check=True)
    before, loaded, unloaded = map(float, done.stdout.split())
    assert loaded - before > 200
    assert unloaded - before < 30


def test_while_the_model_is_loading_the_server_answers_and_reports_progress(serve_models, may_finish, wav):
    may_finish.clear()
    client = serve_models(model=("first",), load_wait_s=0.1, wait=False)
    deadline = time.monotonic() + 20
    while client.get("/ready").json()["stage"] != "downloading":
        assert time.monotonic() < deadline
    ready = client.get("/ready")
    assert ready.status_code == 503
    assert int(ready.headers["retry-after"]) > 0
    assert (ready.json()["status"], ready.json()["progress"]) == ("loading", 0.25)
    assert ready.json()["error"]["code"] == "model_loading"
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models").status_code == 200
    refused = client.post("/v1/audio/transcriptions", files={"file": wav()})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
    assert int(refused.headers["retry-after"]) > 0
    assert "x-should-retry" not in refused.headers
    may_finish.set()
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
    assert client.post("/v1/audio/transcriptions", files={"file": wav()}).status_code == 200


def test_a_request_waits_a_while_for_its_model(serve_models, may_finish, wav):
    may_finish.clear()
    client = serve_models(model=("first",), wait=False)
    threading.Timer(0.5, may_finish.set).start()
    assert client.post("/transcribe?language=en", content=wav()).status_code == 200


def test_a_model_that_cannot_be_loaded_is_reported_and_the_others_are_served(serve_models, caplog, wav):
    client = serve_models(model=("first", "broken"))
    response = client.post("/transcribe?model=broken&language=en", content=wav())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed")
    assert response.headers["x-should-retry"] == "false"
    assert "secret" not in response.text
    assert "secret internals" in caplog.text
    assert client.post("/transcribe?model=first&language=en", content=wav()).status_code == 200


def test_a_model_whose_engine_crashed_is_loaded_again(serve_models, loads, monkeypatch, caplog, wav):
    client = serve_models(model=("first",))
    monkeypatch.setattr(engines, "RELOAD_AFTER_S", (1.0,))
    monkeypatch.setattr(client.server.config.app.state.engines.default.engine, "_free_cancelled", lambda _: 1 / 0)
    response = client.post("/transcribe?language=en", content=wav())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed")
    assert "ZeroDivisionError" in caplog.text
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "loading")
    assert ready.json()["reason"] == "the model's thread ended unexpectedly"
    assert client.post("/transcribe?language=en", content=wav()).status_code == 200
    assert (client.get("/ready").status_code, loads) == (200, ["first", "first"])


def test_polling_ready_is_enough_to_load_a_failed_model_again(serve_models, loads, monkeypatch, wav):
    client = serve_models(model=("first",))
    monkeypatch.setattr(engines, "RELOAD_AFTER_S", ())
    monkeypatch.setattr(client.server.config.app.state.engines.default.engine, "_free_cancelled", lambda _: 1 / 0)
    assert client.post("/transcribe?language=en", content=wav()).status_code == 503
    assert client.get("/ready").json()["status"] == "failed"
    monkeypatch.setattr(engines, "RETRY_LOADING_S", 0.0)
    deadline = time.monotonic() + 20
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
    assert loads == ["first", "first"]
