"""The recordings of an archive: audio files in folders and in object storage, listed by fsspec."""

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from server.cli.inputs import AUDIO_SUFFIXES, no_audio
from server.errors import RequestError

# What changes with a file's content, by the names that storages give it; the best first.
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated")


@dataclass(frozen=True)
class Recording:
    """An audio file as it was listed. Another `size` or `version` means that its content has changed.

    path: absolute, or a URL, so that every machine finds the same file. size: in bytes. version: the storage's ETag,
    or the time of the last change.
    """

    path: str
    size: int
    version: str


def find_recordings(named: Iterable[str]) -> tuple[list[Recording], list[str]]:
    """All recordings, each once, the largest first, and complaints about names that give none.

    named: files, folders (searched for audio files) and patterns, as paths or URLs. Raises RequestError for a storage
    that is not supported, and OSError.
    """
    found: dict[str, Recording] = {}
    complaints = []
    for name in named:
        with named_errors(name):
            recordings = list(_recordings(name))
        if not recordings:
            complaints.append(no_audio(name))
        for recording in recordings:
            if _is_text(recording.path):
                found[recording.path] = recording
            else:
                complaints.append(f"{recording.path!a}: the name is not UTF-8; rename the file")
    # The long ones first, so that no worker is left with one of them when all others have finished.
    return sorted(found.values(), key=lambda recording: (-recording.size, recording.path)), complaints


def _is_text(path: str) -> bool:
    """Whether a path can be written as UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def storage(name: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path within it. Raises RequestError."""
    try:
        return fsspec.url_to_fs(name)
    # fsspec says which package is missing, or that it does not know the protocol.
    except (ImportError, ValueError) as error:
        raise RequestError(f"{name}: {error}") from None


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """The errors that a storage has of its own, such as missing credentials, as RequestError with a name."""
    try:
        yield
    except (OSError, RequestError):
        raise
    except Exception as error:
        raise RequestError(f"{name}: {error}") from None


def is_local(files: Any) -> bool:
    return isinstance(files, LocalFileSystem)


def _recordings(name: str) -> Iterator[Recording]:
    files, root = storage(name)
    if files.isfile(root):
        found, searched = {root: files.info(root)}, False
    elif files.isdir(root):
        found, searched = files.find(root, detail=True), True
    elif glob.has_magic(root):
        found, searched = files.glob(root, detail=True), False
    else:
        raise FileNotFoundError(f"{name}: no such file or folder")
    for path, info in found.items():
        if info["type"] == "file" and (not searched or PurePosixPath(path).suffix.lower() in AUDIO_SUFFIXES):
            yield Recording(path if is_local(files) else files.unstrip_protocol(path), info["size"], _version(info))


def _version(info: dict[str, Any]) -> str:
    known = next((info[name] for name in _VERSIONS if info.get(name)), "")
    return str(known).strip('"')
