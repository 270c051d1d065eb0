"""A device that fails while it serves: callers are told, and the model is loaded again."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from server.engine import registry

TIMEOUT = "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002)."


@pytest.fixture
def loads(mock) -> list[str]:
    """The sources that were loaded."""
    return []


@pytest.fixture
def client(start_server, mock, loads):
    """Of a server that loads `mock`."""

    def resolve(source, progress):
        loads.append(source)
        return mock

    return start_server(resolve, model=("mock",))


def transcribe(client, wav) -> tuple[int, str | None]:
    response = client.post("/transcribe?language=en", content=wav())
    return response.status_code, response.json().get("error", {}).get("code")


def failing(waveforms, between_layers=None):
    raise RuntimeError(TIMEOUT)


def test_after_the_device_failed_the_model_is_loaded_again_and_meanwhile_requests_wait(
    client, mock, loads, monkeypatch, wav, caplog
):
    monkeypatch.setattr(registry, "RELOAD_AFTER_S", (2.0,))
    with monkeypatch.context() as broken:
        broken.setattr(mock, "encodings", failing)
        lost = client.post("/transcribe?language=en", content=wav())
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "model_failed")
    # Clients retry by themselves.
    assert int(lost.headers["retry-after"]) > 0
    assert "x-should-retry" not in lost.headers
    assert TIMEOUT in caplog.text
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["error"]["code"]) == (
        *(503, "loading"),
        "model_loading",
    )
    assert ready.json()["reason"] == "the device failed"
    assert "METAL" not in ready.text + lost.text
    assert transcribe(client, wav) == (200, None)
    assert (client.get("/ready").status_code, loads) == (200, ["mock", "mock"])
    metrics = client.get("/metrics").text
    assert 'canary_model_failures_total{model="mock",reason="device"} 1.0' in metrics
    assert 'canary_model_failures_total{model="mock",reason="hang"} 0.0' in metrics
    assert 'canary_model_reloads_total{model="mock"} 1.0' in metrics


def test_a_model_that_is_given_up_is_reported_as_failed_and_tried_again_on_request(
    client, mock, loads, monkeypatch, wav
):
    monkeypatch.setattr(registry, "RELOAD_AFTER_S", (0.0, 0.0))
    with monkeypatch.context() as broken:
        broken.setattr(mock, "encodings", failing)
        for _ in range(3):
            assert transcribe(client, wav) == (503, "model_failed")
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert ready.json()["error"]["code"] == "model_failed"
        assert ready.json()["error"]["message"] == "mock is not loaded: failed, because the device failed."
        refused = client.post("/transcribe?language=en", content=wav())
    assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "false")
    assert loads == ["mock"] * 3
    monkeypatch.setattr(registry, "RETRY_LOADING_S", 0.0)
    assert transcribe(client, wav) == (200, None)
    assert loads == ["mock"] * 4


def test_a_request_that_waited_too_long_to_start_gets_503_and_may_be_sent_again(start_server, mock, wav):
    client = start_server(lambda source, progress: mock, model=("mock",), max_rows=1, max_wait_s=2.0)
    # As if the model had been seen to take ten seconds for a second of audio.
    client.server.config.app.state.engines.default.admission._speed._audio_s = 0.2  # type: ignore[attr-defined]
    mock.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(transcribe, client, wav)
        assert mock.entered.wait(20)
        late = client.post("/transcribe?language=en", content=wav())
        assert (late.status_code, late.json()["error"]["code"]) == (503, "waited_too_long")
        # For the second that is being transcribed.
        assert int(late.headers["retry-after"]) >= 10
        assert "x-should-retry" not in late.headers
        assert not running.done()
        mock.gate.set()
        assert running.result(20) == (200, None)
    assert transcribe(client, wav) == (200, None)


def test_a_request_that_is_too_large_for_the_device_gets_500_and_the_next_is_served(client, mock, loads, wav):
    # The model's double fails on loud audio with an error that does not blame the device.
    loud = client.post("/transcribe?language=en", content=wav(level=0.95))
    assert (loud.status_code, loud.json()["error"]["code"]) == (500, "transcription_failed")
    assert transcribe(client, wav) == (200, None)
    assert loads == ["mock"]
