"""A name or a path → the folder of a converted model; downloads and converts what is not in the cache yet.

The second start finds the converted folder: it needs no network and imports no torch.
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
from model.canary.config import CanaryConfig
from model.config import read_config

__all__ = ["MODELS", "ConversionError", "HubError", "resolve"]

logger = logging.getLogger(__name__)


def resolve(
    name_or_path: str | Path,
    *,
    dtype: str | None = None,
    quantize: int | None = None,
    cache_dir: Path | None = None,
    progress: OnLoadProgress | None = None,
) -> Path:
    """The converted folder of a model.

    name_or_path: a name in MODELS, a Hub repository `org/name[@revision]`, a `.nemo` file, or a converted folder,
    which is given back as it is; where that has a name in MODELS, a Path or `./` before it says that it is meant.
    dtype: of the weights, when they are to be converted; quantize: into how many bits their large layers are packed,
    4 or 8. cache_dir: in place of CANARY_CACHE. progress: called with "downloading" or "converting", what is done, and
    the total.
    Raises ConversionError, of which HubError is one, in a line that says what to do.
    """
    source = str(name_or_path)
    is_name = isinstance(name_or_path, str) and name_or_path in MODELS
    if is_converted(Path(source).expanduser()) and not is_name:
        return _as_asked(Path(source).expanduser(), quantize)
    dtype = dtype or DEFAULT_DTYPE
    dtypes = get_args(Dtype)
    if dtype not in dtypes:
        raise ConversionError(f"dtype {dtype!r} is not one of {', '.join(dtypes)}")
    cache_dir = Path(cache_dir or default_cache_dir())
    if quantize not in (None, *get_args(Bits)):
        raise ConversionError(f"quantize {quantize} is not one of {', '.join(map(str, get_args(Bits)))}")
    folder = cache_dir / "models" / folder_name(_key(source), dtype, quantize)
    if is_converted(folder):
        return folder
    _log_licence(source)
    logger.info("converting %s once to %s", source, folder)
    config = ConversionConfig(
        source=source,
        output=folder,
        dtype=cast(Dtype, dtype),
        quantize=cast(Bits | None, quantize),
        progress=progress,
    )
    return convert_once(config, cache_dir)


def _as_asked(folder: Path, quantize: int | None) -> Path:
    """A converted folder, if it is packed as it should be or nothing was said of it."""
    packing = read_config(folder, CanaryConfig).quantization if quantize else None
    if quantize and (packing is None or packing.bits != quantize):
        state = f"packed into {packing.bits} bits" if packing else "not packed"
        raise ConversionError(f"{folder} is converted already, and {state}: give the archive to have {quantize} bits")
    return folder


def _log_licence(source: str) -> None:
    named = hub_name(source)
    model = known_model(named[0]) if named else MODELS.get(source)
    if model:
        level = logging.WARNING if "non-commercial" in model.licence else logging.INFO
        logger.log(level, "%s is licensed %s", model.repo or source, model.licence)


def _key(source: str) -> str:
    """What a conversion is remembered by: repository and revision, or a file's path, size and time."""
    if named := hub_name(source):
        return "@".join(named).replace("/", "--")
    path = nemo_file(source).resolve()
    status = path.stat()
    identity = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    return f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
