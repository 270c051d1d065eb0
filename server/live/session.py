"""One live stream: audio goes in, events come out. Knows no websocket and no model.

    events = session.hear(samples, probabilities)
    while session.due:
        events += await session.step()

Time is counted in samples, so a session gives the same text however fast the audio arrives, if it is stepped as often.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from model.task import AUTO, Task
from model.transcript import Word
from server.live.capacity import LookCost
from server.live.endpointing import SAMPLE_RATE, Endpointer, SpeechSpan
from server.live.events import Event, Finalized, Lag, LiveResult, Translation
from server.live.segment import Line, LiveOptions, OpenSegment, Transcribe, Written
from server.live.times import timed_words


@dataclass
class _Sound:
    """The most recent audio, from the sample `start` on."""

    start: int = 0
    pieces: list[np.ndarray] = field(default_factory=list)
    end: int = 0

    def append(self, samples: np.ndarray) -> None:
        self.pieces.append(samples)
        self.end += len(samples)

    def read(self, start: int, end: int) -> np.ndarray:
        self.pieces = [np.concatenate(self.pieces)] if self.pieces else []
        return self.pieces[0][start - self.start : end - self.start] if self.pieces else np.zeros(0, np.float32)

    def drop_before(self, start: int) -> None:
        while self.pieces and self.start + len(self.pieces[0]) <= start:
            self.start += len(self.pieces.pop(0))
        if self.pieces and self.start < start:
            # A copy: a view would keep the whole array alive.
            self.pieces[0], self.start = self.pieces[0][start - self.start :].copy(), start


class LiveSession:
    """Call `hear` at any time, and `step` as long as one is `due`, one step at a time.

    step_s: new audio between two looks; may be changed at any time, to no less than the options'. looked: what the last
    step's look cost; None if it was no look.
    """

    def __init__(self, transcribe: Transcribe, options: LiveOptions):
        self.options = options
        self.step_s = options.step_s
        self.looked: LookCost | None = None
        self._transcribe = transcribe
        self._sound = _Sound()
        self._endpointer = Endpointer(options.endpointing)
        self._queue: deque[SpeechSpan | Finalized] = deque()
        self._current: OpenSegment | None = None
        self._segments = 0
        # The sample that the last window ended at; what the turn's next segment goes on from.
        self._looked_at = 0
        self._carried: Any = None
        self._reported_lag_s = 0.0

    @property
    def heard_s(self) -> float:
        return self._sound.end / SAMPLE_RATE

    @property
    def behind_s(self) -> float:
        """Seconds of audio with speech that have not been decoded yet."""
        if not self._queue or isinstance(self._queue[0], Finalized):
            return 0.0
        return (self._sound.end - max(self._queue[0].start, self._looked_at)) / SAMPLE_RATE

    @property
    def waiting(self) -> int:
        """Segments and finalize requests that are not done."""
        return len(self._queue)

    @property
    def due(self) -> bool:
        """Whether there is something to decode."""
        if not self._queue:
            return False
        first = self._queue[0]
        if isinstance(first, Finalized) or self._is_complete(first):
            return True
        looked_at = max(first.start, self._current.looked_at if self._current else 0)
        return self._sound.end - looked_at >= self.step_s * SAMPLE_RATE

    def hear(self, samples: np.ndarray, speech: list[float]) -> list[Event]:
        """Take samples (N,) float32 at 16 kHz, and the speech probability of each frame that they complete."""
        self._sound.append(samples)
        events = self._endpointer.hear(speech)
        self._take_segments()
        self._forget()
        return [*events]

    def finalize(self) -> list[Event]:
        """Finish the text of all audio so far, without waiting for a pause; a Finalized event follows it.

        The VAD's frames start anew here, as they do after `clear`.
        """
        events = self._endpointer.cut(self._sound.end)
        self._take_segments()
        self._queue.append(Finalized())
        return [*events]

    def clear(self, ended_turns: bool = False) -> None:
        """Drop the turn in progress, as if it had not been heard; ended_turns: all turns since the last finalize."""
        turn = self._endpointer.turn
        self._endpointer.cut(self._sound.end)
        self._take_segments()
        for waiting in reversed(self._queue):
            if isinstance(waiting, Finalized):
                break
            waiting.dropped |= ended_turns or waiting.turn == turn

    async def step(self) -> list[Event]:
        """Decode the first segment that is not final."""
        first, self.looked = self._queue[0], None
        if isinstance(first, Finalized):
            self._queue.popleft()
            return [first]
        if first.dropped:
            self._queue.popleft()
            self._current = self._carried = None
            return []
        if self._current is None:
            self._segments += 1
            line = Line(Task(self.options.language))
            self._current = OpenSegment(self._segments, [line], looked_at=first.start, followed=self._carried)
        return await self._look(self._not_too_long(first, self._current), self._current)

    def _is_complete(self, segment: SpeechSpan) -> bool:
        """Whether all the audio that the segment's text is decoded from is there."""
        if segment.end is None or segment.ends_turn:
            return segment.end is not None
        return self._after(segment).end is not None or self._sound.end >= segment.end + self._right

    def _after(self, segment: SpeechSpan) -> SpeechSpan:
        """The turn's next segment."""
        after = self._queue[self._queue.index(segment) + 1]
        assert isinstance(after, SpeechSpan)
        return after

    @property
    def _right(self) -> int:
        return round(self._transcribe.right_s * SAMPLE_RATE)

    def _not_too_long(self, segment: SpeechSpan, current: OpenSegment) -> SpeechSpan:
        """The first segment, up to a cut if it is longer than a window."""
        longest = segment.start + round(self.options.window_s * SAMPLE_RATE)
        if (self._sound.end if segment.end is None else segment.end) <= longest:
            return segment
        at = self._quiet_place(segment.start, longest, current)
        first = replace(segment, end=at, ends_turn=False)
        segment.start = at
        self._queue.appendleft(first)
        return first

    def _take_segments(self) -> None:
        self._queue.extend(self._endpointer.segments)
        self._endpointer.segments.clear()

    def _forget(self) -> None:
        needed = [s.start for s in self._queue if isinstance(s, SpeechSpan)][:1]
        self._sound.drop_before(min([self._endpointer.needed_from, *needed]))

    async def _look(self, segment: SpeechSpan, current: OpenSegment) -> list[Event]:
        last = self._is_complete(segment)
        end = segment.end if last and segment.end is not None else self._sound.end
        written = Written()
        if segment.spoken:
            window, cut = self._window(segment, end, last)
            written = await self._transcribe(window, current, last, cut)
            # The last window of a segment may end before the one before it.
            new_s = max(0, end - max(segment.start, self._looked_at)) / SAMPLE_RATE
            self.looked = LookCost(written.model_s, new_s, last)
        if segment.dropped:
            return []
        current.looked_at = end
        self._looked_at = max(self._looked_at, end)
        shown = self._shown(segment, current, end, last, last and segment.ends_turn, written.words)
        if last:
            self._queue.popleft()
            self._current, self._carried = None, current.carried
            self._forget()
        return [*written.events, *shown, *self._lag()]

    def _window(self, segment: SpeechSpan, end: int, last: bool) -> tuple[np.ndarray, int | None]:
        """The audio to decode, and the sample of it where the text ends if the turn goes on after it."""
        if segment.end is None or segment.ends_turn:
            return self._sound.read(segment.start, end), None
        after = self._after(segment)
        if last:
            end = min(end + self._right, self._sound.end if after.end is None else after.end)
        # If nothing more is said, the turn's text ends here.
        goes_on = after.spoken or not after.ends_turn
        return self._sound.read(segment.start, end), segment.end - segment.start if goes_on else None

    def _quiet_place(self, start: int, longest: int, current: OpenSegment) -> int:
        """Where to cut speech without pauses: the quietest 60 ms of the part that has no certain text yet."""
        certain = [token.at_s for line in current.lines for token in line.certain]
        certain_s = max(max(certain, default=0.0) + 0.16, current.settled_s)
        earliest = max(0.7 * (longest - start), certain_s * SAMPLE_RATE)
        size = SAMPLE_RATE * 60 // 1000
        window = self._sound.read(start, longest)[min(int(earliest), longest - start - size) :]
        blocks = window[: len(window) // size * size].reshape(-1, size)
        quietest = int(np.square(blocks).mean(axis=1).argmin())
        return longest - len(window) + quietest * size + size // 2

    def _shown(
        self,
        segment: SpeechSpan,
        current: OpenSegment,
        end: int,
        last: bool,
        ends_turn: bool,
        words: Sequence[Word],
    ) -> list[Event]:
        """The segment's text as an event, if it has changed."""
        first, *others = current.lines
        start_s, end_s = segment.start / SAMPLE_RATE, end / SAMPLE_RATE
        translation = next((Translation(o.task.target, o.text, o.stable) for o in others), None)
        timed = timed_words(first.certain, words, start_s, end_s) if last else ()
        result = LiveResult(
            current.id,
            segment.turn,
            first.text,
            first.stable,
            last,
            ends_turn,
            timed[0].start if timed else start_s,
            timed[-1].end if timed else end_s,
            None if first.task.language == AUTO else first.task.language,
            timed,
            translation,
        )
        if not last and (not result.text or (current.shown and _same_text(result, current.shown))):
            return []
        current.shown = result
        return [result]

    def _lag(self) -> list[Event]:
        behind = self.behind_s
        if self._queue and isinstance(self._queue[0], SpeechSpan):
            # The next look is later by as much as the step is wider.
            behind += self.step_s - self.options.step_s
        if behind >= self.options.lag_s and abs(behind - self._reported_lag_s) >= 0.5:
            self._reported_lag_s = behind
            return [Lag(behind)]
        if self._reported_lag_s and behind < self.options.lag_s / 2:
            self._reported_lag_s = 0.0
            return [Lag(0.0)]
        return []


def _same_text(a: LiveResult, b: LiveResult) -> bool:
    return (a.text, a.stable, a.translation) == (b.text, b.stable, b.translation)
