"""A device that fails while it serves: callers are told, and the model is loaded again."""

import time

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


def test_a_failed_device_makes_the_model_failed_until_it_is_loaded_again(client, mock, loads, monkeypatch, wav, caplog):
    def encodings(waveforms):
        raise RuntimeError(TIMEOUT)

    with monkeypatch.context() as broken:
        broken.setattr(mock, "encodings", encodings)
        assert transcribe(client, wav) == (503, "model_failed")
    assert TIMEOUT in caplog.text
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["error"]["code"]) == (503, "failed", "model_failed")
    assert "METAL" not in ready.text
    # The device works again, but nothing is tried before the time.
    assert transcribe(client, wav) == (503, "model_failed")
    assert loads == ["mock"]
    monkeypatch.setattr(registry, "RETRY_LOADING_S", 0.0)
    assert transcribe(client, wav) == (200, None)
    assert (client.get("/ready").status_code, loads) == (200, ["mock", "mock"])


def test_a_device_that_fails_again_after_loading_is_given_up_again(client, mock, loads, monkeypatch, wav):
    def encodings(waveforms):
        raise RuntimeError(TIMEOUT)

    monkeypatch.setattr(mock, "encodings", encodings)
    monkeypatch.setattr(registry, "RETRY_LOADING_S", 0.0)
    for count in (1, 2, 3):
        assert transcribe(client, wav) == (503, "model_failed")
        assert loads == ["mock"] * count
        time.sleep(0.01)  # past RETRY_LOADING_S of 0 by the clock


def test_a_request_that_is_too_large_for_the_device_gets_500_and_the_next_is_served(client, mock, loads, wav):
    # The model's double fails on loud audio with an error that does not blame the device.
    loud = client.post("/transcribe?language=en", content=wav(level=0.95))
    assert (loud.status_code, loud.json()["error"]["code"]) == (500, "transcription_failed")
    assert transcribe(client, wav) == (200, None)
    assert loads == ["mock"]
