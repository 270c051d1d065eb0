"""Settings of the whole process. Importing this changes nothing; `prepare_process` does."""

import os

from model.cpu import allocator


def prepare_process() -> None:
    """Make results exact on a GPU, and products fast on a CPU. For the thread that loads a model, or that starts it.

    Call it before other threads compute: a thread keeps the part of the heap that it began with. What the environment
    says already stays.
    """
    # Read by MLX at its first product. Newer GPUs would multiply float32 with 19 bits, and only where there are several
    # rows: a text would depend on its neighbours in the batch.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    allocator.keep_freed_memory()
