"""Weights packed for 8-bit products, cached in a file beside the weights that they were made from.

Packing takes longer than the rest of loading. The packed form depends on the CPU and on oneDNN's version: a file for
another CPU, another version or other weights is made again, and so is a damaged one. The file only saves time.
"""

import ctypes
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from model.safetensors_writer import write_safetensors

log = logging.getLogger(__name__)

SUFFIX = ".int8"
_VERSION = "2"
# Partial files of this age were left by processes that were killed.
_ABANDONED_S = 600
# A packed weight in oneDNN's layout, and its outputs' scales (O,), float32.
Packed = tuple[Any, np.ndarray]
Shape = tuple[int, ...]


def path_beside(weights: Path) -> Path:
    """The file in which the packed form of `weights` is cached."""
    return weights.with_name(weights.name + SUFFIX)


def read(weights: Path, shapes: Mapping[str, Shape]) -> dict[str, Packed] | None:
    """The packed weights of layers, given by name and shape (O, I); None if there are none, or they are damaged."""
    path = path_beside(weights)
    if not path.exists() or not _can_copy_packed():
        return None
    try:
        with safe_open(path, "np") as file, _one_thread():
            templates = {shape: _packed_zeros(shape) for shape in set(shapes.values())}
            metadata = file.metadata() or {}
            digest = metadata.pop("digest", None)
            if metadata != _identity(weights, templates.values()):
                log.info("%s was made from other weights or for another CPU; it is made again", path)
                return None
            packed, found = {}, xxhash.xxh3_128()
            for name in sorted(shapes):
                content, scales = _tensors(file, name, found)
                packed[name] = _filled(templates[shapes[name]], content), scales
        if found.hexdigest() != digest:
            log.warning("%s is damaged; it is made again", path)
            return None
        return packed
    except (OSError, SafetensorError, ValueError) as error:
        log.warning("cannot read %s (%s); it is made again", path, error)
        return None


def is_damaged(path: Path) -> bool:
    """Whether a file of packed weights is not what was written. A file without a digest, of an earlier version, is."""
    try:
        with safe_open(path, "np") as file:
            found = xxhash.xxh3_128()
            for name in sorted({name.rpartition(".")[0] for name in file.keys()}):  # noqa: SIM118 (not a dictionary)
                _tensors(file, name, found)
            return found.hexdigest() != (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError, ValueError):
        return True


def write(weights: Path, packed: Mapping[str, Packed]) -> None:
    """Cache packed weights for the next load. A folder that cannot be written to is left as it is."""
    if not _can_copy_packed():
        return
    path = path_beside(weights)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        _remove_abandoned(path)
        specs, tensors, digest = [], [], xxhash.xxh3_128()
        for name, (matrix, scales) in sorted(packed.items()):
            content = _bytes_of(matrix)
            specs += [(f"{name}.packed", "uint8", content.shape), (f"{name}.scales", "float32", scales.shape)]
            tensors += [(f"{name}.packed", content), (f"{name}.scales", scales)]
            _add(digest, name, content, scales)
        identity = _identity(weights, (matrix for matrix, _ in packed.values()))
        write_safetensors(partial, specs, tensors, identity | {"digest": digest.hexdigest()})
        os.replace(partial, path)
        log.info("packed weights are kept in %s (%d MB) for the next start", path, path.stat().st_size / 1e6)
    except OSError as error:
        log.info("packed weights are not kept in %s: %s", path, error.strerror or error)
        with suppress(OSError):
            partial.unlink()


def _remove_abandoned(path: Path) -> None:
    for partial in path.parent.glob(f".{path.name}.partial-*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED_S:
            partial.unlink()


def _identity(weights: Path, packed: Iterable[Any]) -> dict[str, str]:
    """Metadata of a usable file: which weights it was made from, and how they are laid out."""
    status = weights.stat()
    layouts = sorted({_layout(matrix) for matrix in packed})
    return {
        "version": _VERSION,
        "weights": f"{status.st_size} bytes of {status.st_mtime_ns}",
        "layout": hashlib.sha256(b"".join(layouts)).hexdigest(),
    }


def _can_copy_packed() -> bool:
    """Whether this version of torch gives access to the memory of packed weights."""
    import torch

    return all(hasattr(torch.ops.mkldnn, name) for name in ("data_ptr", "_nbytes", "_get_mkldnn_serialized_md"))


def _layout(matrix: Any) -> bytes:
    """oneDNN's description of a packed weight: shape, blocks and what it stores beside them."""
    import torch

    return torch.ops.mkldnn._get_mkldnn_serialized_md(matrix).numpy().tobytes()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch work on one thread: each weight is copied by itself, and starting threads for it takes longer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _packed_zeros(shape: Shape) -> Any:
    import torch

    return torch.ops.onednn.qlinear_prepack(torch.zeros(shape, dtype=torch.int8), None)


def _bytes_of(matrix: Any) -> np.ndarray:
    """The memory of a packed weight, which must outlive what is returned."""
    import torch

    size = torch.ops.mkldnn._nbytes(matrix)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(matrix)))


def _tensors(file: Any, name: str, digest: Any) -> tuple[np.ndarray, np.ndarray]:
    """A layer's tensors in the file: the packed weight as bytes, and the scales (O,). Both are added to `digest`."""
    content, scales = file.get_tensor(f"{name}.packed"), file.get_tensor(f"{name}.scales")
    _add(digest, name, content, scales)
    return content, scales


def _add(digest: Any, name: str, content: np.ndarray, scales: np.ndarray) -> None:
    for part in (name.encode(), content, scales):
        digest.update(part)


def _filled(template: Any, content: np.ndarray) -> Any:
    """A packed weight of the template's shape with these bytes. Raises ValueError if they are of another size."""
    matrix = template.clone()
    _bytes_of(matrix)[:] = content
    return matrix
