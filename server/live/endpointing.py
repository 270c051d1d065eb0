"""Speech probabilities → turns, cut into segments at pauses. Positions are samples at 16 kHz."""

from dataclasses import dataclass

from model.config import SAMPLE_RATE
from server.audio.vad import FRAME
from server.live.events import SpeechStarted, SpeechStopped

# Consecutive frames of speech that begin a turn; a single one is a click.
ONSET_FRAMES = 2
# Speech continues while its probability is at least the threshold minus this.
HYSTERESIS = 0.15


@dataclass(frozen=True)
class Endpointing:
    """silence_s: silence that ends a turn; padding_s: audio kept before and after speech.

    Once a segment is `long_s` long, a pause of `pause_s` ends it, but not the turn.
    """

    threshold: float = 0.5
    silence_s: float = 0.5
    padding_s: float = 0.3
    long_s: float = 10.0
    pause_s: float = 0.16


@dataclass(eq=False)
class SpeechSpan:
    """A segment of audio to transcribe, from `start` to `end` (None while it continues).

    spoken: it contains speech; dropped: its text is no longer wanted.
    """

    turn: int
    start: int
    spoken: bool
    end: int | None = None
    ends_turn: bool = False
    dropped: bool = False


class Endpointer:
    """Takes the speech probability of every frame, in order, and appends new segments to `segments`.

    Frames are contiguous; after a `cut`, the next one starts there.
    """

    def __init__(self, options: Endpointing):
        self.options = options
        self.segments: list[SpeechSpan] = []
        self._open: SpeechSpan | None = None
        self._heard = 0
        self._onset = 0
        self._last_speech = 0
        self._free_from = 0
        self._turns = 0

    @property
    def turn(self) -> int | None:
        """The turn in progress."""
        return self._open.turn if self._open else None

    @property
    def needed_from(self) -> int:
        """Audio before this sample will not be part of any new segment."""
        before = self._heard - self._samples(self.options.padding_s) - ONSET_FRAMES * FRAME
        return max(self._free_from, before)

    def hear(self, probabilities: list[float]) -> list[SpeechStarted | SpeechStopped]:
        events: list[SpeechStarted | SpeechStopped] = []
        for probability in probabilities:
            self._heard += FRAME
            event = self._silent(probability) if self._open is None else self._speaking(self._open, probability)
            if event:
                events.append(event)
        return events

    def cut(self, at: int) -> list[SpeechStopped]:
        """End the current turn at the sample `at`; speech after it starts a new turn."""
        segment, self._open = self._open, None
        self._onset, self._free_from, self._heard = 0, at, at
        if segment is None:
            return []
        segment.end, segment.ends_turn = at, True
        return [SpeechStopped(segment.turn, self._last_speech / SAMPLE_RATE)]

    def _silent(self, probability: float) -> SpeechStarted | None:
        self._onset = self._onset + 1 if probability >= self.options.threshold else 0
        if self._onset < ONSET_FRAMES:
            return None
        spoken = self._heard - self._onset * FRAME
        self._turns += 1
        self._begin(max(self._free_from, spoken - self._samples(self.options.padding_s), 0), spoken=True)
        self._onset, self._last_speech = 0, self._heard
        return SpeechStarted(self._turns, max(spoken, self._free_from) / SAMPLE_RATE)

    def _speaking(self, segment: SpeechSpan, probability: float) -> SpeechStopped | None:
        now = self._heard
        if probability >= self.options.threshold - HYSTERESIS:
            self._last_speech, segment.spoken = now, True
            return None
        silence = now - self._last_speech
        if silence >= self._samples(self.options.silence_s):
            segment.end = min(now, self._last_speech + self._samples(self.options.padding_s))
            segment.ends_turn = True
            self._open, self._free_from = None, segment.end
            return SpeechStopped(segment.turn, self._last_speech / SAMPLE_RATE)
        long = now - segment.start >= self._samples(self.options.long_s)
        if long and silence >= self._samples(self.options.pause_s) and segment.spoken:
            segment.end = now
            self._begin(now, spoken=False)
        return None

    def _begin(self, at: int, spoken: bool) -> None:
        self._open = SpeechSpan(self._turns, at, spoken)
        self.segments.append(self._open)

    @staticmethod
    def _samples(seconds: float) -> int:
        return round(seconds * SAMPLE_RATE)
