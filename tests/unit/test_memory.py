"""A model is weighed against the memory there is before it is read."""

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from convert.convert import ConversionConfig, convert
from model import memory
from model.canary.model import CanaryModel
from model.config import QuantizationConfig, WeightsError
from model.memory import GPU_CACHE, Need
from tests import archives

GB = 10**9
NEED = Need(weights=2 * GB, cache=GB // 10, work=GB // 5)


@pytest.fixture
def limits(monkeypatch) -> dict[str, int]:
    """What MLX is told, instead of this machine."""
    told = {}
    for name in ("memory", "wired", "cache"):
        monkeypatch.setattr(mx, f"set_{name}_limit", lambda size, name=name: told.update({name: size}))
    return told


@pytest.fixture
def gpu(monkeypatch, limits):
    """A fake Mac: called with the bytes that its GPU recommends, and those that other models use."""

    def on_a_mac(recommended: int, used: int = 0) -> None:
        monkeypatch.setattr("model.arrays.on_cpu", lambda: False)
        monkeypatch.setattr("model.memory.on_cpu", lambda: False)
        monkeypatch.setattr("model.footprint.on_cpu", lambda: False)
        info = {"device_name": "Apple M1", "memory_size": 8 * GB, "max_recommended_working_set_size": recommended}
        monkeypatch.setattr(mx, "device_info", lambda: info)
        monkeypatch.setattr(mx, "get_active_memory", lambda: used)

    return on_a_mac


@pytest.fixture
def cpu(monkeypatch, limits):
    """A machine without a GPU: called with its memory in bytes."""

    def with_memory(size: int) -> None:
        values = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": size // 4096}
        monkeypatch.setattr("model.memory.on_cpu", lambda: True)
        monkeypatch.setattr(os, "sysconf", lambda name: values[name])

    return with_memory


def test_limits_on_a_mac_come_from_what_its_gpu_recommends_and_the_models_size(gpu, limits):
    gpu(recommended=5 * GB)
    memory.reserve("canary", NEED, {})
    assert limits == {"memory": 5 * GB, "wired": 2 * GB + GB // 10, "cache": GPU_CACHE}


def test_a_model_that_just_fits_leaves_freed_arrays_only_the_rest(gpu, limits):
    gpu(recommended=NEED.total + 1000)
    memory.reserve("canary", NEED, {})
    assert limits["cache"] == 1000
    assert limits["wired"] == 2 * GB + GB // 10


def test_a_second_model_has_what_the_first_leaves_and_both_are_wired(gpu, limits):
    gpu(recommended=5 * GB, used=2 * GB)
    memory.reserve("canary", NEED, {})
    assert limits["wired"] == 4 * GB + GB // 10
    gpu(recommended=4 * GB, used=2 * GB)
    with pytest.raises(WeightsError, match=r"but 2\.0 GB are available on the GPU"):
        memory.reserve("canary", NEED, {})


def test_a_gpu_that_recommends_nothing_is_taken_by_its_memory_and_gets_no_other_limits(monkeypatch, gpu, limits):
    gpu(recommended=0)
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "H200", "total_memory": 140 * GB})
    memory.reserve("canary", NEED, {})
    assert limits == {"cache": GPU_CACHE}
    with pytest.raises(WeightsError, match=r"but 140\.0 GB are available on the GPU; choose a smaller model"):
        memory.reserve("canary", Need(200 * GB, 0, 0), {})


def test_the_error_has_the_sum_and_the_first_option_that_fits(gpu):
    gpu(recommended=2 * GB)
    smaller = {"--dtype bfloat16": Need(3 * GB, 0, 0), "--quantize 8": Need(GB, GB // 10, GB // 5)}
    with pytest.raises(WeightsError) as error:
        memory.reserve("canary-1b-v2", NEED, smaller)
    assert str(error.value) == (
        "canary-1b-v2 does not fit into memory: weights 2.0 GB + cache 100 MB + work 200 MB = 2.3 GB, "
        "but 2.0 GB are available on the GPU; with --quantize 8 it needs 1.3 GB"
    )


def test_on_a_cpu_the_machines_memory_counts_and_malloc_keeps_freed_arrays(cpu, limits):
    cpu(NEED.total + 4096)
    memory.reserve("canary", NEED, {})
    assert limits == {"cache": 0}
    cpu(NEED.total - 4096)
    with pytest.raises(WeightsError, match=r"but 2\.3 GB are available on this machine; choose a smaller model"):
        memory.reserve("canary", NEED, {})


def test_a_system_that_does_not_say_how_much_memory_it_has_refuses_nothing(monkeypatch, cpu, limits):
    cpu(GB)

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    memory.reserve("canary", NEED, {})
    assert limits == {"cache": 0}


def converted(folder: Path, **options) -> Path:
    folder.mkdir(exist_ok=True)
    archive = archives.tiny_archive(folder, options.pop("variant", "180m-flash"))
    return convert(ConversionConfig(source=archive, output=folder / "out", **options), folder / "cache")


def test_a_folder_that_does_not_fit_is_refused_before_its_weights_are_read(tmp_path, gpu, monkeypatch):
    monkeypatch.setattr("model.canary.model.load_tokenizer", lambda *_: None)
    read = []
    monkeypatch.setattr("model.weights.load", lambda *_: read.append("weights"))
    folder = converted(tmp_path)
    gpu(recommended=500_000)
    with pytest.raises(WeightsError, match=r"^canary-180m-flash does not fit into memory: weights \d+ MB \+ cache"):
        CanaryModel.load(folder, "float32")
    assert read == []
    gpu(recommended=GB)
    CanaryModel.load(folder, "float32")
    assert read == ["weights"]


def test_an_aligner_counts_as_it_is_loaded_with_the_first_times(tmp_path, gpu, limits, monkeypatch):
    monkeypatch.setattr("model.canary.model.load_tokenizer", lambda *_: None)
    monkeypatch.setattr("model.weights.load", lambda *_: None)
    folder = converted(tmp_path, variant="1b-v2")
    gpu(recommended=GB)
    CanaryModel.load(folder, "bfloat16")
    with_aligner = limits["wired"]
    aligner_size = memory.weights_size(folder / "aligner" / "model.safetensors", "bfloat16", None)
    assert aligner_size > 100_000
    (folder / "aligner" / "model.safetensors").unlink()
    CanaryModel.load(folder, "bfloat16")
    assert with_aligner - limits["wired"] == aligner_size


@pytest.mark.parametrize("quantize", [None, 8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_weights_are_said_to_take_is_what_they_take_once_loaded(tmp_path, monkeypatch, quantize, dtype):
    monkeypatch.setenv("CANARY_ARRAYS", "mlx")
    monkeypatch.setattr("model.canary.model.load_tokenizer", lambda *_: None)
    folder = converted(tmp_path, quantize=quantize, group_size=32 if quantize else None)
    canary = CanaryModel.load(folder, dtype)
    loaded = sum(value.nbytes for _, value in tree_flatten(canary.parameters()))
    assert memory.weights_size(folder / "model.safetensors", dtype, canary.config.quantization) == loaded


def test_what_a_quantized_file_would_take_is_told_from_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_ARRAYS", "mlx")
    whole = converted(tmp_path / "whole", variant="1b-flash") / "model.safetensors"
    told = memory.quantized_size(whole, "bfloat16", 8)
    quantized = converted(tmp_path / "quantized", variant="1b-flash", quantize=8, group_size=32) / "model.safetensors"
    real = memory.weights_size(quantized, "bfloat16", QuantizationConfig(8, 32))
    assert told == pytest.approx(real, rel=0.1)
    assert told < 0.8 * memory.weights_size(whole, "bfloat16", None)


def test_a_cpu_takes_8_bits_as_they_are_only_if_it_is_fast_at_them(tmp_path, monkeypatch):
    monkeypatch.setattr("model.arrays.on_cpu", lambda: True)
    monkeypatch.setenv("CANARY_ARRAYS", "numpy")
    file = converted(tmp_path, quantize=8, group_size=32) / "model.safetensors"
    sizes = []
    for fast in (True, False):
        monkeypatch.setattr("model.cpu.int8.is_fast", lambda fast=fast: fast)
        sizes.append(memory.weights_size(file, "float32", QuantizationConfig(8, 32)))
    tensors = mx.load(str(file))
    packed = sum(int(np.prod(value.shape)) * 4 for name, value in tensors.items() if value.dtype == mx.uint32)
    assert sizes[1] - sizes[0] == 3 * packed
