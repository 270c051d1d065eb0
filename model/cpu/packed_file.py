"""Weights for 8-bit products, cached in a file beside the weights that they were made from.

Making them takes longer than the rest of loading. A file of other weights or of another version is made again, and so
is a damaged one. The file only saves time.
"""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open

from model.cpu.int8 import Quantized
from model.safetensors_writer import write_safetensors

log = logging.getLogger(__name__)

SUFFIX = ".int8"
_VERSION = "4"
# Partial files of this age were left by processes that were killed.
_ABANDONED_S = 600
# The parts of a layer's weight, as tensors of the file.
_PARTS = ("integers", "scales")


def path_beside(weights: Path) -> Path:
    """The file in which the 8-bit form of `weights` is cached."""
    return weights.with_name(weights.name + SUFFIX)


def read(weights: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Quantized] | None:
    """The 8-bit weights of layers, given by name and shape (O, I); None if there are none, or they are damaged."""
    path = path_beside(weights)
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            digest = metadata.pop("digest", None)
            if metadata != _identity(weights):
                log.info("%s was made from other weights; it is made again", path)
                return None
            found, quantized = xxhash.xxh3_128(), {}
            for name, (outputs, inputs) in sorted(shapes.items()):
                integers, scales = quantized[name] = _tensors(file, name, found)
                if (integers.shape, scales.shape) != ((inputs, outputs), (outputs,)):
                    raise ValueError(f"{name} has shape {integers.shape}")
        if found.hexdigest() != digest:
            log.warning("%s is damaged; it is made again", path)
            return None
        return quantized
    except (OSError, SafetensorError, ValueError) as error:
        log.warning("cannot read %s (%s); it is made again", path, error)
        return None


def is_damaged(path: Path) -> bool:
    """Whether a file of 8-bit weights is not what was written. A file without a digest, of an earlier version, is."""
    try:
        with safe_open(path, "np") as file:
            found = xxhash.xxh3_128()
            for name in sorted({name.rpartition(".")[0] for name in file.keys()}):  # noqa: SIM118 (not a dictionary)
                _tensors(file, name, found)
            return found.hexdigest() != (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError, ValueError):
        return True


def write(weights: Path, quantized: Mapping[str, Quantized]) -> None:
    """Cache 8-bit weights for the next load. A folder that cannot be written to is left as it is."""
    path = path_beside(weights)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        _remove_abandoned(path)
        specs, tensors, digest = [], [], xxhash.xxh3_128()
        for name, layer in sorted(quantized.items()):
            named = [(f"{name}.{part}", value) for part, value in zip(_PARTS, layer, strict=True)]
            specs += [(each, value.dtype.name, value.shape) for each, value in named]
            tensors += named
            _add(digest, name, layer)
        write_safetensors(partial, specs, tensors, _identity(weights) | {"digest": digest.hexdigest()})
        os.replace(partial, path)
        log.info("8-bit weights are kept in %s (%d MB) for the next start", path, path.stat().st_size / 1e6)
    except OSError as error:
        log.info("8-bit weights are not kept in %s: %s", path, error.strerror or error)
        with suppress(OSError):
            partial.unlink()


def _remove_abandoned(path: Path) -> None:
    for partial in path.parent.glob(f".{path.name}.partial-*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_S:
            partial.unlink()


def _identity(weights: Path) -> dict[str, str]:
    """Metadata of a usable file: which weights it was made from."""
    status = weights.stat()
    return {"version": _VERSION, "weights": f"{status.st_size} bytes of {status.st_mtime_ns}"}


def _tensors(file: Any, name: str, digest: Any) -> Quantized:
    """A layer's weight in the file, which is added to `digest`."""
    integers, scales = (file.get_tensor(f"{name}.{part}") for part in _PARTS)
    _add(digest, name, (integers, scales))
    return integers, scales


def _add(digest: Any, name: str, layer: Quantized) -> None:
    for part in (name.encode(), *layer):
        digest.update(part)
