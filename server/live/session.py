"""One live stream: audio goes in, events come out. Knows no websocket and no model.

    events = session.hear(samples, probabilities)
    while session.due:
        events += await session.step()

Time is counted in samples, so a session gives the same text however fast the audio arrives, if it is stepped as often.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np

from model.task import AUTO, Task, TaskError
from model.transcript import Word
from server.live.endpointing import SAMPLE_RATE, Endpointer, Endpointing, SpeechSpan
from server.live.events import Event, Finalized, Lag, LiveResult, Problem, Translation
from server.live.policy import Policy, Token, agreed, aligned, without_loop
from server.live.times import timed_words
from server.settings import Settings

# A detected language is kept if it is this probable in at least so much audio.
SURE_LANGUAGE = 0.7
LANGUAGE_NEEDS_S = 2.0


@dataclass(frozen=True)
class Heard:
    """A decoder's result for a window: for each task, the tokens that follow the given ones.

    words: of the first task, in seconds from the window's start, if the decoder times them; probability: of the
    language, 1 if it was not detected; look: what the next call for this segment goes on from, known to the decoder
    alone.
    """

    tokens: tuple[tuple[Token, ...], ...]
    language: str
    probability: float = 1.0
    words: tuple[Word, ...] = ()
    look: Any = None


class Decode(Protocol):
    """Decodes a window (N,) for each task, continuing the `given` tokens.

    last: the window will not grow; look: from the last call for this segment, None at first.
    """

    async def __call__(
        self,
        window: np.ndarray,
        tasks: tuple[Task, ...],
        given: tuple[tuple[int, ...], ...],
        last: bool,
        look: Any = None,
    ) -> Heard: ...


@dataclass(frozen=True)
class LiveOptions:
    """language: AUTO detects it in each segment. step_s: new audio between two passes over the window.

    margin_s: AlignAtt's distance from the end, 8 encoder steps; settle_s: no text is stable in a shorter window, where
    the model cannot yet tell a whole sentence from a part of one, so that not even a capital is certain; window_s: the
    longest window; lag_s: a longer lag is reported.
    """

    language: str = "en"
    target_language: str | None = None
    policy: Policy = "alignatt"
    step_s: float = 0.4
    margin_s: float = 0.64
    settle_s: float = 2.5
    window_s: float = 20.0
    lag_s: float = 2.0
    endpointing: Endpointing = field(default_factory=Endpointing)

    @classmethod
    def from_settings(
        cls, settings: Settings, language: str | None, target_language: str | None, endpointing: Endpointing
    ) -> Self:
        """language: None means the settings' default."""
        return cls(
            language or settings.default_language,
            target_language,
            settings.live_policy,
            settings.live_step_s,
            endpointing=endpointing,
        )


class Line:
    """The text of one task in one segment: a certain (stable) part, and a tail that may change."""

    def __init__(self, task: Task):
        self.task = task
        self.certain: list[Token] = []
        self.tail: list[Token] = []

    @property
    def given(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.certain)

    @property
    def stable(self) -> int:
        return len(_text(self.certain))

    @property
    def text(self) -> str:
        return _text([*self.certain, *self.tail])

    def hear(self, tokens: Sequence[Token], heard_s: float, options: LiveOptions, last: bool, may_stay: bool) -> None:
        """Take a new hypothesis for the text after the certain part, and keep its certain words."""
        tail = without_loop(tokens, self.certain)
        if last:
            staying = tail
        elif not may_stay or heard_s < options.settle_s:
            staying = []
        elif options.policy == "alignatt":
            staying = aligned(tail, heard_s, options.margin_s)
        else:
            staying = agreed(tail, self.tail)
        self.keep(staying)
        self.tail = tail[len(staying) :]

    def keep(self, tokens: Sequence[Token]) -> None:
        """Take tokens that follow the certain part as certain."""
        before = _text(self.certain)
        self.certain += tokens
        # The promise to readers: stable text never changes, whatever the decoder and the policy do.
        assert _text(self.certain).startswith(before), f"certain text changed: {before!r} → {_text(self.certain)!r}"


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens).lstrip()


@dataclass
class OpenSegment:
    """The segment that is being transcribed.

    looked_at: the sample that its last window ended at; look: see `Heard`; of a decoder that carries state, settled_s:
    audio from the segment's start that is decoded for good, followed: what the decoder goes on from, and carried: what
    it goes on from in the turn's next segment.
    """

    id: int
    lines: list[Line]
    language: str | None = None
    looked_at: int = 0
    shown: LiveResult | None = None
    look: Any = None
    settled_s: float = 0.0
    followed: Any = None
    carried: Any = None


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

    right_s: audio after a cut inside a turn that the decoder needs for the text before it.
    """

    right_s = 0.0

    def __init__(self, decode: Decode, options: LiveOptions, check: Callable[[Task], None] = lambda task: None):
        """check: raises TaskError for a task that the decoder does not support."""
        self.options = options
        self._decode = decode
        self._check = check
        self._sound = _Sound()
        self._endpointer = Endpointer(options.endpointing)
        self._queue: deque[SpeechSpan | Finalized] = deque()
        self._current: OpenSegment | None = None
        self._segments = 0
        # The sample that the last window ended at; what the turn's next segment goes on from.
        self._looked_at = 0
        self._carried: Any = None
        self._language: str | None = None
        self._reported_lag_s = 0.0

    @property
    def heard_s(self) -> float:
        return self._sound.end / SAMPLE_RATE

    @property
    def behind_s(self) -> float:
        """Seconds of audio with speech that have not been decoded yet."""
        if not self._queue:
            return 0.0
        first = self._queue[0]
        if isinstance(first, Finalized):
            return 0.0
        return (self._sound.end - max(first.start, self._looked_at)) / SAMPLE_RATE

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
        return self._sound.end - looked_at >= self.options.step_s * SAMPLE_RATE

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
        first = self._queue[0]
        if isinstance(first, Finalized):
            self._queue.popleft()
            return [first]
        if first.dropped:
            self._queue.popleft()
            self._current = self._carried = None
            return []
        if self._current is None:
            self._segments += 1
            self._current = OpenSegment(self._segments, [], looked_at=first.start, followed=self._carried)
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
        return round(self.right_s * SAMPLE_RATE)

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
        events = self._new_lines(current) if not current.lines else []
        words: tuple[Word, ...] = ()
        if segment.spoken:
            window, cut = self._window(segment, end, last)
            more, words = await self._hear_window(window, current, last, cut)
            events += more
        if segment.dropped:
            return []
        current.looked_at = end
        self._looked_at = max(self._looked_at, end)
        events += self._shown(segment, current, end, last, last and segment.ends_turn, words)
        if last:
            self._queue.popleft()
            self._current, self._carried = None, current.carried
            self._forget()
        return events + self._lag()

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

    async def _hear_window(
        self, window: np.ndarray, current: OpenSegment, last: bool, cut: int | None
    ) -> tuple[list[Event], tuple[Word, ...]]:
        """Decode the window for every line; returns events, and the timed words of the first line if there are any.

        cut: the sample where the text ends if it is inside a turn; the audio after it is context, `right_s` of it.
        """
        events: list[Event] = []
        words: tuple[Word, ...] = ()
        lines = current.lines
        if current.language is None:
            heard, sure = await self._hear_language(window, last)
            lines[0].task = Task(heard.language)
            lines[0].hear(heard.tokens[0], len(window) / SAMPLE_RATE, self.options, last, may_stay=sure)
            if sure:
                self._language = current.language = heard.language
                events += self._add_translation(current)
            if not last:
                return events, ()
            words, lines = heard.words, lines[1:]
        if lines:
            given = tuple(line.given for line in lines)
            heard = await self._decode(window, tuple(line.task for line in lines), given, last, current.look)
            current.look = heard.look
            for line, tokens in zip(lines, heard.tokens, strict=True):
                line.hear(tokens, len(window) / SAMPLE_RATE, self.options, last, may_stay=True)
            words = words or heard.words
        return events, words

    async def _hear_language(self, window: np.ndarray, last: bool) -> tuple[Heard, bool]:
        """A first hypothesis in the most probable language, and whether that language can be kept.

        A finished segment whose language is uncertain is taken to be in the language spoken before.
        """
        heard = await self._decode(window, (Task(AUTO),), ((),), last)
        certain = heard.probability >= SURE_LANGUAGE
        if last and not certain and self._language not in (None, heard.language):
            heard = await self._decode(window, (Task(self._language),), ((),), last)
        return heard, last or (certain and len(window) >= LANGUAGE_NEEDS_S * SAMPLE_RATE)

    def _new_lines(self, current: OpenSegment) -> list[Event]:
        current.lines = [Line(Task(self.options.language))]
        if self.options.language == AUTO:
            return []
        current.language = self.options.language
        return self._add_translation(current)

    def _add_translation(self, current: OpenSegment) -> list[Event]:
        language, target = current.language, self.options.target_language
        if language is None or target in (None, language):
            return []
        task = Task(language, target)
        try:
            self._check(task)
        except TaskError as error:
            return [Problem("unsupported_task", f"{error}.")]
        current.lines.append(Line(task))
        return []

    def _shown(
        self,
        segment: SpeechSpan,
        current: OpenSegment,
        end: int,
        last: bool,
        ends_turn: bool,
        words: tuple[Word, ...],
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
        if behind >= self.options.lag_s and abs(behind - self._reported_lag_s) >= 0.5:
            self._reported_lag_s = behind
            return [Lag(behind)]
        if self._reported_lag_s and behind < self.options.lag_s / 2:
            self._reported_lag_s = 0.0
            return [Lag(0.0)]
        return []


def _same_text(a: LiveResult, b: LiveResult) -> bool:
    return (a.text, a.stable, a.translation) == (b.text, b.stable, b.translation)
