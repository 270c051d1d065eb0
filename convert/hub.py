"""A name or a path → the folder of a converted model. Downloads and converts a model that is not cached yet.

Later starts use the cached folder and need no network.
"""

import hashlib
import logging
from pathlib import Path
from typing import cast, get_args

from convert.cache import default_cache_dir
from convert.convert import (
    DEFAULT_DTYPE,
    Bits,
    ConversionConfig,
    Dtype,
    OnLoadProgress,
    convert_once,
    folder_name,
    is_converted,
)
from convert.download import MODELS, hub_name, known_model, nemo_file
from convert.errors import ConversionError, HubError
from model.config import QuantizationConfig, read_values, section_from

__all__ = ["MODELS", "ConversionError", "HubError", "converted_folder", "resolve"]

logger = logging.getLogger(__name__)


def resolve(
    name_or_path: str | Path,
    *,
    dtype: str | None = None,
    quantize: int | None = None,
    cache_dir: Path | None = None,
    progress: OnLoadProgress | None = None,
) -> Path:
    """The folder of a converted model.

    name_or_path: a name in MODELS, a Hub repository `org/name[@revision]`, a `.nemo` file or a converted folder,
    which is returned as it is. For a converted folder with the same name as a known model, pass a Path or `./name`.
    dtype: of the converted weights.
    quantize: bits of the large layers' weights, 4 or 8; None does not quantize.
    cache_dir: where to look and write, instead of CANARY_CACHE.
    progress: called with the stage ("downloading" or "converting"), how much is done, and the total.
    Raises ConversionError (HubError for names and downloads): one line that says what to do.
    """
    source = str(name_or_path)
    is_name = isinstance(name_or_path, str) and name_or_path in MODELS
    if is_converted(Path(source).expanduser()) and not is_name:
        folder = Path(source).expanduser()
        _check_quantization(folder, quantize)
        return folder
    dtype = dtype or DEFAULT_DTYPE
    if dtype not in get_args(Dtype):
        raise ConversionError(f"dtype {dtype!r} is not supported; must be one of {', '.join(get_args(Dtype))}")
    if quantize not in (None, *get_args(Bits)):
        bits = " or ".join(map(str, get_args(Bits)))
        raise ConversionError(f"quantize {quantize} is not supported; must be {bits}")
    folder = _cached_folder(source, dtype, quantize, cache_dir)
    if is_converted(folder):
        return folder
    _log_licence(source)
    logger.info("converting %s to %s; later starts use this folder", source, folder)
    config = ConversionConfig(
        source=source,
        output=folder,
        dtype=cast(Dtype, dtype),
        quantize=cast(Bits | None, quantize),
        progress=progress,
    )
    return convert_once(config, Path(cache_dir or default_cache_dir()))


def converted_folder(
    name_or_path: str, dtype: str, quantize: int | None = None, cache_dir: Path | None = None
) -> Path | None:
    """The folder that `resolve` would return without downloading or converting anything; None if there is none."""
    is_folder = is_converted(Path(name_or_path).expanduser()) and name_or_path not in MODELS
    if is_folder:
        return Path(name_or_path).expanduser()
    cached = _cached_folder(name_or_path, dtype, quantize, cache_dir)
    return cached if is_converted(cached) else None


def _cached_folder(source: str, dtype: str, quantize: int | None, cache_dir: Path | None) -> Path:
    """Where the conversion of a source is kept."""
    return Path(cache_dir or default_cache_dir()) / "models" / folder_name(_cache_key(source), dtype, quantize)


def _check_quantization(folder: Path, quantize: int | None) -> None:
    """Raises ConversionError if a converted folder is not quantized as requested; None accepts any."""
    if not quantize:
        return
    values = read_values(folder).get("quantization")
    actual = section_from(QuantizationConfig, values, "quantization") if values else None
    if actual is None or actual.bits != quantize:
        state = f"quantized to {actual.bits} bits" if actual else "not quantized"
        raise ConversionError(f"{folder} is already converted and {state}; for {quantize} bits, convert the .nemo file")


def _log_licence(source: str) -> None:
    if model := known_model(source):
        level = logging.WARNING if "non-commercial" in model.licence else logging.INFO
        logger.log(level, "%s is licensed %s", model.repo or source, model.licence)


def _cache_key(source: str) -> str:
    """Identifies what was converted: repository and revision, or a file's path, size and modification time."""
    if named := hub_name(source):
        return "@".join(named).replace("/", "--")
    path = nemo_file(source).resolve()
    status = path.stat()
    identity = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    return f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
