"""Which recordings are admitted and when each begins, without a model or audio."""

import asyncio
import time
from contextlib import AsyncExitStack

import numpy as np
import pytest

from server.audio.decode import Blocks
from server.engine import admission
from server.engine.admission import AHEAD, LONG_S, Admission, Speed, charged_s
from server.errors import QueueFull, WaitedTooLong


def admitting(rows: int = 1, max_waiting: int = 3, max_waiting_s: float = 1000.0, pieces: int = 0) -> Admission:
    return Admission(rows, max_waiting, max_waiting_s, lambda: pieces)


class Held:
    """Recordings that have a turn, or wait for one, until they are let go."""

    def __init__(self, admission: Admission):
        self.admission = admission
        self.begun: list[float] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def add(self, *lengths_s: float) -> None:
        for length_s in lengths_s:
            self._tasks.append(asyncio.create_task(self._hold(length_s)))
            await asyncio.sleep(0)
            if self._tasks[-1].done():
                self._tasks.pop().result()
        await asyncio.sleep(0)

    async def _hold(self, length_s: float) -> None:
        async with self.admission.turn(length_s):
            self.begun.append(length_s)
            await asyncio.Event().wait()

    async def let_go(self, index: int) -> None:
        task = self._tasks.pop(index)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)

    async def let_all_go(self) -> None:
        while self._tasks:
            await self.let_go(-1)


@pytest.fixture
async def held():
    made = []

    def hold(admission: Admission) -> Held:
        made.append(Held(admission))
        return made[-1]

    yield hold
    for each in made:
        await each.let_all_go()


async def test_recordings_beyond_the_places_wait_and_begin_in_order(held):
    recordings = held(admitting(max_waiting=10))
    places = 1 + AHEAD
    await recordings.add(*range(1, places + 4))
    assert recordings.begun == list(range(1, places + 1))
    assert (recordings.admission.waiting, recordings.admission.waiting_s) == (3, sum(range(places + 1, places + 4)))
    await recordings.let_go(0)
    await recordings.let_go(0)
    assert recordings.begun == list(range(1, places + 3))


async def test_no_more_are_admitted_than_may_wait(held):
    recordings = held(admitting(max_waiting=3))
    await recordings.add(*[1.0] * (1 + AHEAD + 3))
    with pytest.raises(QueueFull, match="3 pieces of audio are waiting"):
        recordings.admission.check()
    with pytest.raises(QueueFull):
        await recordings.add(1.0)
    # One that leaves while it waits makes room.
    await recordings.let_go(-1)
    recordings.admission.check()


async def test_pieces_in_the_engine_count_towards_those_that_wait():
    admitting(max_waiting=3, pieces=2).check()
    with pytest.raises(QueueFull):
        admitting(max_waiting=3, pieces=3).check()


async def test_seconds_that_wait_are_limited_and_the_last_recording_may_go_beyond(held):
    recordings = held(admitting(max_waiting=100, max_waiting_s=60.0))
    await recordings.add(*[10.0] * (1 + AHEAD), 50.0, 100.0)
    assert recordings.admission.waiting_s == 150
    with pytest.raises(QueueFull, match="150 s of audio are waiting"):
        recordings.admission.check()


async def test_long_recordings_leave_places_for_short_ones(held):
    recordings = held(admitting(rows=4, max_waiting=100, max_waiting_s=1e6))
    places = 4 + AHEAD
    await recordings.add(*[LONG_S * 10] * places)
    assert len(recordings.begun) == places // 2
    await recordings.add(5.0, 6.0)
    assert recordings.begun[-2:] == [5.0, 6.0]
    await recordings.let_go(0)
    assert recordings.begun[-1] == LONG_S * 10


async def test_the_more_recordings_there_are_the_fewer_pieces_of_each_run(held):
    admission = admitting(rows=8, max_waiting=100)
    recordings = held(admission)
    async with admission.turn(1000.0) as turn:
        assert turn.pieces() == 4
        await recordings.add(1.0, 1.0, 1.0)
        assert turn.pieces() == 2
        await recordings.add(*[1.0] * 8)
        assert turn.pieces() == 1


async def test_retry_after_is_what_waits_divided_by_the_measured_speed(held, monkeypatch):
    now = 0.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now)
    recordings = held(admitting(max_waiting=4, max_waiting_s=1e6))
    gate = recordings.admission
    gate._speed._clock = lambda: now
    async with AsyncExitStack() as stack:
        turns = [await stack.enter_async_context(gate.turn(30.0)) for _ in range(1 + AHEAD)]
        # Two minutes of work, at twice real time.
        for second in range(1, 121):
            now = float(second)
            gate.note_done(turns[0], 2.0 * second)
        waiting = [asyncio.ensure_future(stack.enter_async_context(gate.turn(60.0))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as full:
            gate.check()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    # 240 s wait, and 4 of 5 recordings have 30 s left.
    assert full.value.retry_after_s == pytest.approx((240 + 120) / 2, rel=0.05)
    assert full.value.headers == {"retry-after": str(full.value.retry_after_s)}


def test_the_speed_is_that_of_the_last_minute_of_work():
    now = 0.0
    speed = Speed(lambda: now)
    speed.resume()
    for second in range(600):
        now = float(second)
        speed.add(50.0)
    assert speed.now == pytest.approx(50, rel=0.05)
    speed.pause()
    now += 3600
    assert speed.now == pytest.approx(50, rel=0.05)
    speed.resume()
    for _ in range(240):
        now += 1
        speed.add(5.0)
    assert 5 <= speed.now < 10


async def test_a_recordings_length_becomes_what_is_decoded():
    def blocks():
        yield np.zeros(16_000, np.float32)
        yield np.zeros(8_000, np.float32)
        return True

    async with admitting().turn(1000.0) as turn:
        counted = Blocks(turn.counted(blocks()))
        assert sum(len(block) for block in counted) == 24_000
        assert counted.truncated
        assert turn.length_s == 1.5
    async with admitting().turn(0.1) as turn:
        counted = turn.counted(blocks())
        next(counted)
        assert turn.length_s == 1.0


def test_a_file_is_charged_by_its_header_or_its_size():
    assert charged_s(12.0, 100_000, 14_400) == 12
    assert charged_s(None, 100_000, 14_400) == 50
    assert charged_s(None, 10**9, 14_400) == 14_400
    # A header of hours in a small file is not believed.
    assert charged_s(14_000.0, 10_000, 14_400) == 20


async def test_a_recording_that_does_not_begin_in_time_is_told_so(held):
    recordings = held(admitting())
    await recordings.add(*[1.0] * (1 + AHEAD))
    with pytest.raises(WaitedTooLong):
        async with recordings.admission.turn(1.0, start_by=time.monotonic() + 0.05):
            pass
    assert recordings.admission.waiting == 0
