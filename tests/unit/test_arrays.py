"""What loading chooses: the family of a model, and one of two array libraries with one set of names."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import soundfile

from convert.convert import ConversionConfig, convert
from convert.hub import resolve
from model import arrays, loading
from model.arrays import mlx
from model.arrays import numpy as numpy_arrays
from model.canary.model import CanaryModel
from model.config import ConfigError, read_values
from model.decoding import DecodingOptions
from model.task import Task
from tests import archives

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"


@pytest.fixture(scope="module")
def toy_folder() -> Path:
    return resolve("toy", dtype="float32")


@pytest.fixture
def a_cpu(monkeypatch):
    monkeypatch.setattr(arrays, "on_cpu", lambda: True)
    monkeypatch.delenv("CANARY_ARRAYS", raising=False)


def own(library, kind) -> dict:
    """The library's functions, or classes, that this project wrote."""
    values = {name: getattr(library, name) for name in library.__all__}
    return {name: each for name, each in values.items() if kind(each) and each.__module__ == library.__name__}


def test_both_libraries_have_the_same_names():
    assert mlx.__all__ == numpy_arrays.__all__
    assert all(hasattr(library, name) for library in (mlx, numpy_arrays) for name in library.__all__)


def test_a_function_takes_the_same_arguments_in_both_libraries():
    both = own(mlx, inspect.isfunction).keys() & own(numpy_arrays, inspect.isfunction)
    assert {"linear", "layer_norm", "attention", "depthwise_1d", "relative_scores", "frames"} <= both
    for name in both:
        parameters = [list(inspect.signature(getattr(library, name)).parameters) for library in (mlx, numpy_arrays)]
        assert parameters[0] == parameters[1], name


@pytest.mark.parametrize("name", ["FixedSlots", "GrowingSlots"])
def test_slots_have_the_same_methods_in_both_libraries(name):
    def methods(library) -> dict[str, list[str]]:
        found = inspect.getmembers(getattr(library, name), inspect.isfunction)
        return {m: list(inspect.signature(f).parameters) for m, f in found if m == "__init__" or not m.startswith("_")}

    assert methods(mlx) == methods(numpy_arrays)
    assert {"join", "attend", "leave", "clear"} <= methods(mlx).keys()


@pytest.mark.parametrize(
    ("asked", "cpu", "dtype", "library"),
    [
        (None, True, "float32", numpy_arrays),
        (None, True, "bfloat16", mlx),
        (None, False, "float32", mlx),
        (None, False, "bfloat16", mlx),
        ("", True, "float32", numpy_arrays),
        ("numpy", True, "float32", numpy_arrays),
        ("mlx", True, "float32", mlx),
        ("mlx", True, "float16", mlx),
        ("mlx", False, "bfloat16", mlx),
    ],
)
def test_a_cpu_computes_float32_with_numpys_arrays_and_all_else_with_mlxs_unless_asked(
    monkeypatch, asked, cpu, dtype, library
):
    monkeypatch.setattr(arrays, "on_cpu", lambda: cpu)
    if asked is None:
        monkeypatch.delenv("CANARY_ARRAYS", raising=False)
    else:
        monkeypatch.setenv("CANARY_ARRAYS", asked)
    assert arrays.library_for(dtype) is library


@pytest.mark.parametrize(
    ("asked", "cpu", "dtype", "said"),
    [
        ("torch", True, "float32", "CANARY_ARRAYS 'torch' is not supported; must be one of mlx, numpy"),
        ("MLX", False, "float32", "CANARY_ARRAYS 'MLX' is not supported; must be one of mlx, numpy"),
        (
            "numpy",
            True,
            "bfloat16",
            "CANARY_ARRAYS=numpy does not support bfloat16 on a CPU, only float32 on a CPU",
        ),
        (
            "numpy",
            False,
            "float32",
            "CANARY_ARRAYS=numpy does not support float32 on a GPU, only float32 on a CPU",
        ),
    ],
)
def test_a_library_that_cannot_be_used_is_an_error_that_says_what_can(monkeypatch, toy_folder, asked, cpu, dtype, said):
    monkeypatch.setattr(arrays, "on_cpu", lambda: cpu)
    monkeypatch.setenv("CANARY_ARRAYS", asked)
    with pytest.raises(ConfigError) as error:
        loading.load(toy_folder, dtype)
    assert str(error.value) == said


def test_mlxs_arrays_on_a_cpu_compute_as_on_a_gpu(monkeypatch, a_cpu, toy_folder):
    usual = CanaryModel.load(toy_folder, "float32")
    monkeypatch.setenv("CANARY_ARRAYS", "mlx")
    as_on_gpu = CanaryModel.load(toy_folder, "float32")
    assert (usual.xp, as_on_gpu.xp) == (numpy_arrays, mlx)
    assert (usual.encodes_together, as_on_gpu.encodes_together) == (False, True)
    waveforms = [soundfile.read(SAMPLES / f"{language}.flac", dtype="float32")[0] for language in ("en", "de")]
    tasks = [Task("en"), Task("de")]
    # Padded and encoded together, ...
    padded, features = [], as_on_gpu.features
    monkeypatch.setattr(as_on_gpu, "features", lambda batch: padded.append(len(batch)) or features(batch))
    encodings = as_on_gpu.encodings(waveforms)
    assert padded == [2]
    # ... with MLX's slots, and each step begun before the tokens of the last one are known.
    batch = as_on_gpu.running_batch()
    requests = zip(encodings, tasks, strict=True)
    batch.join([as_on_gpu.utterance(i, encoded, task, DecodingOptions()) for i, (encoded, task) in enumerate(requests)])
    batch.step()
    assert (type(batch._text), type(batch._audio)) == (mlx.GrowingSlots, mlx.FixedSlots)
    assert batch._ahead is not None
    texts = [[t.text for t in model.transcribe(waveforms, tasks)] for model in (usual, as_on_gpu)]
    assert texts[0] == texts[1]
    assert all(texts[0])


def test_a_converted_folder_names_its_family(tmp_path):
    folder = convert(ConversionConfig(source=archives.tiny_archive(tmp_path), output=tmp_path / "out"))
    assert read_values(folder)["family"] == "canary"


def test_a_folder_of_no_family_is_a_canary_and_an_unknown_family_is_refused(tmp_path, toy_folder):
    copied = Path(shutil.copytree(toy_folder, tmp_path / "copied"))
    # It had no digests then either.
    (copied / "digests.json").unlink(missing_ok=True)
    values = json.loads((copied / "config.json").read_text())
    values.pop("family", None)
    (copied / "config.json").write_text(json.dumps(values))
    assert loading.load(copied).config.name == "toy"
    (copied / "config.json").write_text(json.dumps(values | {"family": "whisper"}))
    with pytest.raises(ConfigError, match="family 'whisper' is not supported; must be one of canary, parakeet"):
        loading.load(copied)
