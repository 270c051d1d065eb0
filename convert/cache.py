"""Where converted models and the locks around their making are kept."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from convert.errors import ConversionError

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`CANARY_CACHE`, or the platform's folder for caches."""
    if chosen := os.environ.get("CANARY_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "canary-server"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canary-server"


@contextmanager
def locked(folder: Path, cache_dir: Path | None = None) -> Iterator[None]:
    """Held by one process at a time for each folder. The lock lies in the cache, not beside the folder."""
    locks = (cache_dir or default_cache_dir()) / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(
            f"{locks} cannot be made ({error.strerror}); set CANARY_CACHE to a folder that can"
        ) from None
    name = hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:24]
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that is making %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
