"""The models that are checked on this device: the toy with its recordings, and the model that the settings name."""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convert.download import MODELS, hub_name
from convert.errors import ConversionError
from convert.hub import converted_folder, resolve
from model.task import Task
from server.cli.doctor.report import Finding, failed, warning
from server.engine.batching import Batcher
from server.engine.passes import Pass, PassResult
from server.settings import Settings

if TYPE_CHECKING:
    from model.canary.model import CanaryModel

TOY = MODELS["toy"].path
SAMPLES = (TOY or Path()).parent / "samples"
ROWS = 16


@dataclass(frozen=True)
class Models:
    """The toy, and the model that the settings name, each loaded when first needed. cache: a folder to write to."""

    settings: Settings
    cache: Path

    @property
    def source(self) -> str:
        return self.settings.model[0]

    @cached_property
    def dtype(self) -> str:
        from model.arrays import default_dtype

        return self.settings.dtype or default_dtype()

    @cached_property
    def problem(self) -> Finding | None:
        """Why only the toy can be checked: there is no such model, or it has not been downloaded. None if it can."""
        try:
            known = converted_folder(self.source, self.dtype, self.settings.quantize, self.settings.cache)
        except ConversionError as error:
            return failed(f"{error}; only the toy is checked", "")
        if known or not (named := hub_name(self.source)) or _is_downloaded(*named):
            return None
        advice = "download it with `canary serve` or `canary transcribe`, and run this command again"
        return warning(f"{self.source} is not on this machine; only the toy is checked", advice)

    @property
    def needs_download(self) -> bool:
        return self.problem is not None and self.problem.status == "warning"

    @property
    def is_loaded(self) -> bool:
        """Whether the model has been loaded."""
        return "chosen" in vars(self)

    @cached_property
    def folder(self) -> Path:
        """Of the model, converted if necessary."""
        settings = self.settings
        known = converted_folder(self.source, self.dtype, settings.quantize, settings.cache)
        return known or resolve(self.source, dtype=self.dtype, quantize=settings.quantize, cache_dir=self.cache)

    @cached_property
    def chosen(self) -> "CanaryModel":
        """Raises what loading raises."""
        from model.loading import load

        return cast("CanaryModel", load(self.folder, self.dtype))

    @cached_property
    def toy(self) -> "CanaryModel":
        from model.loading import load

        if self.source == "toy" and not self.settings.quantize:
            return self.chosen
        return cast("CanaryModel", load(resolve("toy", dtype=self.dtype, cache_dir=self.cache), self.dtype))


def _is_downloaded(repo: str, revision: str) -> bool:
    """Whether a known model's archive is in the Hub client's cache."""
    from huggingface_hub import try_to_load_from_cache

    file = next((model.file for model in MODELS.values() if model.repo == repo), None)
    return file is not None and isinstance(try_to_load_from_cache(repo, file, revision=revision), str)


@dataclass(frozen=True)
class Sample:
    """One of the toy's recordings, with what is said in it."""

    name: str
    waveform: np.ndarray
    told: dict[str, Any]

    @property
    def expected(self) -> list[tuple[Task, str]]:
        """Tasks, and the text of each."""
        language = self.told["language"]
        translations = [(Task(language, target), text) for target, text in self.told["translations"].items()]
        return [(Task(language, timestamps="word"), self.told["text"]), *translations]


@cache
def samples() -> tuple[Sample, ...]:
    from server.audio.decode import decode

    index = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return tuple(Sample(name, decode(SAMPLES / name), told) for name, told in index.items())


def pass_of(waveform: np.ndarray, task: Task | None = None) -> Pass:
    return Pass(waveform, (task or Task("en"),))


def served(canary: "CanaryModel", passes: list[Pass]) -> list[PassResult]:
    """The result of each pass, all side by side as the engine runs them. Raises the first error."""
    batcher = Batcher(canary, ROWS)
    waiting = list(enumerate(passes))
    results: dict[int, PassResult] = {}
    while waiting or batcher.running:
        joining: list[tuple[int, Pass]] = []
        while waiting and batcher.has_room_for(waiting[0][1], [each for _, each in joining]):
            joining.append(waiting.pop(0))
        for ticket, outcome in batcher.join(joining) + batcher.step():
            if isinstance(outcome, Exception):
                raise outcome
            results[ticket] = outcome
    return [results[ticket] for ticket in range(len(passes))]
