"""NeMo's values beside this device's, stage by stage: small archives with random weights in the published shapes.

The archives and the values are those of `tests/parity`, where NeMo made them.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from model.decoding import DecodingOptions, Encoded
from model.task import AUTO, Task
from server.cli.doctor.compared import DRAWN, GOLDENS, drawn_features, kept_frames
from server.cli.doctor.report import WRONG, Check, Finding, failed, ok
from server.cli.doctor.sounds import LENGTHS, checksum, sound

if TYPE_CHECKING:
    from model.canary.model import CanaryModel
    from model.listening import Listener
    from model.parakeet.model import ParakeetModel

STAGES = ("features", "encoder", "sound to vectors", "log-probabilities")
# Largest absolute difference by type and stage, of values around 1. Features are computed in float32 in any case.
LIMITS: dict[str, dict[str, float]] = {
    "float32": dict(zip(STAGES, (3e-4, 1e-5, 1e-4, 1e-4), strict=True)),
    "float16": dict(zip(STAGES, (3e-4, 0.03, 0.03, 0.06), strict=True)),
    "bfloat16": dict(zip(STAGES, (3e-4, 0.2, 0.2, 0.4), strict=True)),
}
# A GPU's float32 exponentials and logarithms are less exact than a CPU's.
GPU_SLACK = 10
BEAM = {"beam_size": 3, "length_penalty": 1.0}
# The folder of Parakeets among the goldens.
PARAKEETS = "parakeet"


@dataclass(frozen=True)
class Golden:
    """An archive, and what NeMo computes with it."""

    archive: Path

    @property
    def is_parakeet(self) -> bool:
        return self.archive.parent.name == PARAKEETS

    @property
    def name(self) -> str:
        return f"{PARAKEETS}-{self.archive.stem}" if self.is_parakeet else self.archive.stem

    def values(self) -> dict[str, Any]:
        """Sounds, prompts, tokens and texts."""
        return json.loads(self.archive.with_suffix(".json").read_text(encoding="utf-8"))

    def arrays(self) -> dict[str, np.ndarray]:
        """What each stage gives."""
        with np.load(self.archive.with_suffix(".npz")) as arrays:
            return dict(arrays)


@dataclass
class Comparison:
    """Of all archives in one type: the largest difference in each stage, with its archive, and how many texts match."""

    differences: dict[str, tuple[float, str]] = field(default_factory=dict)
    same: int = 0
    texts: int = 0
    first_wrong: str = ""
    is_complete: bool = False

    def add(self, archive: str, stage: str, difference: float) -> None:
        if math.isnan(difference):
            difference = math.inf
        if difference > self.differences.get(stage, (-1.0, ""))[0]:
            self.differences[stage] = difference, archive

    def add_text(self, name: str, is_same: bool) -> None:
        self.texts += 1
        self.same += is_same
        if not is_same:
            self.first_wrong = self.first_wrong or name


def goldens() -> list[Golden]:
    return [Golden(path) for folder in (GOLDENS, GOLDENS / PARAKEETS) for path in sorted(folder.glob("*.nemo"))]


def checks(dtype: str, scratch: Path, progress: Callable[[str], None]) -> Iterator[Check]:
    """One for each stage, and one for the texts. The first compares everything; if it cannot, there are no others."""
    name, comparison = f"NeMo {dtype}", Comparison()

    def compare() -> Finding:
        for golden in goldens():
            progress(f"NeMo's values, {golden.name} in {dtype}")
            add(comparison, converted(golden, scratch, dtype), golden)
        comparison.is_complete = True
        return _judged(STAGES[0], comparison, dtype)

    yield name, compare
    if comparison.is_complete:
        for stage in STAGES[1:]:
            if stage not in comparison.differences:
                continue
            yield name, lambda stage=stage: _judged(stage, comparison, dtype)
        yield name, lambda: _judged_texts(comparison, dtype)


def converted(golden: Golden, scratch: Path, dtype: str) -> "Listener":
    """The archive's model, computing in `dtype`."""
    from convert.convert import ConversionConfig, convert_once
    from model.loading import load

    folder = convert_once(ConversionConfig(source=golden.archive, output=scratch / golden.name), scratch)
    return cast("Listener", load(folder, dtype))


def add(comparison: Comparison, model: "Listener", golden: Golden) -> None:
    """Compare one archive's stages and texts."""
    values, arrays = golden.values(), golden.arrays()
    to_numpy = model.xp.to_numpy

    def compare(stage: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        assert ours.shape == theirs.shape, f"{golden.name}, {stage}: shape {ours.shape} instead of {theirs.shape}"
        comparison.add(golden.name, stage, float(np.abs(ours - theirs).max()))

    for told in values["sounds"]:
        waveform = sound(told["sound"])
        assert checksum(waveform) == told["checksum"], f"this machine makes another sound {told['sound']}"
        mel, _ = model.features([waveform])
        compare("features", to_numpy(mel)[0, kept_frames(mel.shape[1])], arrays[f"mel/{told['sound']}"])
    for frames in DRAWN:
        # Archives without a projection hand the encoder's own vectors on.
        theirs = arrays.get(f"projected/{frames}", arrays[f"encoder/{frames}"])
        drawn = model.xp.asarray(drawn_features(frames, values["shape"]["features"])[None])
        ours = model.encode(drawn, model.xp.asarray([frames]))
        compare("encoder", to_numpy(ours)[0, : len(theirs)], theirs)
    encoded = {name: model.encoded_together([sound(name)])[0] for name in LENGTHS}
    for name, each in encoded.items():
        compare("sound to vectors", to_numpy(each.vectors), arrays[f"encoded/{name}"])
    if golden.is_parakeet:
        _add_parakeets_heads(comparison, cast("ParakeetModel", model), golden, encoded)
        return
    canary = cast("CanaryModel", model)
    for i, told in enumerate(values["forced"]):
        vectors = encoded[told["sound"]].vectors
        log_probs = canary.forced_log_probs([told["tokens"]], vectors[None], [len(vectors)])
        compare("log-probabilities", to_numpy(log_probs)[0], arrays[f"log_probs/{i}"])
    greedy, beam = values["greedy"], [run for run in values["beam"] if BEAM.items() <= run.items()]
    for runs, options in ((greedy, DecodingOptions(beam_size=1)), (beam, DecodingOptions(**BEAM))):
        prompts = [values["prompts"][run["prompt"]]["ids"] for run in runs]
        written = canary.generate([encoded[run["sound"]] for run in runs], prompts, options)
        for ours, run in zip(written, runs, strict=True):
            name = f"{golden.name}, {run['sound']}, prompt {run['prompt']}, beam {options.beam_size}"
            comparison.add_text(name, ours.tokens == run["tokens"])


def _add_parakeets_heads(
    comparison: Comparison, parakeet: "ParakeetModel", golden: Golden, encoded: dict[str, Encoded]
) -> None:
    """Compare what each head writes, all side by side."""
    values, durations = golden.values(), parakeet.config.durations
    # A beam of NeMo's takes a duration's place among the durations for the duration itself.
    beams = values["beam"] if durations == tuple(range(len(durations))) else []
    runs = [run for run in values["greedy"] + beams if run["sound"] in encoded]
    utterances = []
    for key, run in enumerate(runs):
        head = "ctc" if run.get("head") == "ctc" else parakeet.config.kind
        options = DecodingOptions(beam_size=run.get("beam_size", 1), head=head)
        utterances.append(parakeet.utterance(key, encoded[run["sound"]], Task(AUTO), options))
    for ours, run in zip(parakeet.generate(utterances), runs, strict=True):
        name = f"{golden.name}, {run['sound']}, {run.get('head', 'transducer')}, beam {run.get('beam_size', 1)}"
        comparison.add_text(name, ours.tokens == run["tokens"])


def limit(stage: str, dtype: str) -> float:
    """The largest difference that `stage` may have on this device."""
    from model.arrays import on_cpu

    exact = dtype == "float32" or stage == "features"
    return LIMITS[dtype][stage] * (GPU_SLACK if exact and not on_cpu() else 1)


def _judged(stage: str, comparison: Comparison, dtype: str) -> Finding:
    difference, archive = comparison.differences[stage]
    most = limit(stage, dtype)
    figures = {"stage": stage, "difference": difference, "limit": most, "archive": archive}
    told = f"{stage}: largest difference {difference:.1e}, limit {most:.0e}"
    return ok(told, **figures) if difference <= most else failed(f"{told} ({archive})", WRONG, **figures)


def _judged_texts(comparison: Comparison, dtype: str) -> Finding:
    figures = {"same": comparison.same, "texts": comparison.texts}
    told = f"{comparison.same} of {comparison.texts} texts equal NeMo's, token for token"
    if dtype != "float32":
        # Random weights hesitate between tokens, so that rounding decides.
        return ok(f"{told}; with random weights, 16 bits need not", **figures)
    if comparison.same == comparison.texts:
        return ok(told, **figures)
    return failed(f"{told}; first wrong: {comparison.first_wrong}", WRONG, **figures)
