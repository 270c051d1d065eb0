"""Reads a torch checkpoint (`torch.save` of a dictionary of tensors) without torch.

A checkpoint is a zip file of uncompressed records: `data.pkl`, a pickle that describes the tensors, and `data/KEY`, the
bytes of each storage. The unpickler knows only the names of torch's storages and of the functions that rebuild tensors,
and maps them to our own code. A pickle with any other name is rejected.
Format: torch/serialization.py, `_rebuild_tensor_v2` in torch/_utils.py.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

import ml_dtypes
import numpy as np

from convert.errors import ArchiveError

MAX_INDEX_BYTES = 64 * 2**20
MAX_DIMENSIONS = 8

# torch's storage classes and the dtypes of their data.
STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_FLOATING = {np.dtype(kind) for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)}


def is_floating(dtype: np.dtype) -> bool:
    """Whether it is a floating-point type, including bfloat16."""
    return dtype in _FLOATING


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not loaded yet: its shape and dtype, and where its bytes are. stride: in elements."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stride: tuple[int, ...]
    offset: int
    file: IO[bytes] = field(repr=False, compare=False)

    def load(self) -> np.ndarray:
        """Read the array, of `shape` and `dtype`. Raises ArchiveError if the file ends too early."""
        elements = np.empty(_extent(self.shape, self.stride), self.dtype)
        self.file.seek(self.offset)
        unread = elements.view(np.uint8).data
        while unread:
            count = self.file.readinto(unread)  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                raise ArchiveError(f"{self.name}: the checkpoint ends in the middle of this tensor")
            unread = unread[count:]
        strides = [step * self.dtype.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides, writeable=False)


def stored_tensors(file: IO[bytes], refuse: Callable[[str], NoReturn]) -> dict[str, StoredTensor]:
    """The tensors of the checkpoint in `file` by name. Verifies all checksums, but loads no tensor yet.

    refuse: called with what is wrong with the checkpoint ("is damaged …"); raises the error.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                refuse("has compressed records, which torch never writes")
            if damaged := archive.testzip():
                refuse(f"is damaged at {damaged!r}")
            by_name = {record.filename.partition("/")[2]: record for record in records}
            if "byteorder" in by_name and archive.read(by_name["byteorder"]) != b"little":
                refuse("is not little-endian")
            if "data.pkl" not in by_name:
                refuse("has no index (data.pkl)")
            if by_name["data.pkl"].file_size > MAX_INDEX_BYTES:
                refuse(f"has an index of {by_name['data.pkl'].file_size} bytes; the limit is {MAX_INDEX_BYTES}")
            index = _read_index(archive.read(by_name["data.pkl"]), refuse)
            storages = {
                name.removeprefix("data/"): (_data_offset(file, record), record.file_size)
                for name, record in by_name.items()
                if name.startswith("data/")
            }
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        refuse(f"is not a torch checkpoint, or is damaged: {error}")
    tensors = _checked_entries(index, refuse)
    return {name: _located(name, tensor, storages, file, refuse) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class _Storage:
    """A reference in the index to a storage, the record `data/KEY`."""

    key: str
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as the index describes it, not checked yet. Sizes and strides are in elements."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Refused(pickle.UnpicklingError):
    """The index contains something other than tensors."""


# The opcodes that torch writes, at protocol 2. Some of the newer ones can allocate any amount of memory.
_OPCODES = frozenset(
    {
        *("PROTO", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "STOP", "MARK", "EMPTY_DICT"),
        *("SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1"),
        *("TUPLE2", "TUPLE3", "BINUNICODE", "SHORT_BINSTRING", "NONE", "NEWTRUE", "NEWFALSE", "BININT"),
        *("BININT1", "BININT2", "LONG1", "BINFLOAT", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    }
)


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: _Tensor(
                storage, offset, size, stride
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise _Refused(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int()):
                return _Storage(key, dtype)
        raise _Refused("a reference that is not a storage")


def _read_index(index: bytes, refuse: Callable[[str], NoReturn]) -> Any:
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(index)):
            if opcode.name not in _OPCODES:
                raise _Refused(f"the opcode {opcode.name}")
            # The unpickler allocates a memo table up to this number.
            if opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise _Refused(f"a memo numbered {argument}")
        return _Index(io.BytesIO(index)).load()
    except _Refused:
        refuse("contains objects other than tensors")
    except Exception as error:  # a damaged pickle can raise anything
        refuse(f"has an index that cannot be read: {' '.join(str(error).split())[:200]}")


def _checked_entries(index: Any, refuse: Callable[[str], NoReturn]) -> dict[str, _Tensor]:
    if not isinstance(index, dict) or not index:
        refuse("is not a dictionary of tensors")
    for name, value in index.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            refuse(f"has an entry {str(name)[:80]!r} that is not a tensor")
    return index


def _located(
    name: str,
    tensor: _Tensor,
    storages: dict[str, tuple[int, int]],
    file: IO[bytes],
    refuse: Callable[[str], NoReturn],
) -> StoredTensor:
    """The tensor with the offset of its bytes. Checks the index's sizes against those of the zip file."""
    storage, offset, shape, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
    is_well_formed = (
        isinstance(storage, _Storage)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= MAX_DIMENSIONS
        and all(type(number) is int and number >= 0 for number in (offset, *shape, *stride))
    )
    if not is_well_formed or storage.key not in storages or 0 in shape:
        refuse(f"has a tensor {name[:80]!r} that is empty or reaches outside it")
    start, size = storages[storage.key]
    first = offset * storage.dtype.itemsize
    if first + _extent(shape, stride) * storage.dtype.itemsize > size:
        refuse(f"has a tensor {name[:80]!r} that is empty or reaches outside it")
    return StoredTensor(name, shape, storage.dtype, stride, start + first, file)


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements of storage a strided tensor spans, from its first element to its last."""
    return 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))


def _data_offset(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """Where a stored zip record's data begins: after the 30-byte local header, the name and the extra field."""
    file.seek(record.header_offset + 26)
    lengths = file.read(4)
    return record.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
