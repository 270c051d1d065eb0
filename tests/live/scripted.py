"""A decoder without a model, which knows what is said when, and a reader that holds a session to its promises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.task import Task
from server.audio.vad import FRAME
from server.live.events import Event, Finalized, Lag, LiveResult, Problem, SpeechStarted, SpeechStopped
from server.live.policy import Token
from server.live.segment import LiveOptions
from server.live.session import LiveSession
from server.live.windows import Decode, Heard, WindowTranscriber

SAMPLE_RATE = 16_000
WORD_S, GAP_S = 0.3, 0.1


@dataclass(frozen=True)
class Said:
    word: str
    start: float
    end: float


def said(text: str, start: float = 0.5) -> list[Said]:
    """Words of 0.3 s, 0.1 s apart; a `|` is a pause of a second."""
    words, at = [], start
    for word in text.split():
        if word == "|":
            at += 1.0
            continue
        words.append(Said(word, at, at + WORD_S))
        at += WORD_S + GAP_S
    return words


def sound(words: list[Said], tail_s: float = 1.0) -> np.ndarray:
    """Samples that say where they are: each is its own number, so that a decoder knows which window it was given."""
    return np.arange(round((words[-1].end + tail_s) * SAMPLE_RATE) if words else SAMPLE_RATE, dtype=np.float32)


def token_id(text: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 100_003


def tokens_of(word: str, at_s: float) -> list[Token]:
    """The word in pieces of three letters, its mark apart."""
    bare = word.rstrip(".,?!")
    pieces = [bare[i : i + 3] for i in range(0, len(bare), 3)] + list(word[len(bare) :])
    pieces[0] = f" {pieces[0]}"
    return [Token(token_id(piece), piece, at_s) for piece in pieces]


@dataclass
class ScriptedDecoder:
    """Hears of a window what was said in it; a word that it cuts is heard as another, `guess`."""

    script: list[Said]
    translate: Callable[[str], str] = str.upper
    guess: str = "hm"
    language: str = "en"
    probability: float = 1.0
    windows: list[tuple[float, float]] = field(default_factory=list)
    tasks: list[tuple[Task, ...]] = field(default_factory=list)

    async def __call__(
        self,
        window: np.ndarray,
        tasks: tuple[Task, ...],
        given: tuple[tuple[Token, ...], ...],
        last: bool,
        look: Any = None,
        tails: tuple[tuple[Token, ...], ...] = (),
    ) -> Heard:
        start = float(window[0]) / SAMPLE_RATE
        end = start + len(window) / SAMPLE_RATE
        self.windows.append((start, end))
        self.tasks.append(tasks)
        texts = []
        for task, before in zip(tasks, given, strict=True):
            tokens = []
            for word in self.script:
                if start <= word.start < end:
                    text = word.word if word.end <= end else self.guess
                    tokens += tokens_of(self.translate(text) if task.is_translation else text, word.start - start)
            # what was said before stays as it was written, whatever would be written now
            texts.append(tuple(tokens[len(before) :]))
        return Heard(tuple(texts), self.language, self.probability)


@dataclass
class Reader:
    """Reads every event as it comes, and fails when a promise is broken."""

    results: list[LiveResult] = field(default_factory=list)
    others: list[Event] = field(default_factory=list)
    finalized: int = 0
    _former: LiveResult | None = None

    def clear(self) -> None:
        """What was being said is forgotten: it has no end."""
        if self._former and not self._former.is_final:
            self._former = None

    def read(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case LiveResult():
                    self._check(event)
                    self.results.append(event)
                case Finalized():
                    self.finalized += 1
                case SpeechStarted() | SpeechStopped() | Lag() | Problem():
                    self.others.append(event)

    def _check(self, result: LiveResult) -> None:
        former, self._former = self._former, result
        assert 0 <= result.stable <= len(result.text)
        if former and former.segment == result.segment:
            assert not former.is_final, "a segment changed after its end"
            assert result.text[: result.stable].startswith(former.text[: former.stable])
            if former.translation and result.translation:
                kept = former.translation.text[: former.translation.stable]
                assert result.translation.text[: result.translation.stable].startswith(kept)
        elif former:
            assert former.is_final, "a segment began before the last one's end"
            assert result.segment > former.segment
            assert result.start >= former.end, "sound was heard twice"
        if result.is_final:
            assert result.stable == len(result.text)
            assert [w.word for w in result.words] == result.text.split()
        places = [t for w in result.words for t in (w.start, w.end)]
        assert places == sorted(places)
        assert all(result.start <= place <= result.end for place in places)

    @property
    def finals(self) -> list[LiveResult]:
        return [result for result in self.results if result.is_final]

    @property
    def text(self) -> str:
        return " ".join(result.text for result in self.finals if result.text)

    def of(self, kind: type) -> list:
        return [event for event in self.others if isinstance(event, kind)]


def speech_probabilities(script: list[Said], samples: int) -> list[float]:
    """1 where a word is, 0 elsewhere, for every whole frame."""
    middles = [(i + 0.5) * FRAME / SAMPLE_RATE for i in range(samples // FRAME)]
    return [float(any(word.start <= at < word.end for word in script)) for at in middles]


def session_over(
    decode: Decode, options: LiveOptions = LiveOptions(), check: Callable[[Task], None] = lambda task: None
) -> LiveSession:
    """A session over a decoder of whole windows."""
    return LiveSession(WindowTranscriber(decode, options, check), options)


async def hear_all(
    session: LiveSession, waveform: np.ndarray, probabilities: list[float], piece: int = 1600, finalize: bool = True
) -> Reader:
    """Everything, in pieces, looked at whenever that is due."""
    reader = Reader()
    frames = 0
    for at in range(0, len(waveform), piece):
        samples = waveform[at : at + piece]
        whole = min((at + len(samples)) // FRAME, len(probabilities))
        reader.read(session.hear(samples, probabilities[frames:whole]))
        frames = whole
        await step_all(session, reader)
    if finalize:
        reader.read(session.finalize())
        await step_all(session, reader)
    return reader


async def step_all(session: LiveSession, reader: Reader) -> None:
    while session.due:
        reader.read(await session.step())


async def live(script: list[Said], decoder: ScriptedDecoder | None = None, **options) -> Reader:
    """A session over `script` with these options."""
    session = session_over(decoder or ScriptedDecoder(script), LiveOptions(**options))
    waveform = sound(script)
    return await hear_all(session, waveform, speech_probabilities(script, len(waveform)))
