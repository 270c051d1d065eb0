"""Archives with what NeMo made of them, each converted and loaded once.

CANARY_PARITY_DIR names a folder with more of them, made with make_goldens' --out.
"""

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from convert.convert import ConversionConfig, convert
from model.canary.model import CanaryModel
from model.decoding import Encoded
from tests.parity.compared import GOLDENS
from tests.parity.sounds import LENGTHS, sound

EXTRA = os.environ.get("CANARY_PARITY_DIR")
ARCHIVES = sorted(GOLDENS.glob("*.nemo")) + (sorted(Path(EXTRA).glob("*.nemo")) if EXTRA else [])

_DIFFERENCES = pytest.StashKey[dict[str, dict[str, float]]]()


@dataclass(frozen=True)
class Case:
    """One archive as this project has it, and NeMo's values."""

    name: str
    canary: CanaryModel
    folder: Path
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]
    encoded: dict[str, Encoded]
    """Each sound's, computed by itself."""


@pytest.fixture(scope="session", params=ARCHIVES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path: Path = request.param
    folder = convert(ConversionConfig(source=path, output=tmp_path_factory.mktemp("converted") / path.stem))
    canary = CanaryModel.load(folder, dtype="float32")
    with np.load(path.with_suffix(".npz")) as arrays:
        return Case(
            path.stem,
            canary,
            folder,
            json.loads(path.with_suffix(".json").read_text(encoding="utf-8")),
            dict(arrays),
            {name: canary.encoded_together([sound(name)])[0] for name in LENGTHS},
        )


@pytest.fixture
def greatest(request: pytest.FixtureRequest, case: Case):
    """greatest(stage, [(ours, NeMo's), …]): the largest absolute difference; also reported at the end."""
    table = request.config.stash.setdefault(_DIFFERENCES, defaultdict(dict))

    def measured(stage: str, pairs: list[tuple[mx.array, np.ndarray]]) -> float:
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
        difference = max(float(np.abs(np.array(ours) - theirs).max()) for ours, theirs in pairs)
        table[stage][case.name] = difference
        return difference

    return measured


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The largest differences by stage and archive."""
    table = config.stash.get(_DIFFERENCES, {})
    if not table:
        return
    terminalreporter.section("largest differences from NeMo")
    for stage, by_archive in table.items():
        figures = "  ".join(f"{name} {difference:.1e}" for name, difference in by_archive.items())
        terminalreporter.write_line(f"{stage:24}{figures}")
