"""How glibc's malloc, which numpy and MLX on a CPU ask for every array, is told to hold on to what is freed.

By default large arrays go back to the system at once and the next ones are fetched anew, page by page and zeroed: up to
a fifth of the time that encoding 35 s of audio takes. Elsewhere than on Linux with glibc there is nothing to do.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h: option → value.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
# Arrays of so many bytes are given pages of their own where `on_pages_of_their_own` says so.
_OWN_PAGES = 64 << 10
_OPTIONS = {
    # One arena for all threads: what one frees serves another.
    _ARENA_MAX: 1,
    # The highest that glibc takes: arrays up to 32 MiB come from the arena.
    _MMAP_THRESHOLD: 32 << 20,
    _TRIM_THRESHOLD: (1 << 31) - 1,
}


def keep_freed_memory() -> None:
    """Hold on to freed memory, from now on."""
    if mallopt := _from_libc("mallopt"):
        for option, value in _OPTIONS.items():
            mallopt(option, value)


@contextmanager
def on_pages_of_their_own() -> Iterator[None]:
    """For loading: an array that is made inside goes back to the system as soon as it is freed.

    Weights are read, put where they are used, and let go one after the other.
    """
    if mallopt := _from_libc("mallopt"):
        mallopt(_MMAP_THRESHOLD, _OWN_PAGES)
    try:
        yield
    finally:
        keep_freed_memory()


def give_back_freed_memory() -> None:
    """Once, what is free goes back to the system: after a model has been let go."""
    if malloc_trim := _from_libc("malloc_trim"):
        malloc_trim(0)


def _from_libc(name: str):
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
