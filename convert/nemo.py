"""Read the configuration, tensors and tokenizer files of a `.nemo` archive. Nothing in it is executed or extracted.

The archive is a tar, plain or gzipped, of `model_config.yaml`, `model_weights.ckpt` and tokenizer files. Members are
looked up by their full names. Archives with links, devices, duplicate names or paths outside the archive are rejected.
"""

import gzip
import tarfile
import tempfile
import zlib
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

import yaml

from convert.checkpoint import StoredTensor, stored_tensors
from convert.errors import ArchiveError

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
ALIGNER_CONFIG = "timestamps_asr_model_config.yaml"
ALIGNER_WEIGHTS = "timestamps_asr_model_weights.ckpt"

# What NeMo's configurations have as sections, where they have it.
SECTIONS = (
    *("preprocessor", "encoder", "decoder", "joint", "transf_encoder", "transf_decoder", "head"),
    *("tokenizer", "decoding", "aux_ctc", "model_defaults"),
)

MAX_MEMBERS = 10_000
MAX_YAML_BYTES = 10 * 2**20
MAX_YAML_VALUES = 1_000_000
MAX_FILE_BYTES = 64 * 2**20
MAX_UNZIPPED_BYTES = 32 * 2**30
GZIP_MAGIC = b"\x1f\x8b"


class NemoArchive:
    """An open `.nemo` archive; use as a context manager.

    scratch: folder for a gzipped archive's unzipped copy, an unnamed file that is gone once the archive is closed.
    Raises ArchiveError if the archive is damaged, incomplete or unsafe.
    """

    def __init__(self, path: Path, scratch: Path | None = None):
        self.path = Path(path)
        self._scratch = scratch
        self._file: IO[bytes]
        self._tar: tarfile.TarFile
        self._members: dict[str, tarfile.TarInfo] = {}

    def __enter__(self) -> "NemoArchive":
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise ArchiveError(f"cannot read {self.path}: {error.strerror}") from None
        try:
            if self._file.read(2) == GZIP_MAGIC:
                self._file = self._unzipped(self._file)
            self._file.seek(0)
            self._tar = tarfile.open(fileobj=self._file, mode="r:")
            self._members = self._safe_members()
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
            self._file.close()
            raise ArchiveError(f"{self.path} is not a .nemo archive (tar), or is damaged: {error}") from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._tar.close()
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @cached_property
    def config(self) -> dict[str, Any]:
        """`model_config.yaml`. Parsing it takes longer than anything else but the weights, so it is done once."""
        return self.yaml(CONFIG)

    def yaml(self, name: str) -> dict[str, Any]:
        """A YAML member as a dictionary of plain values. Tags that would construct objects are rejected.

        Its `SECTIONS` are dictionaries or None.
        """
        try:
            values = yaml.safe_load(self.read(name, MAX_YAML_BYTES))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise self._error(f"{name} is not plain YAML: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(values, dict):
            raise self._error(f"{name} is not a YAML mapping")
        if _value_count(values, MAX_YAML_VALUES) >= MAX_YAML_VALUES:
            raise self._error(f"{name} has over {MAX_YAML_VALUES} values after its aliases are expanded")
        for key in SECTIONS:
            if not isinstance(values.get(key), dict | None):
                raise self._error(f"{name}: {key}: {str(values[key])[:80]!r} is not a section")
        return values

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """A member's bytes. The prefix `nemo:`, which NeMo's configurations use, is ignored."""
        member = self._member(name.removeprefix("nemo:"))
        if member.size > max_bytes:
            raise self._error(f"{name} has {member.size} bytes; the limit is {max_bytes}")
        with self._open(member) as file:
            return file.read()

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        """The tensors of a checkpoint member by name. No data is read yet."""
        file = self._open(self._member(name))

        def refuse(message: str) -> NoReturn:
            raise self._error(f"{name} {message}")

        try:
            return stored_tensors(file, refuse)
        except tarfile.TarError as error:
            refuse(f"is not a torch checkpoint, or is damaged: {error}")

    def _unzipped(self, zipped: IO[bytes]) -> IO[bytes]:
        """The archive unzipped into an unnamed file."""
        zipped.seek(0)
        plain = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 (closed by __exit__)
        try:
            with zipped, gzip.GzipFile(fileobj=zipped) as source:
                while chunk := source.read(2**22):
                    plain.write(chunk)
                    if plain.tell() > MAX_UNZIPPED_BYTES:
                        raise ArchiveError(f"{self.path} unzips to over {MAX_UNZIPPED_BYTES} bytes")
        except BaseException:
            plain.close()
            raise
        return plain

    def _safe_members(self) -> dict[str, tarfile.TarInfo]:
        """Regular members by normalised name. A single unsafe member rejects the whole archive."""
        size = self._file.seek(0, 2)
        members: dict[str, tarfile.TarInfo] = {}
        for count, member in enumerate(self._tar):
            path = PurePosixPath(member.name)
            if count >= MAX_MEMBERS:
                raise self._error(f"the archive has over {MAX_MEMBERS} members")
            if path.is_absolute() or ".." in path.parts:
                raise self._error(f"member {member.name!r} points outside the archive")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise self._error(f"member {member.name!r} is a link or a special file")
            if member.offset_data + member.size > size:
                raise self._error(f"the archive ends in the middle of {member.name!r}; download it again")
            if str(path) in members:
                raise self._error(f"member {str(path)!r} appears twice")
            members[str(path)] = member
        if not members:
            raise tarfile.ReadError("it contains no files")
        return members

    def _member(self, name: str) -> tarfile.TarInfo:
        try:
            return self._members[name]
        except KeyError:
            raise self._error(f"{name} is missing") from None

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        file = self._tar.extractfile(member)
        assert file is not None  # regular members only
        return file

    def _error(self, message: str) -> ArchiveError:
        return ArchiveError(f"{self.path}: {message}")


def _value_count(values: Any, limit: int) -> int:
    """How many values a YAML tree has with its aliases expanded, counted up to `limit`."""
    count, todo = 1, [values]
    while todo:
        value = todo.pop()
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(children)
        if count >= limit:
            return limit
        todo.extend(children)
    return count
