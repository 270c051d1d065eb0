"""A segment that is being transcribed: its lines of text, and what a look at its window gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np

from model.task import Task
from model.transcript import Word
from server.live.endpointing import Endpointing
from server.live.events import Event, LiveResult
from server.live.policy import Policy, Token, agreed, aligned, without_loop
from server.settings import Settings


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

    lines: the transcript and, once its language is known, a translation; language: None until it is known; looked_at:
    the sample that its last window ended at; look: see `windows.Heard`; of a decoder that carries state, settled_s:
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


@dataclass(frozen=True)
class Written:
    """What a look gave besides text. words: of the first line, in seconds from the window's start, if the window is
    complete and they were timed; model_s: how long the model took."""

    events: Sequence[Event] = ()
    words: Sequence[Word] = ()
    model_s: float = 0.0


class Transcribe(Protocol):
    """Brings the lines of a segment up to date with its window (N,).

    last: the window will not grow; cut: the sample where the text ends if it is inside a turn. The audio after it is
    context, of which the decoder needs `right_s`.
    """

    @property
    def right_s(self) -> float: ...

    async def __call__(self, window: np.ndarray, segment: OpenSegment, last: bool, cut: int | None) -> Written: ...
