"""A session driven with real sound and the real detector: what finalizing and clearing leave behind."""

import numpy as np
import pytest

from server.live.connection import Bounds, LiveConnection
from server.live.events import Event, SpeechStarted, SpeechStopped
from server.live.session import LiveOptions, LiveSession
from tests.live.scripted import SAMPLE_RATE, ScriptedDecoder


class Listener:
    """A connection that nobody steps, and its events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.connection = LiveConnection(LiveSession(ScriptedDecoder([]), LiveOptions()), self._emit, Bounds(rate=1e6))

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
