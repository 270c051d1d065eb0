"""Several models: loaded on first use, let go when idle; and what is said while they are not there."""

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
    """What was loaded, in order."""
    return []


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """While it is cleared, loading does not end."""
    held = threading.Event()
    held.set()
    yield held
    held.set()


@pytest.fixture
def serve_models(start_server, mock, loads, held) -> Callable[..., httpx.Client]:
    """Starts a server of models that are all the mock."""

    def resolve(source, progress):
        loads.append(source)
        progress("downloading", 30, 120)
        assert held.wait(30)
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


def test_known_models_go_by_their_repositorys_name_too(serve_models):
    client = serve_models(model=("canary-1b-v2",))
    assert client.get("/v1/models/nvidia%2Fcanary-1b-v2").json() == {
        "id": "canary-1b-v2",
        "object": "model",
        "created": pytest.approx(time.time(), abs=60),
        "owned_by": "nvidia",
    }


def test_a_model_that_rests_is_let_go_and_comes_back(serve_models, loads, wav):
    client = serve_models(model=("first",), idle_unload_s=0.2)
    deadline = time.monotonic() + 20
    while client.get("/ready").json()["models"][0]["state"] != "idle":
        assert time.monotonic() < deadline
    assert client.get("/ready").status_code == 200
    assert client.get("/health").json()["dtype"] is None
    assert client.post("/transcribe?language=en", content=wav()).status_code == 200
    assert loads == ["first", "first"]


def test_a_model_in_use_is_not_let_go(serve_models, mock, loads, wav):
    client = serve_models(model=("first",), idle_unload_s=0.2)
    mock.gate.clear()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(client.post("/transcribe?language=en", content=wav())))
    asking.start()
    assert mock.entered.wait(20)
    loaded = len(loads)
    time.sleep(1)  # several times the idle limit
    assert client.get("/ready").json()["models"][0]["state"] == "ready"
    mock.gate.set()
    asking.join(20)
    assert answers[0].status_code == 200
    assert len(loads) == loaded


# Prints the megabytes of a process with nothing, a model, and no model any more. 200 MB are added to the toy's 5.
UNLOADED = """
import asyncio, threading
import mlx.core as mx, numpy as np
from model.task import Task
from server.engine.registry import Engines, load_model
from server.settings import Settings

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

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
load_model(settings)
asyncio.run(main())
"""


def test_the_memory_of_a_model_that_is_let_go_is_the_systems_again(cache):
    if sys.platform != "linux":  # there nothing is kept that would have to be given back
        return
    done = subprocess.run([sys.executable, "-c", UNLOADED], capture_output=True, text=True, timeout=120, check=True)
    before, loaded, unloaded = map(float, done.stdout.split())
    assert loaded - before > 200
    assert unloaded - before < 30


def test_while_the_model_is_loaded_the_server_answers_and_says_how_far_it_is(serve_models, held, wav):
    held.clear()
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
    held.set()
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
    assert client.post("/v1/audio/transcriptions", files={"file": wav()}).status_code == 200


def test_a_request_waits_a_while_for_its_model(serve_models, held, wav):
    held.clear()
    client = serve_models(model=("first",), wait=False)
    threading.Timer(0.5, held.set).start()
    assert client.post("/transcribe?language=en", content=wav()).status_code == 200


def test_a_model_that_cannot_be_loaded_is_said_to_be_and_the_others_are_served(serve_models, caplog, wav):
    client = serve_models(model=("first", "broken"))
    response = client.post("/transcribe?model=broken&language=en", content=wav())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed")
    assert response.headers["x-should-retry"] == "false"
    assert "secret" not in response.text
    assert "secret internals" in caplog.text
    assert client.post("/transcribe?model=first&language=en", content=wav()).status_code == 200


def test_a_model_whose_engine_broke_is_said_to_have_failed_and_is_loaded_anew(
    serve_models, loads, monkeypatch, caplog, wav
):
    client = serve_models(model=("first",))
    monkeypatch.setattr(client.server.config.app.state.engines.default.engine, "_free_cancelled", lambda _: 1 / 0)
    for _ in range(2):
        response = client.post("/transcribe?language=en", content=wav())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed")
    assert "ZeroDivisionError" in caplog.text
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["error"]["code"]) == (503, "failed", "model_failed")
    assert loads == ["first"]
    monkeypatch.setattr(engines, "RETRY_LOADING_S", 0.0)
    assert client.post("/transcribe?language=en", content=wav()).status_code == 200
    assert (client.get("/ready").status_code, loads) == (200, ["first", "first"])


def test_a_model_that_failed_is_loaded_anew_also_where_nobody_asks_but_whether_it_is_ready(
    serve_models, loads, monkeypatch, wav
):
    client = serve_models(model=("first",))
    monkeypatch.setattr(client.server.config.app.state.engines.default.engine, "_free_cancelled", lambda _: 1 / 0)
    assert client.post("/transcribe?language=en", content=wav()).status_code == 503
    monkeypatch.setattr(engines, "RETRY_LOADING_S", 0.0)
    deadline = time.monotonic() + 20
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
    assert loads == ["first", "first"]
