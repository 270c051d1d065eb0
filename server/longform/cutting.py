"""Cuts audio of any length into pieces that suit one pass of the model, while the audio is still being decoded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from model.config import SAMPLE_RATE
from server.audio.vad import FRAME, FRAME_S, SpeechDetector
from server.settings import Settings

_BLOCK = 10 * SAMPLE_RATE
# A frame is speech from the first probability on, and silence below the second. In between it is neither.
SPEECH, NO_SPEECH = 0.5, 0.3
# The shortest pause to cut in: one that is also quiet, and one that is only not speech.
QUIET_PAUSE_S, PAUSE_S = 0.2, 0.5
# A silence this long always ends a piece: it has no words, and no sentence continues after it.
LONG_PAUSE_S = 1.5
# A frame is quiet if its level is within this share of the range from the piece's noise to its loud parts.
QUIET = 0.1
# Silence kept before and after speech.
MARGIN_S = 0.5
# Short audio with a level (root mean square) below this is silent if it contains no speech.
SILENT_LEVEL = 0.003


@dataclass(frozen=True)
class Cutting:
    """Lengths in seconds. A piece ends in a pause near `target_s`, or earlier in a long pause, never after `longest_s`.

    Without a pause, or with at_silences false, pieces have about the longest length and overlap by `overlap_s`.
    """

    target_s: float = 30.0
    longest_s: float = 40.0
    overlap_s: float = 4.0
    at_silences: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.overlap_s < self.target_s <= self.longest_s:
            raise ValueError(
                f"lengths must satisfy 0 < overlap < target <= longest, but are overlap {self.overlap_s:g} s, "
                f"target {self.target_s:g} s and longest {self.longest_s:g} s"
            )

    @classmethod
    def up_to(cls, longest_s: float) -> "Cutting":
        """Pieces of at most `longest_s`, with target and overlap in the usual proportions."""
        return cls(0.75 * longest_s, longest_s, 0.15 * longest_s)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Cutting | None":
        """Pieces of at most `pass_s`; None if that is not set, which leaves the length to the model."""
        return cls.up_to(settings.pass_s) if settings.pass_s else None


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of the audio that begins at `start_s`. Its first `overlap_s` repeat the end of the piece before.

    speech: (start, end) of the speech in it, in seconds of the whole audio; None if no detector ran.
    within_sound: whether it shares audio with a neighbour, so that the text of the two has to be merged.
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
    """Pieces in order, except those without speech. Audio that fits into one piece is one, even if it is silent."""
    cutter = _Cutter(cutting)
    for block in blocks:
        for first in range(0, len(block), _BLOCK):
            cutter.add(block[first : first + _BLOCK])
            while cutter.is_full:
                yield from cutter.next_piece()
    yield from cutter.rest()


def whole(blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
    """All of the audio as one piece."""
    heard = list(blocks)
    yield Piece(0.0, np.concatenate(heard) if heard else np.zeros(0, np.float32))


def is_silent(waveform: np.ndarray) -> bool:
    """Whether it is quiet and contains no speech."""
    if len(waveform) and np.sqrt((waveform**2).mean()) >= SILENT_LEVEL:
        return False
    return max(SpeechDetector().feed(waveform), default=0.0) < NO_SPEECH


def speech_spans(probabilities: np.ndarray, start_s: float = 0.0) -> tuple[tuple[float, float], ...]:
    """(start, end) of each stretch of speech. Stretches less than half a second apart are joined."""
    spans: list[tuple[float, float]] = []
    for first, last in _runs(probabilities >= SPEECH):
        begin, end = start_s + float(first) * FRAME_S, start_s + float(last) * FRAME_S
        if spans and begin - spans[-1][1] < PAUSE_S:
            begin = spans.pop()[0]
        spans.append((begin, end))
    return tuple(spans)


class _Cutter:
    """Audio that is not cut yet, with the probability of speech in each of its frames."""

    def __init__(self, cutting: Cutting):
        self._cutting = cutting
        self._longest = int(cutting.longest_s * SAMPLE_RATE)
        # Only audio longer than one piece needs a detector.
        self._detector: SpeechDetector | None = None
        self._audio = np.zeros(0, np.float32)
        self._probabilities = np.zeros(0)
        self._start = 0
        self._overlap = 0

    @property
    def is_full(self) -> bool:
        """Whether it has more audio than one piece may have."""
        return len(self._audio) > self._longest

    def add(self, block: np.ndarray) -> None:
        self._audio = np.concatenate([self._audio, block])
        if self._detector is None and self.is_full:
            self._detector = SpeechDetector()
            block = self._audio
        if self._detector is not None:
            self._probabilities = np.append(self._probabilities, self._detector.feed(block))

    def next_piece(self) -> Iterator[Piece]:
        at = (self._long_pause() or self._best_pause()) if self._cutting.at_silences else None
        yield from self._cut_at(at)

    def rest(self) -> Iterator[Piece]:
        """The pieces of what is left when the audio has ended."""
        if self._detector is None:
            yield Piece(0.0, self._audio)
            return
        while self._cutting.at_silences and (at := self._long_pause()):
            yield from self._cut_at(at)
        if len(self._audio) > self._overlap:
            yield from self._piece(len(self._audio))

    def _cut_at(self, at: int | None) -> Iterator[Piece]:
        """The audio before sample `at`. If `at` is None, as much as allowed, keeping an overlap for the next piece."""
        if at is not None:
            yield from self._piece(at)
            keep_from, self._overlap = at // FRAME * FRAME, 0
        else:
            # Cut at the quietest frames, which are between two words rather than inside one.
            second = SAMPLE_RATE // FRAME
            last = self._longest // FRAME
            end = self._quietest(last - second, last)
            overlap_start = end - int(self._cutting.overlap_s / FRAME_S)
            keep_from = self._quietest(overlap_start - second // 2, overlap_start + second // 2) * FRAME
            yield from self._piece(end * FRAME, within_sound=True)
            self._overlap = end * FRAME - keep_from
        self._audio, self._probabilities = self._audio[keep_from:].copy(), self._probabilities[keep_from // FRAME :]
        self._start += keep_from

    def _quietest(self, first: int, last: int) -> int:
        """The frame with the least energy from `first` to before `last`."""
        first = max(1, first)
        window = self._audio[first * FRAME : last * FRAME].reshape(-1, FRAME)
        return first + int((window**2).mean(axis=1).argmin())

    def _piece(self, end: int, within_sound: bool = False) -> Iterator[Piece]:
        """The first `end` samples, without the silence at both ends. Yields nothing if they contain no speech."""
        probabilities = self._probabilities[: -(-end // FRAME)]
        speech_frames = np.flatnonzero(probabilities >= NO_SPEECH)
        # Skip the overlap's speech before a long silence: the previous piece had all of it and some of the silence.
        covered = self._overlap - int(MARGIN_S * SAMPLE_RATE)
        for begin, stop in _runs(probabilities < NO_SPEECH):
            if begin * FRAME <= covered and (stop - begin) * FRAME_S >= LONG_PAUSE_S:
                speech_frames = speech_frames[speech_frames >= stop]
        if not len(speech_frames):
            return
        margin = int(MARGIN_S * SAMPLE_RATE)
        first = max(0, int(speech_frames[0]) * FRAME - margin)
        last = min(end, (int(speech_frames[-1]) + 1) * FRAME + margin) if end < self._longest else end
        speech = speech_spans(probabilities[first // FRAME :], (self._start + first // FRAME * FRAME) / SAMPLE_RATE)
        start_s, overlap_s = (self._start + first) / SAMPLE_RATE, max(0, self._overlap - first) / SAMPLE_RATE
        yield Piece(start_s, self._audio[first:last].copy(), overlap_s, speech, within_sound or overlap_s > 0)

    def _long_pause(self) -> int | None:
        """The sample to cut at in the first long silence within a piece's length."""
        for begin, end in _runs(self._probabilities[: self._longest // FRAME] < NO_SPEECH):
            if (end - begin) * FRAME_S >= LONG_PAUSE_S:
                # A silence at the very start is dropped, except for the margin before the speech.
                return ((begin + end) // 2 if begin else end - int(MARGIN_S / FRAME_S)) * FRAME
        return None

    def _best_pause(self) -> int | None:
        """The sample in the middle of the best pause to cut in; None if there is no pause."""
        frames = min(self._longest // FRAME, len(self._probabilities))
        level = np.sqrt((self._audio[: frames * FRAME].reshape(-1, FRAME) ** 2).mean(axis=1))
        noise, loud = np.percentile(level, [5, 95])
        silent = self._probabilities[:frames] < SPEECH
        quiet = silent & (level <= noise + QUIET * (loud - noise))
        pauses = [(a, b) for a, b in _runs(quiet) if (b - a) * FRAME_S >= QUIET_PAUSE_S]
        pauses += [(a, b) for a, b in _runs(silent) if (b - a) * FRAME_S >= PAUSE_S]
        target = self._cutting.target_s / FRAME_S
        earliest = max(target / 3, self._overlap / FRAME + 1)

        def cost(pause: tuple[int, int]) -> float:
            # One second of silence makes up for being a third of the target length away from the target.
            length_s = min(1.0, (pause[1] - pause[0]) * FRAME_S)
            return abs(sum(pause) / 2 - target) / target - length_s / 3

        best = min((pause for pause in pauses if sum(pause) / 2 > earliest), key=cost, default=None)
        return sum(best) // 2 * FRAME if best else None


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(first, one past the last) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
