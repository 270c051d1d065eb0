"""Tells failures of the device that a model runs on from errors in a single computation.

MLX raises both as RuntimeError, so only the message differs. These are the messages of MLX 0.32's Metal and CUDA
back ends.
"""

import re


class DeviceError(RuntimeError):
    """The device failed. Later computations in this thread may fail too: load the model again in another thread."""


# A kernel that crashed or timed out, a lost device, a process that holds too many buffers.
_FAILURE = re.compile(
    r"Command buffer execution failed"
    r"|\[metal::(load_device|Device|CommandEncoder)\]"
    r"|\[Event::Event\]"
    r"|Resource limit \(\d+\) exceeded"
    r"|\bcu(da|blas|dnn)?[A-Z]\w*\(.* failed"
)
# One computation needed more memory than there is. A smaller one may still succeed.
_OUT_OF_MEMORY = re.compile(r"\[(metal::)?malloc\] (Attempting|Unable)|Insufficient Memory|out of memory")


def is_device_failure(error: Exception) -> bool:
    """Whether the message says that the device failed, other than for lack of memory."""
    message = str(error)
    failed = isinstance(error, RuntimeError) and _FAILURE.search(message) is not None
    return failed and not _OUT_OF_MEMORY.search(message)
