"""Reading a torch checkpoint without torch gives the same tensors as torch, or a clear error."""

import io
import pickle
import random
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from convert.checkpoint import stored_tensors
from convert.errors import ArchiveError
from tests import archives

ROOT = Path(__file__).parents[2]
ARCHIVES = sorted(archive for folder in ("convert", "server", "tests") for archive in (ROOT / folder).glob("**/*.nemo"))
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def refuse(reason: str) -> NoReturn:
    raise ArchiveError(f"the checkpoint {reason}")


def read(checkpoint: bytes) -> dict[str, np.ndarray]:
    return {name: tensor.load() for name, tensor in stored_tensors(io.BytesIO(checkpoint), refuse).items()}


def checkpoints_in(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".ckpt")}  # type: ignore[union-attr]


def assert_same_as_torch(checkpoint: bytes) -> int:
    """Check that names, dtypes, shapes and bytes equal torch's, and return the number of tensors."""
    arrays, tensors = read(checkpoint), torch.load(io.BytesIO(checkpoint), weights_only=True)
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert arrays[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert arrays[name].shape == tuple(tensor.shape)
        expected = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        np.testing.assert_array_equal(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8), expected)
    return len(arrays)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_every_archive_of_the_tests_is_read_as_by_torch(archive):
    counts = [assert_same_as_torch(checkpoint) for checkpoint in checkpoints_in(archive).values()]
    assert counts
    assert min(counts) > 70


def test_all_archives_are_found():
    names = {path.stem for path in ARCHIVES}
    assert {"toy", "v1", "aligner", "180m-flash", "1b-flash", "1b", "1b-v2", "1b-v2-wide"} <= names


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_bit_for_bit(dtype):
    raw = torch.randint(0, 256, (6, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tensor = raw.bool() if dtype == "bool" else raw.view(getattr(torch, dtype))
    assert assert_same_as_torch(archives.checkpoint({"x": tensor})) == 1


def test_views_parameters_and_scalars_are_read_as_by_torch():
    whole = torch.arange(60.0).reshape(3, 4, 5)
    shared = OrderedDict(
        whole=whole,
        transposed=whole.permute(2, 0, 1),
        inner=whole[1:, ::2, 3],
        broadcast=torch.ones(1).expand(7),
        parameter=torch.nn.Parameter(torch.eye(3)),
        scalar=torch.tensor(5),
    )
    assert assert_same_as_torch(archives.checkpoint(shared)) == 6


@pytest.mark.parametrize(
    "content", [{"x": torch.zeros(2, dtype=torch.complex64)}, {"x": torch.eye(2).to_sparse()}, {"x": np.zeros(2)}]
)
def test_anything_but_plain_tensors_is_rejected(content):
    with pytest.raises(ArchiveError, match=r"contains objects other than tensors|is not a tensor"):
        read(archives.checkpoint(content))


@pytest.mark.parametrize(
    "name", [b"os\nsystem", b"builtins\neval", b"torch\nload", b"torch._utils\n_rebuild_tensor", b"torch\nnn.Module"]
)
def test_an_unknown_name_in_the_pickle_is_rejected(name):
    with pytest.raises(ArchiveError, match="contains objects other than tensors"):
        read(repacked(archives.checkpoint({"x": torch.zeros(2)}), b"\x80\x02c" + name + b"\n."))


def test_an_index_that_would_allocate_a_huge_memo_table_is_rejected():
    """The unpickler allocates a table up to the highest memo number: 32 GB for this one."""
    index = b"\x80\x02}r" + (2**32 - 1).to_bytes(4, "little") + b"."
    with pytest.raises(ArchiveError, match="contains objects other than tensors"):
        read(repacked(archives.checkpoint({"x": torch.zeros(2)}), index))


def index_of(entry: object) -> bytes:
    """A pickle of {"x": entry}, as torch would never write it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.value if isinstance(obj, Reference) else None

    output = io.BytesIO()
    Pickler(output, protocol=2).dump({"x": entry})
    return output.getvalue()


class Reference:
    def __init__(self, *value):
        self.value = value


class Rebuilt:
    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


STORAGE = Reference("storage", torch.FloatStorage, "0", "cpu", 4)
INVALID_TENSORS = {
    "negative offset": Rebuilt(STORAGE, -1, (2,), (1,), False, OrderedDict()),
    "offset past the end": Rebuilt(STORAGE, 4, (1,), (1,), False, OrderedDict()),
    "shape past the end": Rebuilt(STORAGE, 0, (5,), (1,), False, OrderedDict()),
    "stride past the end": Rebuilt(STORAGE, 0, (2,), (4,), False, OrderedDict()),
    "negative stride": Rebuilt(STORAGE, 3, (2,), (-1,), False, OrderedDict()),
    "empty": Rebuilt(STORAGE, 0, (0,), (1,), False, OrderedDict()),
    "huge shape": Rebuilt(STORAGE, 0, (2**62, 2**62), (0, 1), False, OrderedDict()),
    "more strides than sizes": Rebuilt(STORAGE, 0, (2,), (1, 1), False, OrderedDict()),
    "text for a size": Rebuilt(STORAGE, 0, ("2",), (1,), False, OrderedDict()),
    "a truth for a size": Rebuilt(STORAGE, 0, (True,), (1,), False, OrderedDict()),
    "a number for the shape": Rebuilt(STORAGE, 0, 2, (1,), False, OrderedDict()),
    "no storage": Rebuilt(None, 0, (2,), (1,), False, OrderedDict()),
    "another record": Rebuilt(
        Reference("storage", torch.FloatStorage, "../data.pkl", "cpu", 4), 0, (2,), (1,), False, OrderedDict()
    ),
    "too many dimensions": Rebuilt(STORAGE, 0, (1,) * 40, (1,) * 40, False, OrderedDict()),
}


@pytest.mark.parametrize("invalid", INVALID_TENSORS)
def test_a_tensor_with_an_invalid_description_is_rejected(invalid):
    checkpoint = archives.checkpoint({"x": torch.zeros(4)})
    with pytest.raises(ArchiveError, match=r"has a tensor 'x' that is empty or reaches outside it"):
        read(repacked(checkpoint, index_of(INVALID_TENSORS[invalid])))


def test_a_reference_to_anything_but_a_storage_is_rejected():
    checkpoint = archives.checkpoint({"x": torch.zeros(4)})
    for reference in (Reference("module", "x"), Reference("storage", str, "0", "cpu", 4)):
        entry = Rebuilt(reference, 0, (2,), (1,), False, OrderedDict())
        with pytest.raises(ArchiveError, match="contains objects other than tensors"):
            read(repacked(checkpoint, index_of(entry)))


def test_thousands_of_damaged_indexes_give_tensors_of_the_file_or_an_archive_error():
    """Bytes of the index are changed at random. The result is tensors or an ArchiveError, and nothing else."""
    checkpoint = archives.checkpoint({f"layer.{n}": torch.full((3, 2), float(n)) for n in range(4)})
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as file:
        index = file.read(next(name for name in file.namelist() if name.endswith("/data.pkl")))
    rng = random.Random(7)
    outcomes, longest = {"read": 0, "refused": 0}, 0
    for _ in range(2000):
        damaged = bytearray(index)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(damaged))
            change = rng.choice(("set", "cut", "repeat"))
            if change == "set":
                damaged[at] = rng.randrange(256)
            elif change == "cut":
                del damaged[at : at + rng.randrange(1, 9)]
            else:
                damaged[at:at] = damaged[at : at + rng.randrange(1, 9)]
            if not damaged:
                break
        try:
            tensors = read(repacked(checkpoint, bytes(damaged)))
        except ArchiveError as error:
            outcomes["refused"] += 1
            longest = max(longest, len(str(error)))
        else:
            outcomes["read"] += 1
            assert all(np.isin(tensor, np.arange(4.0)).all() for tensor in tensors.values() if tensor.dtype == "f4")
    assert longest < 400
    assert min(outcomes.values()) > 50, outcomes


def repacked(checkpoint: bytes, index: bytes) -> bytes:
    """The checkpoint with another `data.pkl`."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as new:
        for record in old.infolist():
            new.writestr(record, index if record.filename.endswith("/data.pkl") else old.read(record))
    return output.getvalue()
