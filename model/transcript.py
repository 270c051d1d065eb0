"""What comes out: a transcript, its segments, its words. Times are seconds from the start of the audio."""

import zlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """One word as spoken; for a translation, as placed by the model on the source audio.

    probability: the geometric mean of its tokens'; None where it is not known. tokens: the generated ids that wrote it,
    times and other special tokens included, log_probs theirs; a segment's tokens are its words' one after the other.
    """

    word: str
    start: float
    end: float
    probability: float | None = None
    tokens: tuple[int, ...] = field(default=(), compare=False, repr=False)
    log_probs: tuple[float, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Segment:
    """A stretch of text. `tokens` are the generated ids, special tokens included, prompt and end not.

    avg_logprob: the mean over its tokens; no_speech_prob: the chance the model gave, before the first token, to there
    being nothing to write; language: what is spoken in it, where that was found out segment by segment.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    language: str | None = None

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text to those of its zlib compression: above about 2.4 where a text repeats itself."""
        text = self.text.encode()
        return len(text) / len(zlib.compress(text))


@dataclass(frozen=True)
class Transcript:
    """The text of one audio. `language` is what was spoken, `target_language` what the text is written in.

    timestamps_source: where the times in it are from: "model", "aligner" or "cross_attention"; None where nothing but
    the audio's own ends is known.
    """

    text: str
    language: str
    target_language: str
    duration: float
    segments: tuple[Segment, ...]
    timestamps_source: str | None = None
