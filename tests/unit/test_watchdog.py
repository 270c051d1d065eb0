"""A model that hangs, and whatever else ends the engine's loop: everybody is told, and nobody waits forever."""

import asyncio
import time

import pytest

from model.task import Task
from server.engine import watchdog
from server.engine.passes import Pass
from server.engine.thread import Engine
from server.engine.waiting import LIVE
from server.engine.watchdog import Heartbeat, Watchdog
from server.errors import ModelFailed, WaitedTooLong

from .test_engine import MockBatch, MockCanary, line_of, until, wave


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


@pytest.fixture
def quick(monkeypatch) -> None:
    """Work may take 0.2 s."""
    monkeypatch.setattr(watchdog, "TICK_S", 0.01)
    monkeypatch.setattr(watchdog, "FLOOR_S", 0.2)
    monkeypatch.setattr(watchdog, "ASSUMED_S", dict.fromkeys(watchdog.ASSUMED_S, 0.0))


class FailingCanary(MockCanary):
    """Raises `error` in every step, and does what `in_encoding` does before it encodes."""

    error: BaseException | None = None

    def in_encoding(self) -> None:
        pass

    def encodings(self, waveforms, between_layers=None):
        encodings = super().encodings(waveforms)
        self.in_encoding()
        return encodings

    def running_batch(self):
        return FailingBatch(self)


class FailingBatch(MockBatch):
    def step(self):
        if self.model.error:
            raise self.model.error
        return super().step()


@pytest.fixture
def model():
    model = FailingCanary()
    yield model
    model.gate.set()


def limit_s(heartbeat: Heartbeat, kind: str, size: float) -> float:
    heartbeat.beat(kind, size)
    assert heartbeat.work
    return heartbeat.work.limit_s


def test_work_may_take_a_floor_and_many_times_what_such_work_has_taken(clock):
    heartbeat = Heartbeat()
    # Nothing is known yet: a slow computer is assumed.
    assert limit_s(heartbeat, "encode", 40) == 60 + 20 * 40 * 0.25
    clock.now += 4.0  # 0.1 s for a second of audio
    assert limit_s(heartbeat, "encode", 10) == pytest.approx(60 + 20 * 10 * 0.1)
    clock.now += 10.0  # ten times slower
    assert limit_s(heartbeat, "encode", 10) == pytest.approx(60 + 20 * 10 * 1.0)
    assert limit_s(heartbeat, "step", 16) == 60 + 20 * 16 * 0.25


def test_a_slow_moment_is_forgotten_in_time(clock):
    heartbeat = Heartbeat()
    heartbeat.beat("step", 1)
    clock.now += 3.0
    for _ in range(200):
        heartbeat.beat("step", 1)
        clock.now += 0.01
    assert limit_s(heartbeat, "step", 1) == pytest.approx(60 + 20 * 0.01, abs=0.1)


class Looks:
    """In the place of the watchdog's event: each look finds the clock moved by the next gap; then it ends."""

    def __init__(self, clock: Clock, gaps: list[float]):
        self._clock, self._gaps = clock, gaps

    def wait(self, timeout: float) -> bool:
        if not self._gaps:
            return True
        self._clock.now += self._gaps.pop(0)
        return False


@pytest.mark.parametrize(
    ("gaps", "found"),
    [
        pytest.param([1.0] * 60, 0, id="as long as it may take"),
        pytest.param([1.0] * 62, 1, id="longer"),
        pytest.param([1.0] * 200, 1, id="much longer: told once"),
        pytest.param([1.0] * 10 + [36_000.0] + [1.0] * 40, 0, id="a night's sleep in between"),
        pytest.param([5.0] * 20, 0, id="a computer so busy that each look is late"),
        pytest.param([5.0] * 40, 1, id="such a computer, but for long"),
    ],
)
def test_a_hang_is_told_by_the_time_that_the_watchdog_itself_has_run(clock, monkeypatch, gaps, found):
    monkeypatch.setattr(watchdog, "ASSUMED_S", dict.fromkeys(watchdog.ASSUMED_S, 0.0))
    heartbeat, hangs = Heartbeat(), []
    watching = Watchdog(heartbeat, hangs.append)
    watching._ended = Looks(clock, gaps)  # type: ignore[assignment]
    heartbeat.beat("encode", 4)
    watching._watch()
    assert [str(work) for work in hangs] == ["encode of 4 s of audio"] * found


def test_each_beat_starts_the_time_anew_and_rest_ends_it(clock, monkeypatch):
    monkeypatch.setattr(watchdog, "ASSUMED_S", dict.fromkeys(watchdog.ASSUMED_S, 0.0))
    heartbeat, hangs = Heartbeat(), []

    class Working(Looks):
        def wait(self, timeout):
            if len(self._gaps) % 50 == 0:
                heartbeat.beat("step", 0) if len(self._gaps) > 100 else heartbeat.rest()
            return super().wait(timeout)

    watching = Watchdog(heartbeat, hangs.append)
    watching._ended = Working(clock, [1.0] * 400)  # type: ignore[assignment]
    watching._watch()
    assert hangs == []


async def test_when_the_model_hangs_whoever_runs_or_waits_is_told_and_the_engine_has_failed(model, quick, caplog):
    failed = []
    engine = Engine(lambda: model, max_rows=1, on_failure=failed.append)
    await engine.start()
    requests = await line_of(engine, model, 1, 2, 3)
    for request in requests:
        with pytest.raises(ModelFailed, match="the model stopped responding; try again"):
            await asyncio.wait_for(request, 10)
    assert (engine.status, engine.failure.reason, failed) == ("failed", "hang", [engine])
    assert "the model stopped responding: encode of 1 s" in caplog.text
    with pytest.raises(ModelFailed):
        await engine.transcribe(wave(4), Task())
    # The thread comes to after all. It finds nothing to do, and ends.
    assert engine.is_running
    model.gate.set()
    await until(lambda: not engine.is_running)
    assert (engine.waiting, engine.running, engine.failure.reason) == (0, 0, "hang")
    assert failed == [engine]


async def test_work_within_its_limit_is_no_hang_however_often_it_is_done(model, quick):
    model.steps = 60
    engine = Engine(lambda: model)
    await engine.start()
    model.in_encoding = lambda: time.sleep(0.01)
    model.gate.set()
    for number in range(1, 31):
        assert (await engine.transcribe(wave(number), Task())).text == str(number)
    assert engine.status == "ready"
    await engine.stop()


async def test_loading_may_take_any_time(model, quick):
    model.gate.set()

    def resolve():
        time.sleep(0.5)  # more than twice what work may take
        return model

    engine = Engine(resolve)
    assert (await engine.start()).name == "mock"
    assert (await engine.transcribe(wave(1), Task())).text == "1"
    await engine.stop()


async def test_an_engine_that_ends_takes_its_watchdog_with_it(model):
    engine = Engine(lambda: model)
    await engine.start()
    model.gate.set()
    assert (await engine.transcribe(wave(1), Task())).text == "1"
    await engine.stop()
    assert not engine.is_running
    await until(lambda: not engine._watchdog._thread.is_alive())


ENDS = [(SystemExit(1), "crash"), (KeyboardInterrupt(), "crash"), (GeneratorExit(), "crash")]


@pytest.mark.parametrize("where", ["encoding", "step"])
@pytest.mark.parametrize(("error", "reason"), ENDS, ids=lambda value: type(value).__name__)
async def test_whatever_ends_the_loop_fails_the_engine_and_everybody_is_told(model, where, error, reason, caplog):
    def fail():
        raise error

    if where == "step":
        model.error = error
    else:
        model.in_encoding = fail
    failed = []
    engine = Engine(lambda: model, max_rows=2, on_failure=failed.append)
    await engine.start()
    requests = await line_of(engine, model, 1, 2, 3, 4)
    model.gate.set()
    done = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 10)
    assert [type(each) for each in done] == [ModelFailed] * 4
    assert (engine.status, engine.failure.reason, failed) == ("failed", reason, [engine])
    assert type(error).__name__ in caplog.text
    await engine.stop()
    assert engine.status == "failed"


async def test_a_lack_of_memory_that_lasts_fails_the_engine_for_that_reason(model):
    def fail():
        raise MemoryError

    model.in_encoding = fail
    engine = Engine(lambda: model)
    await engine.start()
    requests = await line_of(engine, model, 1)
    model.gate.set()
    with pytest.raises(ModelFailed, match="memory ran out"):
        await requests[0]
    assert engine.failure.reason == "memory"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
async def test_an_exit_while_the_model_is_loaded_does_not_end_the_event_loop(error):
    def resolve():
        raise error

    engine = Engine(resolve)
    with pytest.raises(RuntimeError, match=f"loading ended with {type(error).__name__}"):
        await engine.start()
    assert (engine.status, engine.failure.reason) == ("failed", "load")


async def test_a_request_that_has_not_started_in_time_is_told_so_while_the_others_run_on(model):
    engine = Engine(lambda: model, max_rows=1)
    await engine.start()
    running, patient = await line_of(engine, model, 1, 2)
    late = asyncio.ensure_future(engine.run(Pass(wave(3), (Task(),), start_by=time.monotonic() + 0.05)))
    with pytest.raises(WaitedTooLong, match="waited too long to start"):
        await asyncio.wait_for(late, 10)
    assert engine.waiting == 1
    model.gate.set()
    assert [(await request).text for request in (running, patient)] == ["1", "2"]
    assert model.encoded == [1, 2]
    await engine.stop()


async def test_a_request_that_has_started_in_time_may_take_as_long_as_it_takes(model):
    engine = Engine(lambda: model)
    await engine.start()
    running = asyncio.ensure_future(engine.run(Pass(wave(1), (Task(),), start_by=time.monotonic() + 0.2)))
    assert await asyncio.to_thread(model.entered.wait, 10)
    await asyncio.sleep(0.4)
    model.gate.set()
    assert (await running).transcripts[0].text == "1"
    await engine.stop()


async def test_a_late_request_does_not_start_even_if_nobody_has_told_it_so_yet(model, monkeypatch):
    """A busy event loop may run its timers late."""
    engine = Engine(lambda: model, max_rows=1)
    await engine.start()
    monkeypatch.setattr(engine, "_expire", lambda request: None)
    (running,) = await line_of(engine, model, 1)
    late = asyncio.ensure_future(engine.run(Pass(wave(2), (Task(),), start_by=time.monotonic() + 0.01)))
    await asyncio.sleep(0.05)
    model.gate.set()
    with pytest.raises(WaitedTooLong):
        await asyncio.wait_for(late, 10)
    assert (await running).text == "1"
    assert model.encoded == [1]
    await engine.stop()


async def test_a_live_pass_without_a_deadline_waits_on(model):
    engine = Engine(lambda: model, max_rows=1)
    await engine.start()
    requests = await line_of(engine, model, 1)
    requests += await line_of(engine, model, 2, priority=LIVE)
    await asyncio.sleep(0.1)
    assert not requests[1].done()
    model.gate.set()
    assert (await requests[1]).text == "2"
    await engine.stop()
