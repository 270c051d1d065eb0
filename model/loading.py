"""A converted folder → a loaded model of its family."""

from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from model.config import ConfigError, read_values
from model.cpu.allocator import give_back_freed_memory
from model.digests import checked
from model.family import Model
from model.memory import Need
from model.process import prepare_process

if TYPE_CHECKING:
    from model.canary.model import CanaryModel
    from model.parakeet.model import ParakeetModel


def load(folder: Path, dtype: str | None = None) -> Model:
    """The model in a converted folder, in `dtype` ("float32", "bfloat16", "float16") or what suits the device.

    The model belongs to the calling thread. CANARY_ARRAYS is read here; see `model.arrays`.
    Raises ConfigError, TokenizerError or WeightsError, and DamagedError if a file is not what was converted.
    """
    prepare_process()
    with checked(Path(folder)):
        return _family(folder).load(folder, dtype)


def memory_need(folder: Path, dtype: str) -> Need:
    """What the model in a converted folder takes once it is loaded. Raises ConfigError or WeightsError."""
    return _family(folder).memory_need(folder, dtype)


def _family(folder: Path) -> "type[CanaryModel] | type[ParakeetModel]":
    """The class that `config.json` names. Only that one is imported."""
    # Folders that were converted before there was a second family do not name theirs.
    match family := read_values(folder).get("family", "canary"):
        case "canary":
            from model.canary.model import CanaryModel

            return CanaryModel
        case "parakeet":
            from model.parakeet.model import ParakeetModel

            return ParakeetModel
    raise ConfigError(f"family {family!r} is not supported; must be one of canary, parakeet")


def give_memory_back() -> None:
    """Return what MLX and the allocator keep of freed arrays to the system. For a thread that has let its model go."""
    # MLX's streams of this thread refer to Python objects: the interpreter may be gone when the thread is.
    mx.clear_streams()
    mx.clear_cache()
    give_back_freed_memory()


def device_name() -> str:
    """What models are computed on, for people: "gpu (Apple M4 Max)"."""
    return f"{mx.default_device().type.name} ({mx.device_info().get('device_name', 'unnamed')})"
