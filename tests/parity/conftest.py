"""Archives with what NeMo made of them, each converted once and loaded with both array libraries.

CANARY_PARITY_DIR names a folder with more of them, made with --out by make_goldens and make_parakeet_goldens.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import mlx.core as mx
import numpy as np
import pytest

from convert.convert import ConversionConfig, convert
from model.canary.model import CanaryModel
from model.decoding import Encoded
from model.parakeet.model import ParakeetModel
from server.cli.doctor.compared import GOLDENS
from server.cli.doctor.sounds import LENGTHS, sound
from tests.libraries import LIBRARIES, computing_with

EXTRA = os.environ.get("CANARY_PARITY_DIR")
FOLDERS = [GOLDENS, *([Path(EXTRA)] if EXTRA else [])]
ARCHIVES, PARAKEETS = (
    [values.with_suffix(".nemo") for folder in FOLDERS for values in sorted(folder.glob(pattern))]
    for pattern in ("*.json", "parakeet/*.json")
)

_DIFFERENCES = pytest.StashKey[dict[str, dict[str, float]]]()


@dataclass(frozen=True)
class Archive:
    """A converted archive, and NeMo's values."""

    name: str
    folder: Path
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


M = TypeVar("M", CanaryModel, ParakeetModel)


@dataclass(frozen=True)
class Case(Generic[M]):
    """An archive's model as this project computes it, and NeMo's values."""

    archive: Archive
    model: M
    name: str

    @property
    def values(self) -> dict[str, Any]:
        return self.archive.values

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return self.archive.arrays

    @cached_property
    def encoded(self) -> dict[str, Encoded]:
        """Each sound's, computed by itself."""
        return {name: self.model.encoded_together([sound(name)])[0] for name in LENGTHS}


@pytest.fixture(scope="session", params=ARCHIVES, ids=lambda path: path.stem)
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return converted(request.param, tmp_path_factory)


@pytest.fixture(scope="session", params=PARAKEETS, ids=lambda path: path.stem)
def parakeet_archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return converted(request.param, tmp_path_factory)


def converted(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = convert(ConversionConfig(source=path, output=tmp_path_factory.mktemp("converted") / path.stem))
    values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz")) as arrays:
        return Archive(path.stem, folder, values, dict(arrays))


@pytest.fixture(scope="session", params=LIBRARIES)
def case(request: pytest.FixtureRequest, archive: Archive) -> Case[CanaryModel]:
    """In float32."""
    with computing_with(request.param):
        canary = CanaryModel.load(archive.folder, dtype="float32")
        if canary._aligner:
            canary._aligner()
    assert canary.encodes_together == (request.param == "mlx")
    return Case(archive, canary, f"{archive.name}, {request.param}")


@pytest.fixture(scope="session")
def case_in_16_bits(archive: Archive) -> Case[CanaryModel]:
    """In bfloat16, a GPU's default."""
    return Case(archive, CanaryModel.load(archive.folder, dtype="bfloat16"), f"{archive.name}, bfloat16")


@pytest.fixture(scope="session", params=LIBRARIES)
def parakeet_case(request: pytest.FixtureRequest, parakeet_archive: Archive) -> Case[ParakeetModel]:
    """In float32."""
    with computing_with(request.param):
        parakeet = ParakeetModel.load(parakeet_archive.folder, dtype="float32")
    assert parakeet.encodes_together == (request.param == "mlx")
    return Case(parakeet_archive, parakeet, f"{parakeet_archive.name}, {request.param}")


@pytest.fixture(scope="session")
def parakeet_in_16_bits(parakeet_archive: Archive) -> Case[ParakeetModel]:
    """In bfloat16, a GPU's default."""
    parakeet = ParakeetModel.load(parakeet_archive.folder, dtype="bfloat16")
    return Case(parakeet_archive, parakeet, f"{parakeet_archive.name}, bfloat16")


@pytest.fixture
def greatest(request: pytest.FixtureRequest, case: Case[CanaryModel]):
    """greatest(stage, [(ours, NeMo's), …]): the largest absolute difference; also reported at the end."""
    return _measured(request, case.name)


@pytest.fixture
def greatest_of_parakeet(request: pytest.FixtureRequest, parakeet_case: Case[ParakeetModel]):
    """`greatest` for a Parakeet."""
    return _measured(request, parakeet_case.name)


def _measured(request: pytest.FixtureRequest, name: str):
    table = request.config.stash.setdefault(_DIFFERENCES, defaultdict(dict))

    def measured(stage: str, pairs: Iterable[tuple[mx.array, np.ndarray]]) -> float:
        differences = []
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
            differences.append(float(np.abs(np.array(ours) - theirs).max()))
        table[name][stage] = max(differences)
        return max(differences)

    return measured


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The largest differences by archive, library and stage."""
    table = config.stash.get(_DIFFERENCES, {})
    if not table:
        return
    terminalreporter.section("largest differences from NeMo")
    stages = list(dict.fromkeys(stage for by_stage in table.values() for stage in by_stage))
    terminalreporter.write_line(" " * 24 + "  ".join(stages))
    for name, by_stage in sorted(table.items()):
        figures = [(f"{by_stage[stage]:.1e}" if stage in by_stage else "").ljust(len(stage)) for stage in stages]
        terminalreporter.write_line(f"{name:24}{'  '.join(figures)}".rstrip())
