"""What can go wrong between a name and a converted model; every message is one line a user can act on.

ConversionError
├── ArchiveError   the .nemo file: not an archive, damaged, hostile, incomplete
├── TensorError    a tensor that is unknown, missing or misshapen
└── HubError       a name that leads to no archive, or a download that failed
"""


class ConversionError(Exception):
    """A model that cannot be converted."""


class ArchiveError(ConversionError):
    """A `.nemo` file that cannot be read, or must not be."""


class TensorError(ConversionError):
    """A checkpoint whose tensors are not those its configuration promises."""


class HubError(ConversionError):
    """A name that leads to no model, or a download that failed."""
