"""A `.nemo` archive → its configuration, tensors and tokenizer files. Nothing in it is executed or unpacked.

The archive is a tar, plain or gzipped, of `model_config.yaml`, `model_weights.ckpt` and tokenizer files. Members are
found by their whole names; an archive with links, devices, doubled names or paths that lead outside is refused.
"""

import gzip
import pickle
import tarfile
import tempfile
import zipfile
import zlib
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
    """A tensor that is still in the archive: what it is, and where its bytes lie in the checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    stride: tuple[int, ...]
    offset: int
    file: IO[bytes] = field(repr=False, compare=False)

    def load(self) -> Any:
        """The torch tensor, read now."""
        import torch

        elements = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        buffer = bytearray(elements * self.dtype.itemsize)
        self.file.seek(self.offset)
        view = memoryview(buffer)
        while view:
            count = self.file.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                raise ArchiveError(f"{self.name}: the checkpoint ends inside this tensor")
            view = view[count:]
        return torch.frombuffer(buffer, dtype=self.dtype).as_strided(self.shape, self.stride)


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
        member = self._member(name)
        file = self._open(member)
        records = self._checked_records(name, file)
        file.seek(0)
        found = _tensors_without_data(file, self._error)
        return {key: self._stored(key, tensor, records, file) for key, tensor in found.items()}

    def _stored(self, key: str, tensor: Any, records: dict[int, int], file: IO[bytes]) -> StoredTensor:
        """Where a tensor's bytes lie. The positions in the checkpoint's own index are held against the zip's."""
        storage = tensor.untyped_storage()
        start, size = storage._checkpoint_offset, storage.nbytes()
        offset = tensor.storage_offset() * tensor.dtype.itemsize
        last = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
        if records.get(start) != size or offset + last * tensor.dtype.itemsize > size or 0 in tensor.shape:
            raise self._error(f"tensor {key!r} does not lie within the checkpoint")
        return StoredTensor(key, tuple(tensor.shape), tensor.dtype, tuple(tensor.stride()), start + offset, file)

    def _checked_records(self, name: str, file: IO[bytes]) -> dict[int, int]:
        """Position → size of each record in a torch zip file, after its checksums were found right."""
        try:
            with zipfile.ZipFile(file) as records:
                if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                    raise self._error(f"{name} has compressed records, which torch does not write")
                if bad := records.testzip():
                    raise self._error(f"{name} is damaged at {bad!r}")
                if any(r.filename.endswith("/byteorder") and records.read(r) != b"little" for r in records.infolist()):
                    raise self._error(f"{name} is not little-endian")
                return {_data_position(file, record): record.file_size for record in records.infolist()}
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise self._error(f"{name} is not a whole torch checkpoint: {error}") from None

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


def _tensors_without_data(file: IO[bytes], error: Any) -> dict[str, Any]:
    """The checkpoint's dictionary of tensors, with shapes and positions but no data. error: makes an ArchiveError.

    In torch's fake mode `load` reads only the index, through the same weights-only unpickler.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            found = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise error("the checkpoint holds more than tensors and was refused") from None
    except Exception as cause:  # a damaged index can raise anything
        raise error(f"the checkpoint cannot be read: {' '.join(str(cause).split())[:200]}") from None
    if not isinstance(found, dict) or not found:
        raise error("the checkpoint is not a dictionary of tensors")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise error(f"the checkpoint's entry {key!r} is not a tensor")
    return found


def _data_position(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """Where a stored zip record's bytes begin: after its local header of 30 bytes, a name and an extra field."""
    file.seek(record.header_offset + 26)
    lengths = file.read(4)
    return record.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


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
