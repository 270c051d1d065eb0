"""Reading a torch checkpoint without torch gives what torch itself reads, or refuses the file."""

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

TESTS = Path(__file__).parents[1]
ARCHIVES = sorted([*TESTS.glob("**/*.nemo"), *(TESTS.parent / "convert").glob("**/*.nemo")])
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def refuse(what: str) -> NoReturn:
    raise ArchiveError(f"the checkpoint {what}")


def read(checkpoint: bytes) -> dict[str, np.ndarray]:
    return {name: tensor.load() for name, tensor in stored_tensors(io.BytesIO(checkpoint), refuse).items()}


def checkpoints_in(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".ckpt")}  # type: ignore[union-attr]


def assert_same_as_torch(checkpoint: bytes) -> int:
    """Every tensor has torch's name, type, shape and bytes; returns how many there are."""
    ours, theirs = read(checkpoint), torch.load(io.BytesIO(checkpoint), weights_only=True)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert ours[name].shape == tuple(tensor.shape)
        expected = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        np.testing.assert_array_equal(np.ascontiguousarray(ours[name]).reshape(-1).view(np.uint8), expected)
    return len(ours)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_every_archive_of_the_tests_reads_as_torch_reads_it(archive):
    read_in_all = [assert_same_as_torch(checkpoint) for checkpoint in checkpoints_in(archive).values()]
    assert read_in_all
    assert min(read_in_all) > 70


def test_the_archives_are_all_there():
    names = {path.stem for path in ARCHIVES}
    assert {"toy", "v1", "aligner", "180m-flash", "1b-flash", "1b", "1b-v2"} <= names


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_type_is_read_bit_for_bit(dtype):
    raw = torch.randint(0, 256, (6, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tensor = raw.bool() if dtype == "bool" else raw.view(getattr(torch, dtype))
    assert assert_same_as_torch(archives.checkpoint({"x": tensor})) == 1


def test_views_parameters_and_scalars_are_read_as_torch_reads_them():
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
def test_what_is_not_a_plain_tensor_is_refused(content):
    with pytest.raises(ArchiveError, match=r"contains objects other than tensors|is not a tensor"):
        read(archives.checkpoint(content))


@pytest.mark.parametrize(
    "name", [b"os\nsystem", b"builtins\neval", b"torch\nload", b"torch._utils\n_rebuild_tensor", b"torch\nnn.Module"]
)
def test_a_name_that_is_not_one_of_the_ten_is_refused(name):
    with pytest.raises(ArchiveError, match="contains objects other than tensors"):
        read(repacked(archives.checkpoint({"x": torch.zeros(2)}), b"\x80\x02c" + name + b"\n."))


def test_an_index_that_would_take_memory_by_a_number_alone_is_refused():
    """The unpickler makes a table as long as the highest memo: 32 GB for this one."""
    index = b"\x80\x02}r" + (2**32 - 1).to_bytes(4, "little") + b"."
    with pytest.raises(ArchiveError, match="contains objects other than tensors"):
        read(repacked(archives.checkpoint({"x": torch.zeros(2)}), index))


def index_of(entry: object) -> bytes:
    """A pickle of {"x": a tensor} that torch would not write."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.value if isinstance(obj, Reference) else None

    written = io.BytesIO()
    Pickler(written, protocol=2).dump({"x": entry})
    return written.getvalue()


class Reference:
    def __init__(self, *value):
        self.value = value


class Rebuilt:
    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


STORAGE = Reference("storage", torch.FloatStorage, "0", "cpu", 4)
LIES = {
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


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_that_is_described_wrongly_is_refused(lie):
    checkpoint = archives.checkpoint({"x": torch.zeros(4)})
    with pytest.raises(ArchiveError, match=r"has a tensor 'x' that is empty or reaches outside it"):
        read(repacked(checkpoint, index_of(LIES[lie])))


def test_a_reference_to_something_other_than_a_storage_is_refused():
    checkpoint = archives.checkpoint({"x": torch.zeros(4)})
    for reference in (Reference("module", "x"), Reference("storage", str, "0", "cpu", 4)):
        entry = Rebuilt(reference, 0, (2,), (1,), False, OrderedDict())
        with pytest.raises(ArchiveError, match="contains objects other than tensors"):
            read(repacked(checkpoint, index_of(entry)))


def test_thousands_of_damaged_indexes_are_read_within_the_file_or_refused():
    """Bytes of the index are changed at random: what comes out is tensors or one kind of error, and nothing else."""
    checkpoint = archives.checkpoint({f"layer.{n}": torch.full((3, 2), float(n)) for n in range(4)})
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as file:
        index = file.read(next(name for name in file.namelist() if name.endswith("/data.pkl")))
    rng = random.Random(7)
    outcomes, longest = {"read": 0, "refused": 0}, 0
    for _ in range(3000):
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
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as new:
        for record in old.infolist():
            new.writestr(record, index if record.filename.endswith("/data.pkl") else old.read(record))
    return written.getvalue()
