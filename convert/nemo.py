"""A `.nemo` archive → its configuration, tensors and tokenizer files. Nothing in it is executed or unpacked.

The archive is a tar, plain or gzipped, of `model_config.yaml`, `model_weights.ckpt` and tokenizer files. Members are
found by their whole names; an archive with links, devices, doubled names or paths that lead outside is refused.
"""

import gzip
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

import yaml

from convert.checkpoint import StoredTensor, stored_tensors
from convert.errors import ArchiveError

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
ALIGNER_CONFIG = "timestamps_asr_model_config.yaml"
ALIGNER_WEIGHTS = "timestamps_asr_model_weights.ckpt"

MAX_MEMBERS = 10_000
MAX_YAML_BYTES = 10 * 2**20
MAX_YAML_VALUES = 1_000_000
MAX_FILE_BYTES = 64 * 2**20
MAX_UNZIPPED_BYTES = 32 * 2**30
GZIP_MAGIC = b"\x1f\x8b"


class NemoArchive:
    """An open `.nemo` archive; use as a context manager.

    scratch: where a gzipped archive is unzipped to, as an unnamed file that vanishes when the archive is closed.
    Raises ArchiveError for whatever is not a whole, harmless archive.
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
            raise ArchiveError(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            if self._file.read(2) == GZIP_MAGIC:
                self._file = self._unzipped(self._file)
            self._file.seek(0)
            self._tar = tarfile.open(fileobj=self._file, mode="r:")
            self._members = self._safe_members()
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
            self._file.close()
            raise ArchiveError(f"{self.path} is not a whole .nemo archive (tar): {error}") from None
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._tar.close()
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def config(self) -> dict[str, Any]:
        """`model_config.yaml`."""
        return self.yaml(CONFIG)

    def yaml(self, name: str) -> dict[str, Any]:
        """A member as yaml of plain values; tags that would make objects are refused."""
        try:
            values = yaml.safe_load(self.read(name, MAX_YAML_BYTES))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise self._error(f"{name} is not plain yaml: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(values, dict):
            raise self._error(f"{name} holds no configuration")
        if _value_count(values, MAX_YAML_VALUES) >= MAX_YAML_VALUES:
            raise self._error(f"{name} has over {MAX_YAML_VALUES} values once its references are followed")
        return values

    def read(self, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """A member's bytes. `nemo:` before a name, as NeMo's configurations write it, is left out."""
        member = self._member(name.removeprefix("nemo:"))
        if member.size > max_bytes:
            raise self._error(f"{name} has {member.size} bytes, over the limit of {max_bytes}")
        with self._open(member) as file:
            return file.read()

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        """The tensors of a checkpoint member by name, none of them read yet."""
        file = self._open(self._member(name))

        def refuse(what: str) -> NoReturn:
            raise self._error(f"{name} {what}")

        try:
            return stored_tensors(file, refuse)
        except tarfile.TarError as error:
            refuse(f"is not a whole torch checkpoint: {error}")

    def _unzipped(self, zipped: IO[bytes]) -> IO[bytes]:
        """The archive as a plain tar in an unnamed file."""
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
        """Regular members by normalised name; one bad member refuses the archive."""
        size = self._file.seek(0, 2)
        members: dict[str, tarfile.TarInfo] = {}
        for count, member in enumerate(self._tar):
            path = PurePosixPath(member.name)
            if count >= MAX_MEMBERS:
                raise self._error(f"over {MAX_MEMBERS} members")
            if path.is_absolute() or ".." in path.parts:
                raise self._error(f"member {member.name!r} leads outside the archive")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise self._error(f"member {member.name!r} is a link or a special file")
            if member.offset_data + member.size > size:
                raise self._error(f"it ends inside {member.name!r}; download it again")
            if str(path) in members:
                raise self._error(f"member {str(path)!r} appears twice")
            members[str(path)] = member
        if not members:
            raise tarfile.ReadError("it holds no files")
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

    def _error(self, what: str) -> ArchiveError:
        return ArchiveError(f"{self.path}: {what}")


def _value_count(values: Any, limit: int) -> int:
    """How many values a yaml tree has when its aliases are written out, counted up to `limit`."""
    count, todo = 1, [values]
    while todo:
        value = todo.pop()
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(children)
        if count >= limit:
            return limit
        todo.extend(children)
    return count
