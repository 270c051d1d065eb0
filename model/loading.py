"""A converted folder → a loaded model of its family."""

from pathlib import Path

import mlx.core as mx

from model.canary.model import CanaryModel
from model.config import ConfigError, read_values
from model.family import Model

# By the name in `config.json`.
FAMILIES: dict[str, type[CanaryModel]] = {"canary": CanaryModel}


def load(folder: Path, dtype: str | None = None) -> Model:
    """The model in a converted folder, in `dtype` ("float32", "bfloat16", "float16") or what suits the device.

    The model belongs to the calling thread. Raises ConfigError, TokenizerError or WeightsError.
    """
    # Folders that were converted before there was a second family do not name theirs.
    family = read_values(folder).get("family", "canary")
    if family not in FAMILIES:
        raise ConfigError(f"family {family!r} is not supported; must be one of {', '.join(FAMILIES)}")
    return FAMILIES[family].load(folder, dtype)


def device_name() -> str:
    """What models are computed on, for people: "gpu (Apple M4 Max)"."""
    return f"{mx.default_device().type.name} ({mx.device_info().get('device_name', 'unnamed')})"
