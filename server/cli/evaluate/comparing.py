"""Two systems on the same utterances: whether one is shown to be better."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.cli.evaluate.manifests import ManifestError
from server.cli.evaluate.predictions import Prediction
from server.cli.evaluate.scoring import RESAMPLES, Errors, Interval, Score, difference_interval_percent, scored, total

# A smaller p is called a difference.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Pair:
    """What two systems wrote for the same utterance."""

    here: Prediction
    there: Prediction


@dataclass(frozen=True)
class Difference:
    """Two figures, and what lies between them. verdict: "better", "worse", "none shown" or "same", of the first.

    interval: of the difference of two error rates, 95 %; p: of two translation scores.
    """

    name: str
    here: float
    there: float
    verdict: str
    interval: Interval | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """fewer_here, fewer_there: transcriptions with fewer word errors, normalized; missing: utterances that the other
    file does not have.
    """

    other: str
    system: str | None
    utterances: int
    missing: int
    same_text: int
    fewer_here: int
    fewer_there: int
    differences: list[Difference]


def compared(here: Sequence[Prediction], there: Sequence[Prediction], other: Path) -> Comparison:
    """The first predictions against the second, over the utterances that both have.

    Raises ManifestError if they have none in common.
    """
    pairs = paired(here, there)
    if not pairs:
        raise ManifestError(f"{other} has none of these utterances; audio_filepath, offset and target_lang must match")
    transcribed = [pair for pair in pairs if not pair.here.utterance.translation_target]
    differences, fewer_here, fewer_there = [], 0, 0
    if transcribed:
        ours, theirs = ([scored(side) for side in sides] for sides in _sides(transcribed))
        differences += _error_differences(ours, theirs)
        both = list(zip(ours, theirs, strict=True))
        fewer_here = sum(our.words.count < their.words.count for our, their in both)
        fewer_there = sum(our.words.count > their.words.count for our, their in both)
    for direction, translated in _by_direction(pairs).items():
        differences += _translation_differences(direction, translated)
    systems = {prediction.system for prediction in there}
    return Comparison(
        str(other),
        systems.pop() if len(systems) == 1 else None,
        len(pairs),
        len(here) - len(pairs),
        sum(pair.here.text == pair.there.text for pair in pairs),
        fewer_here,
        fewer_there,
        differences,
    )


def paired(here: Sequence[Prediction], there: Sequence[Prediction]) -> list[Pair]:
    """The utterances of both, found by the name in the manifest, by the absolute path, or by the file's own name:
    whichever finds most. The reference and the language are the first's.
    """
    return max((_paired_by(key, here, there) for key in (_name, _path, _file)), key=len)


def _paired_by(
    key: Callable[[Prediction], Hashable], here: Sequence[Prediction], there: Sequence[Prediction]
) -> list[Pair]:
    ours, theirs = _grouped(key, here), _grouped(key, there)
    return [
        Pair(our, replace(theirs[place][0], utterance=our.utterance, language=our.language))
        for place, [our, *others] in ours.items()
        if not others and len(theirs.get(place, ())) == 1
    ]


def _grouped(
    key: Callable[[Prediction], Hashable], predictions: Sequence[Prediction]
) -> dict[Hashable, list[Prediction]]:
    groups = defaultdict(list)
    for prediction in predictions:
        _, offset_s, target = prediction.utterance.key
        groups[key(prediction), offset_s, target].append(prediction)
    return groups


def _name(prediction: Prediction) -> Hashable:
    return prediction.utterance.name


def _path(prediction: Prediction) -> Hashable:
    return prediction.utterance.path.resolve()


def _file(prediction: Prediction) -> Hashable:
    return prediction.utterance.path.name


def _sides(pairs: Sequence[Pair]) -> tuple[list[Prediction], list[Prediction]]:
    return [pair.here for pair in pairs], [pair.there for pair in pairs]


def _by_direction(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    groups = defaultdict(list)
    for pair in pairs:
        if target := pair.here.utterance.translation_target:
            groups[f"{pair.here.language}-{target}"].append(pair)
    return groups


def _error_differences(ours: Sequence[Score], theirs: Sequence[Score]) -> list[Difference]:
    figures: list[tuple[str, Callable[[Score], Errors]]] = [
        ("WER", lambda score: score.words),
        ("CER", lambda score: score.characters),
        ("raw WER", lambda score: score.raw_words),
    ]
    differences = []
    for name, of in figures:
        first, second = [of(score) for score in ours], [of(score) for score in theirs]
        here, there = total(first).percent, total(second).percent
        interval = difference_interval_percent(first, second)
        if here is None or there is None or interval is None:
            continue
        if first == second:
            verdict = "same"
        elif interval.low <= 0 <= interval.high:
            verdict = "none shown"
        else:
            verdict = "better" if here < there else "worse"
        differences.append(Difference(name, here, there, verdict, interval))
    return differences


def _translation_differences(direction: str, pairs: Sequence[Pair]) -> list[Difference]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.significance import PairedTest

    ours, theirs = ([side.text for side in sides] for sides in _sides(pairs))
    references = [[pair.here.utterance.text for pair in pairs]]
    test = PairedTest(
        [("there", theirs), ("here", ours)], {"BLEU": BLEU(), "chrF": CHRF()}, references, "bs", RESAMPLES
    )
    results: dict[str, Any] = test()[1]
    differences = []
    for metric, figures in results.items():
        if metric == "System":
            continue
        there, here = figures
        # Where nothing differs, the test would find that chance does not explain it.
        if ours == theirs:
            verdict, p = "same", None
        else:
            p = float(here.p_value)
            is_shown = p < SIGNIFICANT and here.score != there.score
            verdict = ("better" if here.score > there.score else "worse") if is_shown else "none shown"
        differences.append(Difference(f"{direction} {metric}", float(here.score), float(there.score), verdict, p=p))
    return differences
