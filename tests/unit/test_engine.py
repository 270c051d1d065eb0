"""The engine's promises, with a model that can be held back and made to fail."""

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from model.canary.config import CanaryConfig
from model.decoding import DecodingOptions, Generated
from model.task import Task, TaskError
from model.transcript import Transcript
from server.engine.batching import Batcher
from server.engine.passes import Pass
from server.engine.thread import Engine
from server.engine.waiting import INTERACTIVE, LIVE
from server.errors import EngineStopped, ModelFailed, QueueFull, TranscriptionFailed
from tests.configs import canary_config

from .conftest import PlainTokenizer, tiny_canary


@dataclass
class MockCanary:
    """Writes the number a waveform begins with, one token a step. Waits at `gate`; fails on negative numbers."""

    config: CanaryConfig = field(default_factory=canary_config)
    tokenizer: PlainTokenizer = field(default_factory=PlainTokenizer)
    dtype: str = "float32"
    encodes_together: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    encoded: list[int] = field(default_factory=list)
    most_rows: int = 0
    steps: int = 3
    threads: set[str] = field(default_factory=set)

    def encodings(self, waveforms, between_layers=None):
        numbers = [int(waveform[0]) for waveform in waveforms]
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(10)
        self.encoded += numbers
        if min(numbers) < 0:
            raise RuntimeError(f"secret internals of {min(numbers)}")
        return [SimpleNamespace(number=number, features_s=0.0, encode_s=0.0) for number in numbers]

    def running_batch(self):
        return MockBatch(self)

    def utterance(self, key, encoded, *_):
        return SimpleNamespace(key=key, number=encoded.number, left=self.steps)

    def transcript(self, generated, waveform, task, encoded):
        return Transcript(str(generated.tokens[0]), task.language, task.target, 1.0, ())


class MockBatch:
    """A row for each utterance, until its steps are over."""

    def __init__(self, model):
        self.model = model
        self.utterances = []

    @property
    def rows(self):
        return len(self.utterances)

    def join(self, utterances):
        self.utterances += utterances
        self.model.most_rows = max(self.model.most_rows, self.rows)
        return []

    def step(self):
        for utterance in self.utterances:
            utterance.left -= 1
        done = [utterance for utterance in self.utterances if not utterance.left]
        self.utterances = [utterance for utterance in self.utterances if utterance.left]
        return [Generated(utterance.key, [utterance.number], [0.0]) for utterance in done]

    def drop(self, key):
        self.utterances = [utterance for utterance in self.utterances if utterance.key != key]


def wave(number: int) -> np.ndarray:
    return np.full(16000, number, np.float32)


@pytest.fixture
def model():
    model = MockCanary()
    yield model
    model.gate.set()


async def line_of(engine: Engine, model: MockCanary, *numbers: int, **options) -> list[asyncio.Task]:
    """One request per number: the first is running and held back, the others wait."""
    requests = []
    for number in numbers:
        requests.append(asyncio.ensure_future(engine.transcribe(wave(number), Task(), **options)))
        await asyncio.sleep(0)
        if number == numbers[0]:
            assert await asyncio.to_thread(model.entered.wait, 10)
    return requests


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def texts(requests: list[asyncio.Task]) -> list[str]:
    return [(await request).text for request in requests]


async def test_the_model_is_loaded_and_run_in_one_thread_of_its_own(model):
    def resolve():
        model.threads.add(threading.current_thread().name)
        return model

    engine = Engine(resolve)
    assert engine.status == "loading"
    info = await engine.start()
    assert (info.name, info.dtype, engine.status) == ("mock", "float32", "ready")
    model.gate.set()
    assert await texts(await line_of(engine, model, 1, 2)) == ["1", "2"]
    await engine.stop()
    assert model.threads == {"model"}


async def test_a_pass_tells_which_language_is_spoken_where_that_is_asked_though_its_task_names_one(sounds):
    engine = Engine(tiny_canary)
    await engine.start()
    for detect in (False, True):
        result = await engine.run(Pass(sounds[0], (Task("en"),), detect_language=detect))
        assert (result.detection is not None, result.transcripts[0].language) == (detect, "en")
    await engine.stop()


async def test_requests_join_the_running_batch_at_every_step_up_to_its_rows(model):
    model.steps = 10
    engine = Engine(lambda: model, max_rows=3)
    await engine.start()
    requests = await line_of(engine, model, 1, 2, 3, 4, 5)
    model.gate.set()
    assert await texts(requests) == ["1", "2", "3", "4", "5"]
    assert model.encoded == [1, 2, 3, 4, 5]
    assert model.most_rows == 3
    await engine.stop()


async def test_a_request_wider_than_the_batch_waits_for_an_empty_one_and_nobody_overtakes_it(model):
    engine = Engine(lambda: model, max_rows=2)
    await engine.start()
    requests = await line_of(engine, model, 1)
    requests += [asyncio.ensure_future(engine.transcribe(wave(2), Task(), DecodingOptions(beam_size=4)))]
    await asyncio.sleep(0)
    requests += [asyncio.ensure_future(engine.transcribe(wave(3), Task()))]
    await asyncio.sleep(0)
    model.gate.set()
    assert await texts(requests) == ["1", "2", "3"]
    assert model.encoded == [1, 2, 3]
    assert model.most_rows <= 2
    await engine.stop()


async def test_cancelling_what_runs_frees_its_rows_and_leaves_the_others(model):
    model.steps = 1_000_000_000
    engine = Engine(lambda: model)
    await engine.start()
    endless, other = await line_of(engine, model, 1, 2)
    model.gate.set()
    await until(lambda: engine.rows == 2)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    await until(lambda: engine.rows == 1)
    assert engine.running == 1
    assert not other.done()
    other.cancel()
    await until(lambda: engine.rows == 0)
    await engine.stop()


async def test_cancelling_50_of_100_requests_frees_their_rows_within_a_step_and_changes_nobody_elses_tokens(
    sounds, monkeypatch
):
    """A real model: eight lengths of sound, tasks of one and two texts, greedy and beams. Half are cancelled, one
    before every step, as often while they wait as while they decode."""
    tasks = ((Task("en"),), (Task("de", pnc=False),), (Task("de", "en", context="9 41 17"),), (Task("en"), Task("de")))
    options = [DecodingOptions(width, 0.4, length) for width, length in ((1, 16), (1, 6), (3, 10), (1, 24))]
    # Every task with every option, on two of the sounds.
    kinds = [Pass(sound, tasks[j], options[(i + j) % 4]) for i, sound in enumerate(sounds) for j in range(4)]
    random = np.random.default_rng(0)
    chosen = random.integers(len(kinds), size=100)
    passes = [kinds[i] for i in chosen]
    loop, requests = asyncio.get_running_loop(), []
    # Rows by request number in each step; the step after which a request's rows must be free.
    steps, cancelled_at, cancelled_waiting = [], {}, set()

    async def cancel_one(rows):
        is_open = [n for n, request in enumerate(requests, 1) if not request.done() and n not in cancelled_at]
        decoding = [n for n in is_open if n in rows]
        waiting = [n for n in is_open if n not in rows]
        if len(cancelled_at) == 50 or not is_open:
            return
        number = int(random.choice(decoding if (len(steps) % 2 and decoding) or not waiting else waiting))
        cancelled_at[number] = len(steps)
        if number not in rows:
            cancelled_waiting.add(number)
        requests[number - 1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await requests[number - 1]

    class Watched(Batcher):
        def step(self):
            rows = Counter(self._owner[owner.utterance.key] for owner in self._batch._owners)
            assert rows.total() == self.rows <= 16
            asyncio.run_coroutine_threadsafe(cancel_one(rows), loop).result(10)
            steps.append(rows)
            return super().step()

    crowded = Engine(tiny_canary, max_queue=100)
    lonely = Engine(tiny_canary)
    await lonely.start()
    results_alone = [await lonely.run(each) for each in kinds]
    alone = [results_alone[i] for i in chosen]
    await lonely.stop()

    monkeypatch.setattr("server.engine.thread.Batcher", Watched)
    requests += [asyncio.ensure_future(crowded.run(each)) for each in passes]
    await crowded.start()
    results = await asyncio.gather(*requests, return_exceptions=True)
    await until(lambda: crowded.rows == 0)
    await crowded.stop()

    assert len(cancelled_at) == 50
    assert 15 <= len(cancelled_waiting) <= 35
    assert max(rows.total() for rows in steps) >= 10
    for number, (found, true) in enumerate(zip(results, alone, strict=True), 1):
        if number in cancelled_at:
            assert isinstance(found, asyncio.CancelledError)
            assert all(number not in rows for rows in steps[cancelled_at[number] + 1 :])
            assert (number in cancelled_waiting) == all(number not in rows for rows in steps)
        else:
            assert [text.tokens for text in found.generated] == [text.tokens for text in true.generated]


async def test_a_result_says_how_long_it_waited_and_ran(model):
    engine = Engine(lambda: model)
    await engine.start()
    first = asyncio.ensure_future(engine.run(Pass(wave(1), (Task(),))))
    second = asyncio.ensure_future(engine.run(Pass(wave(2), (Task(),))))
    assert await asyncio.to_thread(model.entered.wait, 10)
    await asyncio.sleep(0.05)
    model.gate.set()
    await first
    assert (await second).timing.queue_s >= 0.05
    await engine.stop()


async def test_a_lower_priority_number_goes_first_and_equals_go_in_order(model):
    engine = Engine(lambda: model, max_rows=1)
    await engine.start()
    requests = await line_of(engine, model, 1, 2, 3)
    requests += await line_of(engine, model, 4, priority=-1)
    model.gate.set()
    await asyncio.gather(*requests)
    assert model.encoded == [1, 4, 2, 3]
    await engine.stop()


async def test_files_get_their_share_of_the_model_while_live_passes_wait():
    """By the model's own clock: encoding a live pass takes 0.1 s, a file's 1 s, and a step of either 0.01 s a row."""
    now, begun = 0.0, []

    class Timed(MockCanary):
        def encodings(self, waveforms, between_layers=None):
            nonlocal now
            begun.append((now, waveforms[0][0]))
            now += len(waveforms[0]) / 160_000
            return super().encodings(waveforms)

        def running_batch(self):
            return TimedBatch(self)

    class TimedBatch(MockBatch):
        def step(self):
            nonlocal now
            now += 0.01 * self.rows
            return super().step()

    model = Timed()
    engine = Engine(lambda: model, max_queue=1000, clock=lambda: now)  # type: ignore[arg-type, return-value]
    await engine.start()
    live, file = Pass(wave(LIVE), (Task(),)), Pass(np.tile(wave(INTERACTIVE), 10), (Task(),))
    requests = [asyncio.ensure_future(engine.run(file, INTERACTIVE)) for _ in range(40)]
    requests += [asyncio.ensure_future(engine.run(live, LIVE)) for _ in range(800)]
    await until(lambda: engine.waiting + engine.running == 840)
    model.gate.set()
    results = await asyncio.gather(*requests)
    spent = engine.spent_s
    await engine.stop()
    # For 100 s passes of both kinds waited.
    for since in range(0, 100, 20):
        files = [at for at, kind in begun if kind == INTERACTIVE and since <= at < since + 20]
        assert 4 <= len(files) <= 6
    assert [result.timing.model_s for result in results[:40]] == pytest.approx([1.03] * 40)
    assert [result.timing.model_s for result in results[40:]] == pytest.approx([0.13] * 800)
    assert spent == {"files": pytest.approx(41.2), "live": pytest.approx(104.0)}
    assert now == pytest.approx(145.2)


async def test_an_engine_whose_batch_cannot_be_made_has_failed_and_keeps_nobody_waiting(model):
    model.running_batch = lambda: 1 / 0
    engine = Engine(lambda: model)
    await engine.start()
    with pytest.raises(ModelFailed):
        await engine.transcribe(wave(1), Task())
    assert (engine.status, engine.failure.reason) == ("failed", "crash")
    await engine.stop()


class Layered(MockCanary):
    """A whole encoding takes ten layers of 0.1 s, a look's 0.02 s, and a step of the batch 0.01 s."""

    def __init__(self):
        super().__init__(steps=1)
        self.now, self.events = 0.0, []

    def clock(self) -> float:
        return self.now

    def encodings(self, waveforms, between_layers=None):
        self.entered.set()
        assert self.gate.wait(10)
        for _ in range(10):
            self.now += 0.1
            self.events.append(f"layer of {int(waveforms[0][0])}")
            between_layers()
        return super().encodings(waveforms)

    def growing_encodings(self, waveforms, before):
        self.now += 0.02
        self.events.append(f"look {int(waveforms[0][0])}")
        return super().encodings(waveforms)

    def running_batch(self):
        return LayeredBatch(self)


class LayeredBatch(MockBatch):
    def step(self):
        if self.utterances:
            self.model.now += 0.01
        return super().step()


async def test_looks_go_first_between_the_layers_of_a_files_encoding_one_group_at_a_time():
    model = Layered()
    # Room for one row, so that looks cannot go together.
    engine = Engine(lambda: model, max_rows=1, clock=model.clock)  # type: ignore[arg-type, return-value]
    await engine.start()
    files = [asyncio.ensure_future(engine.run(Pass(wave(n), (Task(),)), INTERACTIVE)) for n in (1, 2)]
    await asyncio.to_thread(model.entered.wait, 10)
    looks = [asyncio.ensure_future(engine.run(Pass(wave(n), (Task(),), grows=True), LIVE)) for n in (7, 8, 9)]
    await until(lambda: engine.waiting == 4)
    model.gate.set()
    done = []
    for request in (*files, *looks):
        request.add_done_callback(lambda r: done.append(r.result().transcripts[0].text))
    results = await asyncio.gather(*files, *looks)
    assert done == ["7", "8", "9", "1", "2"]
    first, then = ["layer of 1"], ["layer of 2"]
    assert model.events == [*first, "look 7", *first, "look 8", *first, "look 9", *first * 7, *then * 10]
    # The file's time is its own: what went first does not count.
    assert [result.timing.model_s for result in results] == pytest.approx([1.01] * 2 + [0.03] * 3)
    assert engine.spent_s == {"files": pytest.approx(2.02), "live": pytest.approx(0.09)}
    await engine.stop()


async def test_files_get_their_share_though_looks_go_first_between_layers():
    model = Layered()
    engine = Engine(lambda: model, max_queue=2000, clock=model.clock)  # type: ignore[arg-type, return-value]
    await engine.start()
    requests = [asyncio.ensure_future(engine.run(Pass(wave(1), (Task(),)), INTERACTIVE)) for _ in range(10)]
    # Too long to go together.
    look = Pass(np.full(81 * 16_000, 7, np.float32), (Task(),), grows=True)
    requests += [asyncio.ensure_future(engine.run(look, LIVE)) for _ in range(1500)]
    await until(lambda: engine.waiting + engine.running == 1510)
    model.gate.set()
    await asyncio.gather(*requests)
    # When the last of the ten files begins.
    layers = [at for at, event in enumerate(model.events) if event == "layer of 1"]
    live_s, files_s = model.events[: layers[90]].count("look 7") * 0.03, 9 * 1.01
    assert 2.9 < live_s / files_s < 3.1
    await engine.stop()


async def test_a_full_line_refuses_the_next_request_and_takes_more_later(model):
    engine = Engine(lambda: model, max_queue=2)
    await engine.start()
    requests = await line_of(engine, model, 1, 2, 3)
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        await engine.transcribe(wave(4), Task())
    model.gate.set()
    assert await texts(requests) == ["1", "2", "3"]
    assert (await engine.transcribe(wave(5), Task())).text == "5"
    await engine.stop()


async def test_a_cancelled_request_leaves_the_line_at_once_and_never_runs(model):
    engine = Engine(lambda: model, max_queue=1)
    await engine.start()
    running, waiting = await line_of(engine, model, 1, 2)
    assert (engine.running, engine.waiting) == (1, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert engine.waiting == 0
    model.gate.set()
    assert await texts([running]) == ["1"]
    await engine.stop()
    assert model.encoded == [1]


async def test_a_failed_request_leaves_its_batch_and_the_engine_serving(model, caplog):
    engine = Engine(lambda: model)
    await engine.start()
    requests = await line_of(engine, model, 1, 2, -3, 4)
    model.gate.set()
    done = await asyncio.gather(*requests, return_exceptions=True)
    assert [d.text for d in (done[0], done[1], done[3])] == ["1", "2", "4"]
    assert isinstance(done[2], TranscriptionFailed)
    assert "secret" not in str(done[2])
    assert "secret internals of -3" in caplog.text
    assert (await engine.transcribe(wave(5), Task())).text == "5"
    assert engine.status == "ready"
    await engine.stop()


async def test_a_task_the_model_cannot_do_is_refused_before_it_waits(model):
    engine = Engine(lambda: model)
    await engine.start()
    with pytest.raises(TaskError, match=r"'fr'.*en, de"):
        await engine.transcribe(wave(1), Task("fr"))
    await engine.stop()
    assert model.encoded == []


async def test_stopping_lets_the_line_finish_and_takes_nothing_new(model):
    engine = Engine(lambda: model, max_rows=1)
    await engine.start()
    requests = await line_of(engine, model, 1, 2)
    stopping = asyncio.ensure_future(engine.stop())
    await asyncio.sleep(0)
    assert engine.status == "stopping"
    with pytest.raises(EngineStopped):
        await engine.transcribe(wave(3), Task())
    model.gate.set()
    await stopping
    assert await texts(requests) == ["1", "2"]


async def test_what_still_waits_when_the_drain_time_is_over_is_told_so(model):
    engine = Engine(lambda: model, max_rows=1)
    await engine.start()
    running, waiting = await line_of(engine, model, 1, 2)
    await engine.stop(drain_s=0.05)
    with pytest.raises(EngineStopped):
        await waiting
    model.gate.set()
    assert await texts([running]) == ["1"]


async def test_a_model_that_cannot_be_loaded_fails_the_start_with_its_own_error():
    def resolve():
        raise ValueError("no such model")

    engine = Engine(resolve)
    with pytest.raises(ValueError, match="no such model"):
        await engine.start()
    assert engine.status == "failed"
    assert engine.info is None
    with pytest.raises(ModelFailed):
        await engine.transcribe(wave(1), Task())
    await engine.stop()


async def test_requests_that_came_before_the_model_failed_to_load_are_told_so(model):
    def resolve():
        model.entered.set()
        assert model.gate.wait(10)
        raise ValueError("no such model")

    engine = Engine(resolve)
    loading = asyncio.ensure_future(engine.start())
    assert await asyncio.to_thread(model.entered.wait, 10)
    early = asyncio.ensure_future(engine.transcribe(wave(1), Task()))
    await asyncio.sleep(0)
    model.gate.set()
    with pytest.raises(ValueError, match="no such model"):
        await loading
    with pytest.raises(ModelFailed):
        await early


async def test_stopping_an_engine_that_never_started_is_no_error(model):
    await Engine(lambda: model).stop()


async def test_a_fault_of_the_loop_itself_tells_whoever_runs_or_waits(model, monkeypatch, caplog):
    engine = Engine(lambda: model)
    await engine.start()
    running, waiting = await line_of(engine, model, 1, 2)
    monkeypatch.setattr(engine, "_free_cancelled", lambda batcher: 1 / 0)
    model.steps = 1_000_000_000
    model.gate.set()
    for request in (running, waiting):
        with pytest.raises(ModelFailed, match="because the model's thread ended unexpectedly"):
            await request
    assert engine.status == "failed"
    with pytest.raises(ModelFailed):
        await engine.transcribe(wave(3), Task())
    await engine.stop()
    assert engine.status == "failed"
    assert "ZeroDivisionError" in caplog.text
