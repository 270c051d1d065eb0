"""When models are loaded, and loaded again, by a clock of its own."""

import asyncio
from types import SimpleNamespace

import pytest

from server.engine.registry import Engines
from server.engine.thread import Engine
from server.errors import ModelFailed, ModelGivenUp
from server.settings import Settings

from .test_engine import MockCanary, until


async def test_a_model_that_could_not_be_loaded_is_tried_again_a_while_after_it_failed_however_long_that_took(
    monkeypatch,
):
    now, loads = 1000.0, 0

    def resolve(source, progress):
        nonlocal now, loads
        loads, now = loads + 1, now + 60
        raise ValueError("the download broke off")

    served = Engines(Settings(_env_file=None, model=("mock",)), resolve)
    for module in ("server.engine.thread", "server.engine.registry"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: now))
    for later_s, loaded in ((0.0, 1), (29.0, 1), (2.0, 2), (29.0, 2)):
        now += later_s
        with pytest.raises(ModelFailed):
            async with served.use():
                pass
        assert loads == loaded


class Mended:
    """Engines of one model, each of which the test makes fail; loading is counted, and waiting takes no time."""

    def __init__(self, monkeypatch, **settings):
        self.loads, self.waits, self.lost = 0, [], []
        self.now = 1000.0
        for module in ("server.engine.thread", "server.engine.registry"):
            monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now))
        sleep = asyncio.sleep

        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

        async def passed(seconds: float) -> None:
            if seconds < 1:
                await sleep(seconds)
            else:
                self.waits.append(seconds)
                self.now += seconds
                await self.may_go_on.wait()

        monkeypatch.setattr("server.engine.registry.asyncio.sleep", passed)
        self.load = MockCanary
        self.engines = Engines(Settings(_env_file=None, model=("mock",)), self._resolve, **settings)

    def _resolve(self, source, progress):
        self.loads += 1
        return self.load()

    @property
    def model(self):
        return self.engines.default

    async def fail(self, reason: str = "device") -> None:
        """The engine fails, and what follows of it is over."""
        engine = self.model.engine
        engine._fail(reason)
        if reason != "hang":
            engine.close()
        await until(lambda: self.model.last_failure is engine.failure)
        if self.model.reloading:
            await self.model.reloading
        if self.model.state != "failed":
            await until(lambda: self.model.ready_at == self.now)


@pytest.fixture
async def mended(monkeypatch):
    mended = Mended(monkeypatch)
    await mended.engines.loaded()
    yield mended
    await mended.engines.stop(0)


async def test_a_model_that_fails_is_loaded_again_ever_later_and_then_given_up(mended):
    for count, wait_s in enumerate((1.0, 5.0, 25.0), 1):
        await mended.fail()
        assert (mended.model.state, mended.waits[-1]) == ("ready", wait_s)
        assert (mended.loads, mended.model.reloads) == (count + 1, count)
    await mended.fail()
    assert (mended.model.state, mended.loads) == ("failed", 4)
    assert mended.model.failures == {"device": 4}
    # Then a request may try again, once in a while.
    with pytest.raises(ModelGivenUp):
        async with mended.engines.use():
            pass
    mended.now += 31
    async with mended.engines.use() as engine:
        assert engine.status == "ready"
    assert (mended.loads, mended.model.reloads) == (5, 4)


async def test_a_model_that_has_worked_for_a_while_starts_over_with_the_first_wait(mended):
    for _ in range(2):
        await mended.fail()
    mended.now += 299
    await mended.fail()
    mended.now += 301
    await mended.fail()
    assert mended.waits == [1.0, 5.0, 25.0, 1.0]


async def test_a_model_that_cannot_be_loaded_again_is_tried_as_often_as_one_that_fails(mended, caplog):
    def broken():
        raise OSError("the disk is gone")

    mended.load = broken
    mended.model.engine._fail("crash")
    await until(lambda: mended.model.failures.total() == 4)
    assert (mended.model.state, mended.model.reloads, mended.loads) == ("failed", 3, 4)
    assert mended.waits == [1.0, 5.0, 25.0]
    assert mended.model.failures == {"crash": 1, "load": 3}
    assert "giving up on mock after loading it again 3 times: the model could not be loaded" in caplog.text


async def test_a_request_that_comes_while_the_model_is_loaded_again_waits_for_it(mended):
    mended.may_go_on.clear()
    mended.model.engine._fail("crash")
    await until(lambda: mended.model.reloading)
    assert mended.model.state == "loading"

    async def use() -> str:
        async with mended.engines.use() as engine:
            return engine.status

    waiting = asyncio.ensure_future(use())
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    mended.may_go_on.set()
    assert await waiting == "ready"
    assert mended.loads == 2


async def test_beside_a_thread_that_hangs_one_model_is_loaded_and_no_third(mended, monkeypatch):
    hanging = {mended.model.engine}
    monkeypatch.setattr(Engine, "is_running", property(lambda engine: engine in hanging))
    await mended.fail("hang")
    assert (mended.model.state, mended.loads) == ("ready", 2)
    hanging.add(mended.model.engine)
    await mended.fail("hang")
    mended.now += 3600
    with pytest.raises(ModelGivenUp):
        async with mended.engines.use():
            pass
    assert (mended.model.state, mended.loads) == ("failed", 2)
    # One of them comes to and ends: there is room again.
    hanging.pop()
    async with mended.engines.use() as engine:
        assert engine.status == "ready"
    assert mended.loads == 3


async def test_a_process_that_can_be_started_again_gives_up_a_model_that_hangs_at_once(monkeypatch):
    lost = []
    mended = Mended(monkeypatch, on_lost=lost.append)
    await mended.engines.loaded()
    await mended.fail("device")
    assert (mended.model.state, lost) == ("ready", [])
    await mended.fail("hang")
    assert (mended.model.state, [failure.reason for failure in lost]) == ("failed", ["hang"])
    await mended.engines.stop(0)


async def test_a_process_that_can_be_started_again_is_told_of_a_model_that_is_given_up(monkeypatch):
    lost = []
    mended = Mended(monkeypatch, on_lost=lost.append)
    await mended.engines.loaded()
    for _ in range(4):
        assert lost == []
        await mended.fail("memory")
    assert [failure.reason for failure in lost] == ["memory"]
    await mended.engines.stop(0)


async def test_a_failure_of_an_engine_that_was_unloaded_or_stopped_changes_nothing(mended):
    old = mended.model.engine
    mended.engines._renew(mended.model)
    old._fail("crash")
    await asyncio.sleep(0)
    assert (mended.model.state, mended.model.failures) == ("idle", {})
