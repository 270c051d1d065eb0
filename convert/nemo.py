"""Read the configuration, tensors and tokenizer files of a `.nemo` archive. Nothing in it is executed or extracted.

The archive is a tar, plain or gzipped, of `model_config.yaml`, `model_weights.ckpt` and tokenizer files. Members are
looked up by their full names. Archives with links, devices, duplicate names or paths outside the archive are rejected.
"""

import gzip
import pickle
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not loaded yet: its shape and type, and where its bytes are in the checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    stride: tuple[int, ...]
    offset: int
    file: IO[bytes] = field(repr=False, compare=False)

    def load(self) -> Any:
        """Read the torch tensor from the archive."""
        import torch

        buffer = bytearray(_span(self.shape, self.stride) * self.dtype.itemsize)
        self.file.seek(self.offset)
        view = memoryview(buffer)
        while view:
            count = self.file.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                raise ArchiveError(f"{self.name}: the checkpoint ends in the middle of this tensor")
            view = view[count:]
        return torch.frombuffer(buffer, dtype=self.dtype).as_strided(self.shape, self.stride)


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

    @property
    def config(self) -> dict[str, Any]:
        """`model_config.yaml`."""
        return self.yaml(CONFIG)

    def yaml(self, name: str) -> dict[str, Any]:
        """A YAML member as a dictionary of plain values. Tags that would construct objects are rejected."""
        try:
            values = yaml.safe_load(self.read(name, MAX_YAML_BYTES))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise self._error(f"{name} is not plain YAML: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(values, dict):
            raise self._error(f"{name} is not a YAML mapping")
        if _value_count(values, MAX_YAML_VALUES) >= MAX_YAML_VALUES:
            raise self._error(f"{name} has over {MAX_YAML_VALUES} values after its aliases are expanded")
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
        member = self._member(name)
        file = self._open(member)
        records = self._checked_records(name, file)
        file.seek(0)
        tensors = _tensors_without_data(file, self._error)
        return {key: self._stored(key, tensor, records, file) for key, tensor in tensors.items()}

    def _stored(self, key: str, tensor: Any, records: dict[int, int], file: IO[bytes]) -> StoredTensor:
        """Locate a tensor's bytes, checking the offsets in the checkpoint's index against the zip file's records."""
        storage = tensor.untyped_storage()
        start, size = storage._checkpoint_offset, storage.nbytes()
        offset = tensor.storage_offset() * tensor.dtype.itemsize
        end = offset + _span(tensor.shape, tensor.stride()) * tensor.dtype.itemsize
        if records.get(start) != size or end > size or 0 in tensor.shape:
            raise self._error(f"tensor {key!r} is empty or reaches outside the checkpoint")
        return StoredTensor(key, tuple(tensor.shape), tensor.dtype, tuple(tensor.stride()), start + offset, file)

    def _checked_records(self, name: str, file: IO[bytes]) -> dict[int, int]:
        """Offset → size of each record in a torch zip file. Verifies all checksums."""
        try:
            with zipfile.ZipFile(file) as records:
                if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                    raise self._error(f"{name} has compressed records, which torch never writes")
                if damaged := records.testzip():
                    raise self._error(f"{name} is damaged at {damaged!r}")
                if any(r.filename.endswith("/byteorder") and records.read(r) != b"little" for r in records.infolist()):
                    raise self._error(f"{name} is not little-endian")
                return {_data_offset(file, record): record.file_size for record in records.infolist()}
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise self._error(f"{name} is not a torch checkpoint, or is damaged: {error}") from None

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


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements of storage from a tensor's first element to its last."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _tensors_without_data(file: IO[bytes], archive_error: Callable[[str], ArchiveError]) -> dict[str, Any]:
    """The checkpoint's dictionary of tensors: shapes and offsets, but no data.

    In torch's fake mode `load` reads only the index, with the same weights-only unpickler.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            tensors = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise archive_error("rejected: the checkpoint contains objects other than tensors") from None
    except Exception as error:  # a damaged index can raise anything
        raise archive_error(f"cannot read the checkpoint: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tensors, dict) or not tensors:
        raise archive_error("the checkpoint is not a dictionary of tensors")
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise archive_error(f"the checkpoint's entry {key!r} is not a tensor")
    return tensors


def _data_offset(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """Where a stored zip record's data begins: after the 30-byte local header, the name and the extra field."""
    file.seek(record.header_offset + 26)
    lengths = file.read(4)
    return record.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


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
