"""The events of a live session. Times are seconds from its start."""

from dataclasses import dataclass

from model.transcript import Word


@dataclass(frozen=True)
class SpeechStarted:
    """Speech started at `start`."""

    turn: int
    start: float


@dataclass(frozen=True)
class SpeechStopped:
    """The turn's speech stopped at `end`."""

    turn: int
    end: float


@dataclass(frozen=True)
class Translation:
    """The text in the target language; its first `stable` characters will not change."""

    language: str
    text: str
    stable: int


@dataclass(frozen=True)
class LiveResult:
    """A segment's text so far; its first `stable` characters will not change.

    is_final: the text will not change; ends_turn: the speaker stopped after it.
    """

    segment: int
    turn: int
    text: str
    stable: int
    is_final: bool
    ends_turn: bool
    start: float
    end: float
    language: str | None
    words: tuple[Word, ...] = ()
    translation: Translation | None = None


@dataclass(frozen=True)
class Finalized:
    """All audio before the call of `finalize` has its final text."""


@dataclass(frozen=True)
class Lag:
    """The text is `seconds` behind the audio; 0 when it has caught up."""

    seconds: float


@dataclass(frozen=True)
class Problem:
    """Something that failed without ending the session."""

    code: str
    message: str


Event = SpeechStarted | SpeechStopped | LiveResult | Finalized | Lag | Problem
