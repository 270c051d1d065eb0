"""What only a CPU needs. Importing it changes nothing in the process; `prepare_process` does."""

import os

from model.cpu import allocator


def prepare_process() -> None:
    """Settings of the whole process that make a CPU faster. For the thread that loads a model, or that starts it.

    Call it before other threads compute: a thread keeps the part of the heap that it began with.
    """
    # Read by torch when it is loaded. Its idle threads wait for work by keeping a core busy, which numpy's BLAS then
    # lacks.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    allocator.keep_freed_memory()
