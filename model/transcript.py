"""What comes out: a transcript, its segments, its words. Times are seconds from the start of the audio."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """One word as spoken; for a translation, as placed by the model on the source audio."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A stretch of text. `tokens` are the generated ids, special tokens included, prompt and end not."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """The text of one audio. `language` is what was spoken, `target_language` what the text is written in."""

    text: str
    language: str
    target_language: str
    duration: float
    segments: tuple[Segment, ...]
