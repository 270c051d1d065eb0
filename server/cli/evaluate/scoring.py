"""Word and character errors by jiwer, BLEU and chrF by sacrebleu, with confidence intervals.

The rate of a corpus is Σ errors / Σ words. An empty reference has no words, and what was written for it is inserted; an
utterance that failed has an empty text.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jiwer
import numpy as np

from server.cli.evaluate.predictions import Prediction

RESAMPLES = 1000
SEED = 0
# Numbers drawn at a time.
_DRAWN = 4_000_000


@dataclass(frozen=True)
class Errors:
    """The fewest edits that turn a reference into the hypothesis, in words or characters."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def length(self) -> int:
        """Of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def count(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def percent(self) -> float | None:
        """None for an empty reference."""
        return 100 * self.count / self.length if self.length else None

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


def word_errors(reference: str, hypothesis: str) -> Errors:
    return _errors(jiwer.process_words(reference, hypothesis))


def character_errors(reference: str, hypothesis: str) -> Errors:
    return _errors(jiwer.process_characters(reference, hypothesis))


def _errors(found: Any) -> Errors:
    return Errors(found.hits, found.substitutions, found.deletions, found.insertions)


def total(errors: Iterable[Errors]) -> Errors:
    return sum(errors, Errors())


def normalized(text: str, language: str) -> str:
    """Without punctuation and capitals, by Whisper's normalizers: English for en, the basic one for other languages.

    The English one also writes numbers, contractions and British spellings in one way.
    """
    return _normalizer(language == "en")(text).strip()


@cache
def _normalizer(is_english: bool) -> Any:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer() if is_english else BasicTextNormalizer()


@dataclass(frozen=True)
class Score:
    """A transcription beside its reference, both normalized, with the errors. raw: those of the texts as they are."""

    prediction: Prediction
    reference: str
    hypothesis: str
    words: Errors
    characters: Errors
    raw_words: Errors
    raw_characters: Errors


def scored(prediction: Prediction) -> Score:
    raw_reference, raw_hypothesis = prediction.utterance.text, prediction.text
    reference, hypothesis = (normalized(text, prediction.language) for text in (raw_reference, raw_hypothesis))
    return Score(
        prediction,
        reference,
        hypothesis,
        word_errors(reference, hypothesis),
        character_errors(reference, hypothesis),
        word_errors(raw_reference, raw_hypothesis),
        character_errors(raw_reference, raw_hypothesis),
    )


@dataclass(frozen=True)
class Interval:
    """Within which the figure lies in 95 % of the resamples of the utterances."""

    low: float
    high: float


def interval_percent(errors: Sequence[Errors]) -> Interval | None:
    """Of the errors' rate, in percent. None if the references have no words."""
    counts, lengths = _columns(errors)
    return _interval(_resampled_percent(counts[None], lengths)[0])


def difference_interval_percent(first: Sequence[Errors], second: Sequence[Errors]) -> Interval | None:
    """Of the first rate minus the second, in percentage points, both of the same utterances: a paired bootstrap."""
    (first_counts, lengths), (second_counts, _) = _columns(first), _columns(second)
    rates = _resampled_percent(np.stack([first_counts, second_counts]), lengths)
    return _interval(rates[0] - rates[1])


def _columns(errors: Sequence[Errors]) -> tuple[np.ndarray, np.ndarray]:
    """Errors and words of each utterance, (N,) each."""
    return np.array([each.count for each in errors]), np.array([each.length for each in errors])


def _resampled_percent(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rates of RESAMPLES draws of N utterances with replacement, (systems, draws). counts: (systems, N).

    NaN where a draw has no words.
    """
    n, random = len(lengths), np.random.default_rng(SEED)
    rates, at_once = [], max(1, _DRAWN // n)
    for first in range(0, RESAMPLES, at_once):
        drawn = random.integers(n, size=(min(at_once, RESAMPLES - first), n))
        words = lengths[drawn].sum(axis=1)
        rates.append(100 * counts[:, drawn].sum(axis=2) / np.where(words, words, np.nan))
    return np.concatenate(rates, axis=1)


def _interval(values: np.ndarray) -> Interval | None:
    values = values[np.isfinite(values)]
    return Interval(*(float(limit) for limit in np.percentile(values, [2.5, 97.5]))) if len(values) else None


@dataclass(frozen=True)
class TranslationScore:
    """BLEU and chrF of translations into one language, each with half the width of its 95 % interval."""

    utterances: int
    bleu: float
    bleu_margin: float
    chrf: float
    chrf_margin: float
    signatures: dict[str, str]


def translation_score(predictions: Sequence[Prediction]) -> TranslationScore:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    texts, references = [each.text for each in predictions], [[each.utterance.text for each in predictions]]
    found: dict[str, tuple[float, float]] = {}
    signatures = {}
    for name, metric in (("BLEU", BLEU()), ("chrF", CHRF())):
        # With one sentence sacrebleu's estimate would divide by zero.
        score = metric.corpus_score(texts, references, n_bootstrap=RESAMPLES if len(texts) > 1 else 1)
        signatures[name] = str(metric.get_signature())
        figures = json.loads(score.format(signature=signatures[name], is_json=True))
        found[name] = score.score, float(figures.get("confidence_var") or 0.0)
    return TranslationScore(len(texts), *found["BLEU"], *found["chrF"], signatures)
