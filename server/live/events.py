"""What comes out of a live session. Times are seconds into it."""

from dataclasses import dataclass

from model.transcript import Word


@dataclass(frozen=True)
class SpeechStarted:
    """Somebody began to speak, `start` seconds into the session."""

    turn: int
    start: float


@dataclass(frozen=True)
class SpeechStopped:
    """The turn's last sound was `end` seconds into the session."""

    turn: int
    end: float


@dataclass(frozen=True)
class Translation:
    """The text in the target language; `stable` characters of it stay."""

    language: str
    text: str
    stable: int


@dataclass(frozen=True)
class LiveResult:
    """A segment's text so far, of which the first `stable` characters stay. Times are seconds into the session.

    is_final: nothing of it changes any more; ends_turn: the speaker stopped after it.
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
    """Everything heard before `finalize` is written out."""


@dataclass(frozen=True)
class Lag:
    """The text is `seconds` behind the sound; 0 when it has caught up."""

    seconds: float


@dataclass(frozen=True)
class Problem:
    """Something that the session goes on without."""

    code: str
    message: str


Event = SpeechStarted | SpeechStopped | LiveResult | Finalized | Lag | Problem
