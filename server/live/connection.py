"""What all live routes share: a session that follows the audio as fast as the model allows, within bounds.

Knows no protocol: a route passes samples to `hear` and gets events through `emit`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from model.task import Task
from server.audio.vad import SpeechDetector
from server.engine.thread import Engine
from server.live.capacity import Seat
from server.live.decoder import EngineDecoder
from server.live.endpointing import SAMPLE_RATE, Endpointing
from server.live.events import Event
from server.live.following import Follower, FollowingTranscriber
from server.live.segment import LiveOptions, Transcribe
from server.live.session import LiveSession
from server.live.windows import WindowTranscriber
from server.settings import Settings

# Samples that the VAD takes at a time: few enough that other connections get their turn.
PIECE = SAMPLE_RATE
# Segments and finalize requests that may wait for the model.
MAX_WAITING = 100

Emit = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True)
class Bounds:
    """buffer_s: audio that may wait for the model; rate: seconds of audio taken per second, beyond `buffer_s`."""

    buffer_s: float = 30.0
    rate: float = 8.0

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.max_live_buffer_s, settings.max_live_rate)


class LiveConnection:
    """Await `run` next to whatever calls `hear`, in the same event loop.

    seat: learns what looks cost and how long they take, and says how wide the session's steps are.
    """

    def __init__(self, session: LiveSession, emit: Emit, bounds: Bounds, seat: Seat):
        session.step_s = seat.step_s
        self.session = session
        self._seat = seat
        self._emit = emit
        self._bounds = bounds
        self._detector = SpeechDetector()
        self._detecting = asyncio.Lock()
        self._changed = asyncio.Event()
        self._progress = asyncio.Event()
        self._began = time.monotonic()

    @classmethod
    def open(
        cls,
        engine: Engine,
        settings: Settings,
        emit: Emit,
        seat: Seat,
        *,
        language: str | None,
        target_language: str | None = None,
        endpointing: Endpointing,
        word_times: bool,
    ) -> Self:
        """A session on `engine`, as the settings say.

        language: None means the settings' default; word_times: see EngineDecoder.
        Raises TaskError for languages that the model does not support.
        """
        options = LiveOptions.from_settings(settings, language, target_language, endpointing)
        engine.check(Task(options.language, options.target_language))
        transcribe: Transcribe
        if engine.info and engine.info.config.carries_state:
            transcribe = FollowingTranscriber(Follower(engine, word_times))
        else:
            transcribe = WindowTranscriber(EngineDecoder(engine, word_times), options, engine.check)
        return cls(LiveSession(transcribe, options), emit, Bounds.from_settings(settings), seat)

    async def hear(self, samples: np.ndarray) -> None:
        """Take samples, (N,) float32 at 16 kHz. Returns when there is room for more."""
        for at in range(0, len(samples), PIECE):
            piece = samples[at : at + PIECE]
            async with self._detecting:
                # In a thread: the VAD takes some 30 ms for a second of audio.
                speech = await asyncio.to_thread(self._detector.feed, piece)
                for event in self.session.hear(piece, speech):
                    await self._emit(event)
            self._changed.set()
            await self._keep_to_bounds()

    async def finalize(self) -> None:
        """Finish the text of all audio so far, without waiting for a pause; returns when there is room for more."""
        async with self._detecting:
            for event in self.session.finalize():
                await self._emit(event)
            self._detector.reset()
        self._changed.set()
        await self._keep_to_bounds()

    async def clear(self, ended_turns: bool = False) -> None:
        """See `LiveSession.clear`; the VAD starts afresh as well."""
        async with self._detecting:
            self.session.clear(ended_turns)
            self._detector.reset()
        self._changed.set()

    async def run(self) -> None:
        """Step the session whenever a step is due, until cancelled. Raises what a step raises."""
        while True:
            self._changed.clear()
            while self.session.due:
                await self._step()
                self._progress.set()
            await self._changed.wait()

    async def _step(self) -> None:
        began = time.monotonic()
        events = await self.session.step()
        if look := self.session.looked:
            self._seat.note(time.monotonic() - began, look)
            self.session.step_s = self._seat.step_s
        for event in events:
            await self._emit(event)

    async def _keep_to_bounds(self) -> None:
        while self.session.behind_s > self._bounds.buffer_s or self.session.waiting > MAX_WAITING:
            self._progress.clear()
            await self._progress.wait()
        allowed_s = self._bounds.buffer_s + (time.monotonic() - self._began) * self._bounds.rate
        if (too_early_s := (self.session.heard_s - allowed_s) / self._bounds.rate) > 0:
            await asyncio.sleep(too_early_s)
