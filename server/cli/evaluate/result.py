"""Everything an evaluation found, before it is shown or written."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from server.cli.evaluate.comparing import Comparison
from server.cli.evaluate.predictions import Prediction
from server.cli.evaluate.scoring import (
    Errors,
    Interval,
    Score,
    TranslationScore,
    interval_percent,
    scored,
    total,
    translation_score,
)

ALL = "all"
WORST = 10


@dataclass(frozen=True)
class ErrorRates:
    """Transcriptions of one language, or all: errors in normalized and in raw text."""

    utterances: int
    words: Errors
    interval: Interval | None
    characters: Errors
    raw_words: Errors
    raw_interval: Interval | None
    raw_characters: Errors


@dataclass(frozen=True)
class Evaluation:
    """system: what wrote the texts; details: its parts, if it ran here. rates: by language, and ALL; translations: by
    pair, "en-de". worst: with most word errors first. audio_s and wall_s: of the utterances whose time is known.
    """

    source: str
    system: str | None
    details: dict[str, Any]
    predictions: list[Prediction]
    rates: dict[str, ErrorRates]
    translations: dict[str, TranslationScore]
    worst: list[Score]
    audio_s: float
    wall_s: float
    comparison: Comparison | None = None
    libraries: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> list[Prediction]:
        return [each for each in self.predictions if each.error]

    @property
    def empty(self) -> list[Prediction]:
        """Without a text, though nothing failed and the reference has one."""
        return [each for each in self.predictions if not (each.error or each.text.strip()) and each.utterance.text]

    @property
    def wer_percent(self) -> float | None:
        """Of all transcriptions, normalized; None without any words."""
        return self.rates[ALL].words.percent if ALL in self.rates else None

    @property
    def speed(self) -> float | None:
        """Seconds of audio transcribed per second: the inverse real-time factor."""
        return self.audio_s / self.wall_s if self.wall_s else None


def evaluated(
    source: str,
    predictions: Sequence[Prediction],
    system: str | None,
    details: dict[str, Any],
    libraries: dict[str, str],
    comparison: Comparison | None = None,
) -> Evaluation:
    """All figures. Failed utterances count with an empty text."""
    scores = [scored(each) for each in predictions if not each.utterance.translation_target]
    timed = [each for each in predictions if each.duration_s is not None and each.time_s is not None]
    worst = sorted((score for score in scores if score.words.count), key=lambda score: -score.words.count)
    return Evaluation(
        source,
        system,
        details,
        list(predictions),
        _rates(scores),
        _translations(predictions),
        worst[:WORST],
        sum(each.duration_s or 0.0 for each in timed if not each.error),
        sum(each.time_s or 0.0 for each in timed),
        comparison,
        libraries,
    )


def _rates(scores: Sequence[Score]) -> dict[str, ErrorRates]:
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.prediction.language or "unknown"].append(score)
    rates = {language: _rates_of(groups[language]) for language in sorted(groups)}
    return rates | ({ALL: _rates_of(scores)} if scores else {})


def _rates_of(scores: Sequence[Score]) -> ErrorRates:
    words, raw_words = [score.words for score in scores], [score.raw_words for score in scores]
    return ErrorRates(
        len(scores),
        total(words),
        interval_percent(words),
        total(score.characters for score in scores),
        total(raw_words),
        interval_percent(raw_words),
        total(score.raw_characters for score in scores),
    )


def _translations(predictions: Sequence[Prediction]) -> dict[str, TranslationScore]:
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for each in predictions:
        if target := each.utterance.translation_target:
            groups[f"{each.language or 'unknown'}-{target}"].append(each)
    return {pair: translation_score(groups[pair]) for pair in sorted(groups)}
