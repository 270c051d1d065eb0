"""The result: a transcript, its segments and words. Times are seconds from the start of the audio."""

import zlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """One word; in a translation, at the time in the source audio where the model places it.

    probability: the geometric mean over its tokens; None if unknown. tokens: the generated ids that wrote it, times and
    other special tokens included; log_probs: theirs. The tokens of a segment are those of its words in order.
    confidence: from 0 to 1, that of its least sure token, if the model tells it.
    """

    word: str
    start: float
    end: float
    probability: float | None = None
    tokens: tuple[int, ...] = field(default=(), compare=False, repr=False)
    log_probs: tuple[float, ...] = field(default=(), compare=False, repr=False)
    confidence: float | None = None


@dataclass(frozen=True)
class Segment:
    """A stretch of text. `tokens` are the generated ids, special tokens included, prompt and end not.

    avg_logprob: the mean over its tokens; no_speech_prob: the probability, before the first token, that there is no
    speech; language: the spoken one, if it was detected for each segment.
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
        """Bytes of the text divided by those of its zlib compression; above about 2.4 if the text repeats itself."""
        text = self.text.encode()
        return len(text) / len(zlib.compress(text))


@dataclass(frozen=True)
class Transcript:
    """The text of one audio. `language` is the spoken one, `target_language` that of the text.

    timestamps_source: where times come from: "model", "aligner" or "cross_attention"; None if the only times are
    the start and end of the audio.
    """

    text: str
    language: str
    target_language: str
    duration: float
    segments: tuple[Segment, ...]
    timestamps_source: str | None = None
