"""A name or a path → the folder of a converted model. Downloads and converts a model that is not cached yet.

Later starts use the cached folder and need no network.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from convert.cache import default_cache_dir
from convert.download import MODELS, hub_name, known_model, nemo_file
from convert.errors import ConversionError, HubError
from convert.folder import DEFAULT_DTYPE, Bits, Dtype, OnLoadProgress, folder_name, is_converted
from model import digests
from model.config import CONFIG_FILE, QuantizationConfig, read_values, section_from
from model.digests import DamagedError

__all__ = ["MODELS", "ConversionError", "HubError", "converted_folder", "resolve", "resolve_again"]

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
    if folder := _given_folder(name_or_path):
        _check_quantization(folder, quantize)
        return folder
    source, dtype = str(name_or_path), dtype or DEFAULT_DTYPE
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
    return _converted(source, folder, dtype, quantize, cache_dir, progress, is_converted)


def resolve_again(
    name_or_path: str | Path,
    damage: DamagedError,
    *,
    dtype: str | None = None,
    quantize: int | None = None,
    cache_dir: Path | None = None,
    progress: OnLoadProgress | None = None,
) -> Path:
    """The folder that `resolve` returned, converted again because loading it raised `damage`.

    Arguments as for `resolve`. Raises DamagedError for a folder that the user gave, and ConversionError if the model
    cannot be converted now; the damaged folder is left as it is then.
    """
    if _given_folder(name_or_path):
        raise DamagedError(f"{damage}; convert the model again")
    source, dtype = str(name_or_path), dtype or DEFAULT_DTYPE
    folder = _cached_folder(source, dtype, quantize, cache_dir)
    logger.warning("%s; converting %s again", damage, source)
    try:
        return _converted(source, folder, dtype, quantize, cache_dir, progress, digests.is_intact)
    except ConversionError as error:
        raise ConversionError(f"{damage}, and {source} cannot be converted again: {error}") from None


def _converted(
    source: str,
    folder: Path,
    dtype: str,
    quantize: int | None,
    cache_dir: Path | None,
    progress: OnLoadProgress | None,
    may_stay: Callable[[Path], bool],
) -> Path:
    """The folder, converted unless it is there and `may_stay`."""
    # Not at the top: most starts find a converted folder, and what converts takes a while to import.
    from convert.convert import ConversionConfig, convert_once

    config = ConversionConfig(
        source=source,
        output=folder,
        dtype=cast(Dtype, dtype),
        quantize=cast(Bits | None, quantize),
        progress=progress,
    )
    return convert_once(config, Path(cache_dir or default_cache_dir()), may_stay)


def _given_folder(name_or_path: str | Path) -> Path | None:
    """The converted folder that was given by its path; None if it is something to be looked up in the cache."""
    folder = Path(name_or_path).expanduser()
    is_name = isinstance(name_or_path, str) and name_or_path in MODELS
    return folder if is_converted(folder) and not is_name else None


def converted_folder(
    name_or_path: str, dtype: str, quantize: int | None = None, cache_dir: Path | None = None
) -> Path | None:
    """The folder that `resolve` would return without downloading or converting anything; None if there is none."""
    if folder := _given_folder(name_or_path):
        return folder
    cached = _cached_folder(name_or_path, dtype, quantize, cache_dir)
    return cached if is_converted(cached) else None


def _cached_folder(source: str, dtype: str, quantize: int | None, cache_dir: Path | None) -> Path:
    """Where the conversion of a source is kept."""
    return Path(cache_dir or default_cache_dir()) / "models" / folder_name(_cache_key(source), dtype, quantize)


def _check_quantization(folder: Path, quantize: int | None) -> None:
    """Raises ConversionError if a converted folder is not quantized as requested; None accepts any.

    Raises DamagedError if its configuration is damaged.
    """
    if not quantize:
        return
    listed = digests.read(folder)
    config = {name: digest for name, digest in listed.files.items() if name == CONFIG_FILE} if listed else {}
    if damage := digests.first_damage(folder, config):
        raise DamagedError(f"{damage}; convert the model again")
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
