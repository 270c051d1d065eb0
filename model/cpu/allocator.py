"""Tell glibc's malloc, which allocates the arrays of numpy and of MLX on a CPU, to keep freed memory for later ones.

By default it returns large arrays to the system at once, and the system zeroes every page of the next ones: that takes
up to a fifth of the time of encoding 35 s of audio. Outside Linux with glibc these functions do nothing.
"""

import ctypes
import sys

# From glibc's malloc.h: option → value.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
_OPTIONS = {
    # One arena for all threads, so that memory freed by one serves the others.
    _ARENA_MAX: 1,
    # The highest value that glibc accepts: arrays up to 32 MiB come from the arena.
    _MMAP_THRESHOLD: 32 << 20,
    _TRIM_THRESHOLD: (1 << 31) - 1,
}


def keep_freed_memory() -> None:
    """From now on, keep freed memory."""
    if mallopt := _from_libc("mallopt"):
        for option, value in _OPTIONS.items():
            mallopt(option, value)


def give_back_freed_memory() -> None:
    """Return the memory that is free now to the system."""
    if malloc_trim := _from_libc("malloc_trim"):
        malloc_trim(0)


def _from_libc(name: str):
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
