"""A session driven with real sound and the real detector: what finalizing and clearing leave behind."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from server.audio.vad import FRAME
from server.live import connection
from server.live.capacity import LiveCapacity, LookCost, Seat
from server.live.connection import Bounds, LiveConnection
from server.live.events import Event, Lag, SpeechStarted, SpeechStopped
from server.live.segment import LiveOptions
from tests.live.scripted import SAMPLE_RATE, ScriptedDecoder, said, session_over, sound, speech_probabilities


class Listener:
    """A connection that nobody steps, and its events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        session = session_over(ScriptedDecoder([]))
        self.connection = LiveConnection(session, self._emit, Bounds(rate=1e6), Seat(LiveCapacity()))

    async def _emit(self, event: Event) -> None:
        self.events.append(event)

    def times(self) -> list[float]:
        """Where turns start and stop, in seconds."""
        return [e.start if isinstance(e, SpeechStarted) else e.end for e in self.events]  # type: ignore[union-attr]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def speech(pcm) -> np.ndarray:
    """At 16 kHz, with a second of silence after it."""
    return np.frombuffer(pcm(tail_s=1.0), "<i2").astype(np.float32) / 32768


async def test_turns_are_found_where_they_are_however_often_was_finalized_before(listener, speech):
    """What is finalized seldom ends where one of the detector's frames does."""
    once = Listener()
    await once.connection.hear(speech)
    for _ in range(60):
        await listener.connection.hear(np.zeros(1000, np.float32))
        await listener.connection.finalize()
    before_s = listener.connection.session.heard_s
    await listener.connection.hear(speech)
    assert {type(event) for event in listener.events} == {SpeechStarted, SpeechStopped}
    assert listener.times() == pytest.approx([before_s + at for at in once.times()], abs=0.001)
    assert before_s == 60 * 1000 / SAMPLE_RATE


async def test_no_turn_begins_with_what_was_cleared(listener, speech):
    """In the midst of a word, which the detector would hear for some frames more."""
    for _ in range(3):
        await listener.connection.hear(speech[: round(3.25 * SAMPLE_RATE)])
        assert isinstance(listener.events[-1], SpeechStarted)
        await listener.connection.clear()
        told = len(listener.events)
        await listener.connection.hear(np.zeros(SAMPLE_RATE, np.float32))
        assert listener.events[told:] == []


async def test_a_session_whose_looks_wait_for_other_work_looks_less_often_and_tells_its_delay(monkeypatch):
    """By a clock of its own: each look takes 1.2 s, of which the model has worked on it for 0.2 s."""
    script, now = said(" ".join(f"word{i}" for i in range(40))), 0.0
    decoder, waveform = ScriptedDecoder(script), sound(script)
    chances = iter(speech_probabilities(script, len(waveform)))

    async def delayed(*asked):
        nonlocal now
        now += 1.2
        return replace(await decoder(*asked), model_s=0.2)

    class Detector:
        def feed(self, samples: np.ndarray) -> list[float]:
            return [next(chances, 0.0) for _ in range(len(samples) // FRAME)]

    monkeypatch.setattr(connection, "SpeechDetector", Detector)
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now))
    events: list[Event] = []

    async def emit(event: Event) -> None:
        events.append(event)

    capacity = LiveCapacity(clock=lambda: now)
    session, seat = session_over(delayed), capacity.take()
    live = LiveConnection(session, emit, Bounds(buffer_s=1e6), seat)
    running, looks = asyncio.create_task(live.run()), []
    for at in range(0, len(waveform) // FRAME * FRAME, FRAME):
        await live.hear(waveform[at : at + FRAME])
        # Whatever is due is done before the next frame comes.
        while session.due:
            await asyncio.sleep(0)
        if len(decoder.windows) > len(looks):
            looks.append(session.heard_s)
    running.cancel()
    steps = np.diff([0.5, *looks])
    # The first look is at the step asked for, after the speech that begins at 0.5 s was noticed.
    assert steps[0] < 0.6
    assert steps[1] == pytest.approx(0.3 * (1.2 + 1.0), abs=0.05)
    assert max(steps) == pytest.approx(2.0, abs=0.05)
    assert seat.step_s == session.step_s == 2.0
    assert capacity.load_of_one == pytest.approx(0.1, rel=0.1)
    # What the step is wider than asked for stays below the lag that is told.
    assert [event for event in events if isinstance(event, Lag)] == []
    wide = session_over(delayed, LiveOptions(lag_s=1.0))
    wide.step_s = 2.0
    wide.hear(waveform[: 3 * SAMPLE_RATE], [1.0] * (3 * SAMPLE_RATE // FRAME))
    assert Lag(pytest.approx(1.6)) in await wide.step()
    wide.finalize()
    events.clear()
    while wide.due:
        events += await wide.step()
    assert [event.seconds for event in events if isinstance(event, Lag)] == [0.0]


async def test_a_session_goes_on_with_the_step_that_its_seat_has():
    """Settings that change in a conversation give it another session, not another seat."""
    seat = Seat(LiveCapacity())
    for _ in range(20):
        seat.note(10.0, LookCost(0.1, 0.4, last=False))
    session = session_over(ScriptedDecoder([]))
    LiveConnection(session, None, Bounds(), seat)  # type: ignore[arg-type]
    assert session.step_s == 2.0
