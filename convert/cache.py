"""Where converted models are cached, and the locks that keep two processes from converting the same one."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.errors import ConversionError

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`CANARY_CACHE` if it is set, otherwise the platform's cache folder."""
    if configured := os.environ.get("CANARY_CACHE"):
        return Path(configured).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "canary-server"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "canary-server"


@contextmanager
def locked(folder: Path, cache_dir: Path | None = None) -> Iterator[None]:
    """Let only one process at a time work on a folder. The lock file is kept in the cache, not beside the folder."""
    from filelock import FileLock, Timeout

    locks = (cache_dir or default_cache_dir()) / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(
            f"cannot create {locks} ({error.strerror}); set CANARY_CACHE to a writable folder"
        ) from None
    name = hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:24]
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process to finish %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
