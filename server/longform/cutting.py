"""Sound of any length into pieces of a length that a pass is good for, while it is still being decoded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from model.config import SAMPLE_RATE
from server.audio.vad import FRAME, FRAME_S, SpeechDetector
from server.settings import Settings

_BLOCK = 10 * SAMPLE_RATE
# The chance of speech from which a frame counts as such, and below which nobody speaks at all.
SPEECH, NO_SPEECH = 0.5, 0.3
# A pause between words, when it is quiet as well; and one that is only not speech.
QUIET_PAUSE_S, PAUSE_S = 0.2, 0.5
# Silence that always ends a piece: there is nothing in it to write, and no sentence goes on after it.
LONG_PAUSE_S = 1.5
# How quiet, as a share of the way from a piece's noise to its loud parts.
QUIET = 0.1
# Silence that is left before and after what is said.
MARGIN_S = 0.5
# Sound that a short audio is taken for silent below (root of the mean square) if nobody speaks in it.
SILENT_LEVEL = 0.003


@dataclass(frozen=True)
class Cutting:
    """Lengths in seconds. A piece ends in a silence near `target_s`, sooner in a long one, and never after `longest_s`.

    Where there is no silence, or with at_silences false, pieces are of about the longest length and share `overlap_s`.
    """

    target_s: float = 30.0
    longest_s: float = 40.0
    overlap_s: float = 4.0
    at_silences: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.overlap_s < self.target_s <= self.longest_s:
            raise ValueError(
                f"overlap {self.overlap_s:g} s, target {self.target_s:g} s and longest {self.longest_s:g} s "
                "must be in this order"
            )

    @classmethod
    def up_to(cls, longest_s: float) -> "Cutting":
        """Pieces of at most `longest_s`, in the usual proportions."""
        return cls(0.75 * longest_s, longest_s, 0.15 * longest_s)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Cutting | None":
        """None leaves it to the model."""
        return cls.up_to(settings.pass_s) if settings.pass_s else None


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of the audio that begins at `start_s`; its first `overlap_s` are also the end of the one before.

    speech: (start, end) of what is said in it, in seconds of the whole audio; None where nobody listened.
    within_sound: whether it shares some of its sound with a neighbour, so that what both write there is merged.
    """

    start_s: float
    waveform: np.ndarray
    overlap_s: float = 0.0
    speech: tuple[tuple[float, float], ...] | None = None
    within_sound: bool = False

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.waveform) / SAMPLE_RATE


def cut(blocks: Iterable[np.ndarray], cutting: Cutting) -> Iterator[Piece]:
    """Pieces in order, without those in which nobody speaks. Audio that fits into one is one, silent or not."""
    held = _Held(cutting)
    for block in blocks:
        for first in range(0, len(block), _BLOCK):
            held.add(block[first : first + _BLOCK])
            while held.is_over:
                yield from held.next_piece()
    yield from held.rest()


def is_silent(waveform: np.ndarray) -> bool:
    """Whether it is quiet and nobody speaks in it."""
    if len(waveform) and np.sqrt((waveform**2).mean()) >= SILENT_LEVEL:
        return False
    return max(SpeechDetector().feed(waveform), default=0.0) < NO_SPEECH


def speech_spans(chances: np.ndarray, start_s: float = 0.0) -> tuple[tuple[float, float], ...]:
    """(start, end) of every run of speech, those with less than half a second between them being one."""
    spans: list[tuple[float, float]] = []
    for first, last in _runs(chances >= SPEECH):
        begin, end = start_s + float(first) * FRAME_S, start_s + float(last) * FRAME_S
        if spans and begin - spans[-1][1] < PAUSE_S:
            begin = spans.pop()[0]
        spans.append((begin, end))
    return tuple(spans)


class _Held:
    """Sound that has not been cut yet, with the chance of speech in each frame of it."""

    def __init__(self, cutting: Cutting):
        self._cutting = cutting
        self._longest = int(cutting.longest_s * SAMPLE_RATE)
        # None until the audio is longer than a pass: before that nobody needs to know.
        self._detector: SpeechDetector | None = None
        self._sound = np.zeros(0, np.float32)
        self._chances = np.zeros(0)
        self._start = 0
        self._overlap = 0

    @property
    def is_over(self) -> bool:
        return len(self._sound) > self._longest

    def add(self, block: np.ndarray) -> None:
        self._sound = np.concatenate([self._sound, block])
        if self._detector is None and self.is_over:
            self._detector = SpeechDetector()
            block = self._sound
        if self._detector is not None:
            self._chances = np.append(self._chances, self._detector.feed(block))

    def next_piece(self) -> Iterator[Piece]:
        at = (self._long_pause() or self._best_pause()) if self._cutting.at_silences else None
        yield from self._cut_at(at)

    def rest(self) -> Iterator[Piece]:
        if self._detector is None:
            yield Piece(0.0, self._sound)
            return
        while self._cutting.at_silences and (at := self._long_pause()):
            yield from self._cut_at(at)
        if len(self._sound) > self._overlap:
            yield from self._piece(len(self._sound))

    def _cut_at(self, at: int | None) -> Iterator[Piece]:
        """The sound before sample `at`; where there is no good place to cut, as much as may be, some of it kept."""
        if at is not None:
            yield from self._piece(at)
            keep, self._overlap = at // FRAME * FRAME, 0
        else:
            # Rather between two words than within one.
            second = SAMPLE_RATE // FRAME
            last = self._longest // FRAME
            end = self._quietest(last - second, last)
            wanted = end - int(self._cutting.overlap_s / FRAME_S)
            keep = self._quietest(wanted - second // 2, wanted + second // 2) * FRAME
            yield from self._piece(end * FRAME, within_sound=True)
            self._overlap = end * FRAME - keep
        self._sound, self._chances = self._sound[keep:].copy(), self._chances[keep // FRAME :]
        self._start += keep

    def _quietest(self, first: int, last: int) -> int:
        """The frame of the least energy from `first` to before `last`."""
        first = max(1, first)
        window = self._sound[first * FRAME : last * FRAME].reshape(-1, FRAME)
        return first + int((window**2).mean(axis=1).argmin())

    def _piece(self, end: int, within_sound: bool = False) -> Iterator[Piece]:
        """The first `end` samples, without the silence at both ends; nothing if nobody speaks in them."""
        chances = self._chances[: -(-end // FRAME)]
        said = np.flatnonzero(chances >= NO_SPEECH)
        # What the overlap has before a long silence, the piece before this one heard to its end, if some silence too.
        heard = self._overlap - int(MARGIN_S * SAMPLE_RATE)
        for begin, stop in _runs(chances < NO_SPEECH):
            if begin * FRAME <= heard and (stop - begin) * FRAME_S >= LONG_PAUSE_S:
                said = said[said >= stop]
        if not len(said):
            return
        first = max(0, int(said[0]) * FRAME - int(MARGIN_S * SAMPLE_RATE))
        last = min(end, (int(said[-1]) + 1) * FRAME + int(MARGIN_S * SAMPLE_RATE)) if end < self._longest else end
        speech = speech_spans(chances[first // FRAME :], (self._start + first // FRAME * FRAME) / SAMPLE_RATE)
        start_s, overlap_s = (self._start + first) / SAMPLE_RATE, max(0, self._overlap - first) / SAMPLE_RATE
        yield Piece(start_s, self._sound[first:last].copy(), overlap_s, speech, within_sound or overlap_s > 0)

    def _long_pause(self) -> int | None:
        """The sample to cut at in the first long silence within a piece's length."""
        for begin, end in _runs(self._chances[: self._longest // FRAME] < NO_SPEECH):
            if (end - begin) * FRAME_S >= LONG_PAUSE_S:
                # Silence at the very start is taken off but for what is left before speech.
                return ((begin + end) // 2 if begin else end - int(MARGIN_S / FRAME_S)) * FRAME
        return None

    def _best_pause(self) -> int | None:
        """The sample in the middle of the best pause to cut in; None where there is none."""
        frames = min(self._longest // FRAME, len(self._chances))
        level = np.sqrt((self._sound[: frames * FRAME].reshape(-1, FRAME) ** 2).mean(axis=1))
        noise, loud = np.percentile(level, [5, 95])
        silent = self._chances[:frames] < SPEECH
        quiet = silent & (level <= noise + QUIET * (loud - noise))
        pauses = [(a, b) for a, b in _runs(quiet) if (b - a) * FRAME_S >= QUIET_PAUSE_S]
        pauses += [(a, b) for a, b in _runs(silent) if (b - a) * FRAME_S >= PAUSE_S]
        target = self._cutting.target_s / FRAME_S
        earliest = max(target / 3, self._overlap / FRAME + 1)

        def badness(pause: tuple[int, int]) -> float:
            # A second of silence is worth being a third of the target away from it.
            length_s = min(1.0, (pause[1] - pause[0]) * FRAME_S)
            return abs(sum(pause) / 2 - target) / target - length_s / 3

        best = min((pause for pause in pauses if sum(pause) / 2 > earliest), key=badness, default=None)
        return sum(best) // 2 * FRAME if best else None


def _runs(marked: np.ndarray) -> list[tuple[int, int]]:
    """(first, one past the last) of every run of true."""
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False]))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
