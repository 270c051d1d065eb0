"""A device that fails takes its engine out of service; a request that is too large for it fails alone."""

import asyncio

import pytest

from model.device_errors import DeviceError, is_device_failure
from model.task import Task
from server.engine.batching import Batcher
from server.engine.passes import Pass
from server.engine.thread import Engine
from server.errors import ModelFailed, TranscriptionFailed

from .test_engine import MockBatch, MockCanary, line_of, wave

TIMEOUT = "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallback)."
NO_MEMORY = "[malloc] Unable to allocate 8589934592 bytes."


class FailingCanary(MockCanary):
    """Fails with `error` on the numbers in `in_encoding` and `in_step`. Number 0 is silence."""

    error: Exception = RuntimeError(TIMEOUT)
    in_encoding: frozenset[int] = frozenset()
    in_step: frozenset[int] = frozenset()

    def encodings(self, waveforms, between_layers=None):
        encodings = super().encodings(waveforms)
        if self.in_encoding & {int(waveform[0]) for waveform in waveforms}:
            raise self.error
        return encodings

    def running_batch(self):
        return FailingBatch(self)


class FailingBatch(MockBatch):
    def step(self):
        if self.model.in_step & {utterance.number for utterance in self.utterances}:
            raise self.model.error
        return super().step()


@pytest.fixture
def model():
    model = FailingCanary()
    yield model
    model.gate.set()


async def outcomes(engine: Engine, model: MockCanary, *numbers: int) -> list[str | type[BaseException]]:
    """What becomes of one request for each number, all sent at once: its text, or the kind of its error."""
    await engine.start()
    requests = await line_of(engine, model, *numbers)
    model.gate.set()
    done = await asyncio.gather(*requests, return_exceptions=True)
    await engine.stop()
    return [type(each) if isinstance(each, BaseException) else each.text for each in done]


@pytest.mark.parametrize(
    "message",
    [
        TIMEOUT,
        "[METAL] Command buffer execution failed: Ignored (for causing prior/excessive GPU errors) (00000004).",
        "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e).",
        "[metal::CommandEncoder] Failed to make new command queue.",
        "[metal::load_device] No Metal device available.",
        "[metal::malloc] Resource limit (499000) exceeded.",
        "cudaStreamSynchronize(stream) failed: an illegal memory access was encountered",
        "cuLaunchKernel(kernel, x, y) failed: unspecified launch failure",
        "cublasLtMatmul(handle, desc) failed with code: 13.",
    ],
)
def test_messages_of_a_failed_device(message):
    assert is_device_failure(RuntimeError(message))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(NO_MEMORY),
        RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed"),
        RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU…OutOfMemory)."),
        RuntimeError("cudaMallocAsync(&p, size, stream) failed: out of memory"),
        RuntimeError("[matmul] Last dimension of first input with shape (1,2) must match"),
        ValueError(TIMEOUT),
    ],
)
def test_messages_that_do_not_blame_the_device(error):
    assert not is_device_failure(error)


@pytest.mark.parametrize("where", ["in_encoding", "in_step"])
async def test_when_the_device_fails_whoever_runs_or_waits_is_told_and_the_engine_has_failed(model, where, caplog):
    setattr(model, where, frozenset({2}))
    engine = Engine(lambda: model, max_rows=2)
    assert await outcomes(engine, model, 1, 2, 3, 4) == [ModelFailed] * 4
    assert engine.status == "failed"
    with pytest.raises(ModelFailed):
        await engine.transcribe(wave(5), Task())
    assert "the device failed: [METAL] Command buffer" in caplog.text


async def test_a_request_that_is_too_large_for_the_device_fails_alone(model):
    model.error, model.in_step = RuntimeError(NO_MEMORY), frozenset({2})
    engine = Engine(lambda: model)
    assert await outcomes(engine, model, 1, 2, 3) == ["1", TranscriptionFailed, "3"]
    assert engine.failure is None


def test_when_each_pass_of_a_batch_is_too_large_even_alone_the_device_has_failed(model):
    model.error, model.in_step = RuntimeError(NO_MEMORY), frozenset({1, 2, 3})
    model.gate.set()
    batcher = Batcher(model, 16)
    assert batcher.join([(number, Pass(wave(number), (Task(),))) for number in (1, 2, 3)]) == []
    with pytest.raises(DeviceError, match=r"each of 3 passes failed by itself too: \[malloc\]"):
        batcher.step()


async def test_one_request_too_large_for_an_idle_device_is_its_own_fault(model):
    model.error, model.in_step = RuntimeError(NO_MEMORY), frozenset({1})
    engine = Engine(lambda: model)
    assert await outcomes(engine, model, 1) == [TranscriptionFailed]
    assert engine.failure is None


@pytest.mark.parametrize("error", [RuntimeError(NO_MEMORY), RuntimeError("unheard of"), MemoryError()])
@pytest.mark.parametrize("where", ["in_encoding", "in_step"])
async def test_when_silence_fails_after_a_request_did_the_device_has_failed(model, where, error):
    model.error = error
    setattr(model, where, frozenset({1}))
    model.in_encoding |= {0}
    engine = Engine(lambda: model)
    assert await outcomes(engine, model, 1) == [ModelFailed]
    assert engine.status == "failed"


async def test_a_device_that_fails_when_the_text_is_made_has_failed(model, monkeypatch):
    def transcript(*_):
        raise RuntimeError(TIMEOUT)

    monkeypatch.setattr(model, "transcript", transcript)
    engine = Engine(lambda: model)
    assert await outcomes(engine, model, 1, 2) == [ModelFailed] * 2
    assert engine.status == "failed"
