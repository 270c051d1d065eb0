"""Digests of a converted folder's files: conversion writes them, loading checks them.

A flipped bit in the weights changes what is transcribed and nothing else would notice. `digests.json` holds the size
and the XXH3 digest (128 bits) of every file, and of the archive they were converted from. XXH3 finds damage, not
tampering: it reads as fast as the system hands out a file that it has cached.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

log = logging.getLogger(__name__)

DIGESTS_FILE = "digests.json"
ALGORITHM = "xxh3_128"
# Larger files are checked while the model is being loaded.
SMALL_BYTES = 8 << 20
_CHUNK = 1 << 20

OnBytes = Callable[[int], object]


class DamagedError(ValueError):
    """A file of a converted folder is not what conversion wrote. The message names it in one line."""


@dataclass(frozen=True)
class FileDigest:
    """A file's size in bytes, and the digest of its content in hexadecimal."""

    size: int
    digest: str


@dataclass(frozen=True)
class Digests:
    """What `digests.json` says. files: by their paths in the folder; source: the archive's name and digest."""

    files: dict[str, FileDigest]
    source: dict[str, FileDigest]


def listed(folder: Path, source: Path) -> str:
    """The content of `digests.json` for the files below `folder`, which were converted from the archive `source`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    values = {
        "algorithm": ALGORITHM,
        "source": {source.name: asdict(digest_of(source))},
        "files": {path.relative_to(folder).as_posix(): asdict(digest_of(path)) for path in paths},
    }
    return json.dumps(values | {"checksum": _checksum(values)}, indent=2, ensure_ascii=False) + "\n"


def read(folder: Path) -> Digests | None:
    """The digests of a converted folder; None if it was converted before there were any. Raises DamagedError."""
    path = folder / DIGESTS_FILE
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
        if values["algorithm"] != ALGORITHM or checksum != _checksum(values):
            raise ValueError
        files, source = (
            {name: FileDigest(int(each["size"]), str(each["digest"])) for name, each in values[key].items()}
            for key in ("files", "source")
        )
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files):
            raise ValueError
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DamagedError(f"{path} is damaged: it is not a list of {ALGORITHM} digests") from None
    return Digests(files, source)


def digest_of(path: Path, on_bytes: OnBytes | None = None) -> FileDigest:
    """The digest of a file. on_bytes: called with the number of bytes after each chunk. Raises OSError."""
    hasher, size, buffer = xxhash.xxh3_128(), 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
            if on_bytes:
                on_bytes(count)
    return FileDigest(size, hasher.hexdigest())


def damage(
    folder: Path, name: str, expected: FileDigest, on_bytes: OnBytes | None = None, size_only: bool = False
) -> DamagedError | None:
    """What is wrong with a file of a converted folder; None if it is as it was written.

    on_bytes: see `digest_of`; size_only: look at the file's size alone.
    """
    path = folder / name
    try:
        size = path.stat().st_size
        if size != expected.size:
            return DamagedError(f"{path} is damaged: it has {size} bytes instead of {expected.size}")
        if not size_only and digest_of(path, on_bytes) != expected:
            return DamagedError(f"{path} is damaged: its content is not what was converted")
    except FileNotFoundError:
        return DamagedError(f"{path} is missing")
    except OSError as error:
        return DamagedError(f"cannot read {path}: {error.strerror or error}")
    return None


def first_damage(folder: Path, files: Mapping[str, FileDigest], size_only: bool = False) -> DamagedError | None:
    """The first damage to `files` of a folder; see `damage`."""
    found = (damage(folder, name, expected, size_only=size_only) for name, expected in files.items())
    return next(filter(None, found), None)


@contextmanager
def checked(folder: Path) -> Iterator[None]:
    """Check a folder's files while the block loads them. Raises DamagedError, whatever the block returned or raised.

    Small files are checked before the block begins, since what parses them may not expect damage; large ones meanwhile.
    """
    digests = read(folder)
    if digests is None:
        log.info("%s has no %s, so damage would not be noticed; convert the model again", folder, DIGESTS_FILE)
        yield
        return
    large = {name: expected for name, expected in digests.files.items() if expected.size > SMALL_BYTES}
    small = {name: expected for name, expected in digests.files.items() if name not in large}
    # Sizes first: a model must not be read from a file that was cut off.
    if found := first_damage(folder, large, size_only=True) or first_damage(folder, small):
        raise found
    with ThreadPoolExecutor(1, "digests") as pool:
        checking = pool.submit(first_damage, folder, large)
        try:
            yield
        finally:
            if found := checking.result():
                raise found from None


def is_intact(folder: Path) -> bool:
    """Whether a folder has digests, and all of its files are as they were written."""
    try:
        digests = read(folder)
    except DamagedError:
        return False
    return digests is not None and first_damage(folder, digests.files) is None


def _checksum(values: dict[str, Any]) -> str:
    """Of the digests themselves, without regard to white space."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())
