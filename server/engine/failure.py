"""Why an engine ended other than by being stopped, and what a caller is told of an error."""

import logging
from dataclasses import dataclass

from model.device_errors import DeviceError
from model.task import TaskError
from server.errors import ServiceError, TranscriptionFailed

log = logging.getLogger(__name__)

# By the label in the metrics: what people are told, nothing internal.
MESSAGES = {
    "hang": "the model stopped responding",
    "device": "the device failed",
    "memory": "memory ran out",
    "crash": "the model's thread ended unexpectedly",
    "load": "the model could not be loaded",
}


@dataclass(frozen=True)
class Failure:
    """reason: a key of MESSAGES; at: when, by the monotonic clock."""

    reason: str
    at: float

    @property
    def message(self) -> str:
        return MESSAGES[self.reason]


def reason_for(error: BaseException) -> str:
    """The reason that an error of the engine's loop, of any class, stands for."""
    # A device that cannot compute silence for lack of memory raises DeviceError from a MemoryError.
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return "memory"
    return "device" if isinstance(error, DeviceError) else "crash"


def for_the_caller(error: Exception) -> Exception:
    """A pass's error, without its traceback, which would carry arrays to another thread; logged if unexpected."""
    if isinstance(error, TaskError | ServiceError):
        return error.with_traceback(None)
    log.error("transcription failed", exc_info=error)
    return TranscriptionFailed("The model failed on this audio; see the server's log.")
