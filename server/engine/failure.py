"""Why an engine ended other than by being stopped."""

from dataclasses import dataclass

from model.device_errors import DeviceError

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
