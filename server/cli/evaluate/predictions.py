"""What a model wrote for each utterance, and the file of JSON lines that keeps it.

A line is the manifest's own with NeMo's `pred_text`, and with `time` as the Open ASR Leaderboard has it: seconds whose
sum is the wall time. `language` is the spoken one, `system` says what wrote the text, and `error` why there is none.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from server.cli.evaluate.manifests import ManifestError, Utterance, json_lines, read_manifest

PREDICTION = "pred_text"


@dataclass(frozen=True)
class Prediction:
    """language: the spoken one, given or detected; "" if nobody said and it was not detected. duration_s and time_s are
    None if they are not known; error: why there is no text.
    """

    utterance: Utterance
    text: str
    language: str
    duration_s: float | None = None
    time_s: float | None = None
    error: str | None = None
    system: str | None = None

    def to_record(self) -> dict[str, Any]:
        """A line of the file."""
        record = {name: value for name, value in self.utterance.record.items() if name != "error"}
        record |= {PREDICTION: self.text, "language": self.language, "system": self.system}
        if target := self.utterance.translation_target:
            record["target_lang"] = target
        if self.duration_s is not None:
            record["duration"] = round(self.duration_s, 3)
        if self.time_s is not None:
            record["time"] = round(self.time_s, 4)
        return record | ({"error": self.error} if self.error else {})


def prediction_of(utterance: Utterance) -> Prediction | None:
    """The prediction that a line holds, if it does."""
    record = utterance.record
    text, time_s, error = record.get(PREDICTION), record.get("time"), record.get("error")
    if not isinstance(text, str):
        return None
    return Prediction(
        utterance,
        # NeMo's begin with a space.
        text.strip(),
        str(utterance.language or record.get("language") or ""),
        utterance.duration_s,
        float(time_s) if isinstance(time_s, int | float) else None,
        str(error) if error else None,
        str(record["system"]) if record.get("system") else None,
    )


def read_predictions(path: Path, needs_text: bool = True) -> list[Prediction]:
    """All of a file's predictions, ours or NeMo's. Raises ManifestError for a line without one, and OSError."""
    predictions = []
    for utterance in read_manifest(path, needs_text):
        prediction = prediction_of(utterance)
        if prediction is None:
            raise ManifestError(f"{utterance.place}: {PREDICTION} is required")
        predictions.append(prediction)
    return predictions


def finished(output: Path, utterances: list[Utterance] | None, system: str) -> list[Prediction]:
    """The predictions that an interrupted run left in its file, without those that failed. utterances: those to look
    for; None for all that the file has.

    Raises ManifestError if another system wrote them, and OSError.
    """
    by_key = None if utterances is None else {utterance.key: utterance for utterance in utterances}
    done = []
    for utterance in _whole_lines(output):
        known = utterance if by_key is None else by_key.get(utterance.key)
        prediction = prediction_of(utterance)
        if not known or not prediction or prediction.error:
            continue
        if prediction.system != system:
            raise ManifestError(
                f"{utterance.place}: written by {prediction.system or 'another system'}, but this is {system}; "
                "choose another --output, or delete the file"
            )
        done.append(Prediction(known, *_values(prediction)))
    return done


def _values(prediction: Prediction) -> tuple[Any, ...]:
    return (
        prediction.text,
        prediction.language,
        prediction.duration_s,
        prediction.time_s,
        prediction.error,
        prediction.system,
    )


def _whole_lines(output: Path) -> list[Utterance]:
    """The utterances in a file whose last line may have been cut off."""
    written = output.read_text(encoding="utf-8")
    if not written.endswith("\n") and written:
        output.write_text(written[: written.rfind("\n") + 1], encoding="utf-8")
    return read_manifest(output) if next(json_lines(output), None) else []


class PredictionFile:
    """Keeps each prediction as soon as it is made; at the end, all of them in the manifest's order."""

    def __init__(self, path: Path, done: list[Prediction]):
        """done: what an earlier run made; nothing else of its file is kept. Raises OSError."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._replace(done)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def add(self, prediction: Prediction) -> None:
        self._file.write(_line(prediction))
        self._file.flush()

    def finish(self, predictions: list[Prediction]) -> None:
        """Put the predictions into this order."""
        self._replace(predictions)

    def close(self) -> None:
        self._file.close()

    def _replace(self, predictions: list[Prediction]) -> None:
        part = self._path.with_name(self._path.name + ".part")
        part.write_text("".join(map(_line, predictions)), encoding="utf-8")
        os.replace(part, self._path)


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction.to_record(), ensure_ascii=False) + "\n"
