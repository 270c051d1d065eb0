"""Errors of finding, downloading and converting a model. Every message is one line that a user can act on.

ConversionError
├── ArchiveError   the .nemo file is damaged, incomplete, malicious or not an archive
├── TensorError    a tensor is unexpected, missing or has the wrong shape
└── HubError       the name is not a model, or the download failed
"""


class ConversionError(Exception):
    """The model cannot be converted."""


class ArchiveError(ConversionError):
    """The `.nemo` file cannot be read, or is not safe to read."""


class TensorError(ConversionError):
    """The checkpoint's tensors do not match its configuration."""


class HubError(ConversionError):
    """The name is not a model, or the download failed."""
