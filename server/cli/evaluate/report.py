"""An evaluation on one screen, and as JSON. Rates are in percent."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jiwer

from server.cli.evaluate.comparing import Comparison, Difference
from server.cli.evaluate.result import Evaluation
from server.cli.evaluate.scoring import Errors, Interval, Score

WIDTH = 100
# Correct words shown on each side of an error, and lines shown of one alignment.
_AROUND, _ROWS = 3, 3
# With fewer utterances a bootstrap is not reliable.
_FEW = 30

_ERRORS = (
    "language",
    "utterances",
    "words",
    "WER %",
    "95 % interval",
    "S",
    "D",
    "I",
    "CER %",
    "raw WER %",
    "raw CER %",
)
_TRANSLATIONS = ("translation", "utterances", "BLEU", "±", "chrF", "±")
_DIFFERENCES = ("", "here", "there", "difference", "95 % interval", "")
_VERDICTS = {
    "better": "better here",
    "worse": "worse here",
    "none shown": "no difference shown",
    "same": "identical",
}


def screen(found: Evaluation) -> str:
    """For people: figures, failures, the worst utterances and the comparison."""
    lines = [found.system or "Written by an unknown system", _counts(found)]
    if found.rates:
        rows = [
            (
                language,
                rates.utterances,
                rates.words.length,
                _percent(rates.words),
                _range(rates.interval),
                rates.words.substitutions,
                rates.words.deletions,
                rates.words.insertions,
                _percent(rates.characters),
                _percent(rates.raw_words),
                _percent(rates.raw_characters),
            )
            for language, rates in found.rates.items()
        ]
        lines += ["", *_table(_ERRORS, rows)]
    if found.translations:
        rows = [
            (
                pair,
                score.utterances,
                f"{score.bleu:.2f}",
                f"{score.bleu_margin:.2f}",
                f"{score.chrf:.2f}",
                f"{score.chrf_margin:.2f}",
            )
            for pair, score in found.translations.items()
        ]
        lines += ["", *_table(_TRANSLATIONS, rows)]
    if found.worst:
        lines += ["", f"Most word errors ({len(found.worst)} utterances; errors in capitals):"]
        for score in found.worst:
            lines += ["", *_worst(score)]
    if found.comparison:
        lines += ["", *_comparison(found.comparison)]
    if len(found.predictions) < _FEW:
        lines += ["", f"Only {len(found.predictions)} utterances: the intervals are not reliable."]
    versions = ", ".join(f"{name} {version}" for name, version in found.libraries.items())
    return "\n".join([*lines, "", f"WER and CER: normalized text; raw: with punctuation and capitals. {versions}"])


def _counts(found: Evaluation) -> str:
    parts = [f"{len(found.predictions)} utterances", f"{len(found.failures)} failed", f"{len(found.empty)} empty"]
    if found.speed:
        parts.append(f"{found.audio_s:.1f} s of audio in {found.wall_s:.1f} s: {found.speed:.1f} times real time")
    return ", ".join(parts)


def _percent(errors: Errors) -> str:
    return "–" if errors.percent is None else f"{errors.percent:.2f}"


def _range(interval: Interval | None, form: str = ".2f") -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}" if interval else "–"


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns aligned to the right, but for the first."""
    cells = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [[text.rjust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    return ["  ".join([row[0].ljust(widths[0]), *line[1:]]).rstrip() for row, line in zip(cells, aligned, strict=True)]


def _worst(score: Score) -> list[str]:
    words, prediction = score.words, score.prediction
    offset_s = prediction.utterance.offset_s
    name = prediction.utterance.name + (f" at {offset_s:g} s" if offset_s else "")
    why = f" ({prediction.error})" if prediction.error else ""
    return [
        f"{name}: {words.count} error{'s' * (words.count != 1)} in {words.length} words{why}",
        *alignment(score.reference, score.hypothesis),
    ]


def alignment(reference: str, hypothesis: str) -> list[str]:
    """Pairs of lines, REF and HYP, with each word above what was written for it, and errors in capitals.

    Long correct stretches are left out, and so is what does not fit into a few lines.
    """
    columns = _columns(reference, hypothesis)
    lines, begin = [], 0
    while begin < len(columns) and len(lines) < 2 * _ROWS:
        end, width = begin, 6
        while end < len(columns) and (end == begin or width + _width(columns[end]) <= WIDTH):
            width += _width(columns[end])
            end += 1
        row = columns[begin:end]
        for name, side in (("REF", 0), ("HYP", 1)):
            lines.append(f"  {name} " + " ".join(column[side].ljust(_width(column) - 1) for column in row).rstrip())
        begin = end
    errors = sum(ref != hyp for ref, hyp in columns[begin:])
    return [*lines, f"  … and {errors} more errors"] if errors else lines


def _width(column: tuple[str, str]) -> int:
    return max(map(len, column)) + 1


def _columns(reference: str, hypothesis: str) -> list[tuple[str, str]]:
    """Words of both, one above the other; *** where one has none, and … for a long correct stretch."""
    found = jiwer.process_words(reference, hypothesis)
    ref, hyp = found.references[0], found.hypotheses[0]
    columns: list[tuple[str, str]] = []
    for index, chunk in enumerate(found.alignments[0]):
        refs = ref[chunk.ref_start_idx : chunk.ref_end_idx]
        hyps = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            before = _AROUND if index else 0
            after = _AROUND if index + 1 < len(found.alignments[0]) else 0
            if len(refs) > before + after + 1:
                refs = [*refs[:before], "…", *refs[len(refs) - after :]]
            columns += [(word, word) for word in refs]
        elif chunk.type == "substitute":
            columns += [(r.upper(), h.upper()) for r, h in zip(refs, hyps, strict=True)]
        else:
            columns += [(word.upper(), "***") for word in refs] + [("***", word.upper()) for word in hyps]
    return columns


def _comparison(found: Comparison) -> list[str]:
    lines = [f"Against {found.other}" + (f" ({found.system})" if found.system else "")]
    both = f"{found.utterances} utterances in both, {found.same_text} with the same text"
    if found.fewer_here or found.fewer_there:
        both += f"; fewer errors here in {found.fewer_here}, there in {found.fewer_there}"
    if found.missing:
        both += f"; {found.missing} are not in the other file and are left out"
    rows = [
        (
            each.name,
            f"{each.here:.2f}",
            f"{each.there:.2f}",
            f"{each.here - each.there:+.2f}",
            _range(each.interval, "+.2f") if each.interval else "–" if each.p is None else f"p = {each.p:.3f}",
            _VERDICTS[each.verdict],
        )
        for each in found.differences
    ]
    return [*lines, both, *_table(_DIFFERENCES, rows), conclusion(found.differences)]


def conclusion(differences: Sequence[Difference]) -> str:
    """The comparison in a sentence."""
    if all(each.verdict == "same" for each in differences):
        return "There is no difference."
    shown = [each for each in differences if each.verdict in ("better", "worse")]
    if not shown:
        return "No difference can be shown: other utterances might reverse it."
    told = "; ".join(f"{each.name} is {_VERDICTS[each.verdict]}" for each in shown)
    return f"There is a difference: {told}."


def as_json(found: Evaluation, version: str) -> str:
    """Everything, as one object."""
    result = {
        "version": version,
        "manifest": found.source,
        "system": found.system,
        "model": found.details or None,
        "libraries": found.libraries,
        "utterances": len(found.predictions),
        "failed": len(found.failures),
        "empty": len(found.empty),
        "audio_s": round(found.audio_s, 3),
        "wall_s": round(found.wall_s, 3),
        "real_time_factor": round(found.wall_s / found.audio_s, 5) if found.audio_s and found.wall_s else None,
        "transcription": {
            language: {
                "utterances": rates.utterances,
                **_error_figures("wer", rates.words, rates.interval),
                **_error_figures("cer", rates.characters),
                **_error_figures("raw_wer", rates.raw_words, rates.raw_interval),
                **_error_figures("raw_cer", rates.raw_characters),
            }
            for language, rates in found.rates.items()
        },
        "translation": {pair: asdict(score) for pair, score in found.translations.items()},
        "worst": [
            {
                "audio_filepath": score.prediction.utterance.name,
                "offset": score.prediction.utterance.offset_s,
                "errors": score.words.count,
                "words": score.words.length,
                "reference": score.reference,
                "hypothesis": score.hypothesis,
            }
            for score in found.worst
        ],
        "failures": [{"audio_filepath": each.utterance.name, "error": each.error} for each in found.failures],
        "against": asdict(found.comparison) if found.comparison else None,
    }
    return json.dumps(result, indent=2, ensure_ascii=False)


def _error_figures(name: str, errors: Errors, interval: Interval | None = None) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"{name}_percent": None if errors.percent is None else round(errors.percent, 4),
        f"{name}_counts": {
            "length": errors.length,
            "substitutions": errors.substitutions,
            "deletions": errors.deletions,
            "insertions": errors.insertions,
        },
    }
    return figures | ({f"{name}_interval": [round(interval.low, 4), round(interval.high, 4)]} if interval else {})
