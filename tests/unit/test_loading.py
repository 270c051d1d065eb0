"""What loading leaves on disk, and takes from it again: weights in 8 bits."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.convert import ConversionConfig, convert
from model.canary.model import CanaryModel
from model.cpu import int8, packed_file
from model.cpu.products import ProductLinear
from server.cli.verify import verify
from tests import archives


@pytest.fixture(autouse=True)
def _fast_cpu(monkeypatch, tmp_path, caplog):
    """A CPU that is fast at 8-bit products, whatever this machine has."""
    caplog.set_level("INFO", "model")
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CANARY_ARRAYS", "numpy")
    monkeypatch.setattr("model.arrays.on_cpu", lambda: True)
    monkeypatch.setattr("model.cpu.int8._instructions", lambda: {"avx_vnni"})


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    config = ConversionConfig(source=archives.tiny_archive(folder), output=folder / "model", quantize=8, group_size=32)
    return convert(config, folder / "cache")


@pytest.fixture
def folder(tmp_path, converted) -> Path:
    """A conversion quantized to 8 bits that has never been loaded."""
    return shutil.copytree(converted, tmp_path / "model")


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """One entry for each weight that is brought to 8 bits."""
    done, quantized = [], int8.quantized
    monkeypatch.setattr("model.cpu.int8.quantized", lambda weight: done.append(weight.size) or quantized(weight))
    return done


def kept_in(folder: Path) -> Path:
    return packed_file.path_beside(folder / "model.safetensors")


def encoding(folder: Path) -> np.ndarray:
    canary = CanaryModel.load(folder, "float32")
    assert len([layer for layer in canary.modules() if isinstance(layer, ProductLinear)]) == 18
    return canary.encode(np.random.default_rng(1).standard_normal((1, 80, 128)).astype(np.float32))


def test_weights_in_8_bits_are_kept_by_the_first_load_and_compute_the_same_in_the_next(folder, made):
    first = encoding(folder)
    assert len(made) == 19
    written = kept_in(folder).read_bytes()
    assert np.array_equal(encoding(folder), first)
    assert len(made) == 19
    assert kept_in(folder).read_bytes() == written
    assert not list(folder.glob(".*"))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def with_another_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version":"4"', b'"version":"0"'))


def with_a_broken_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"I8"', b'"I?"'))


def with_a_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def with_zeros_in_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header : header + 1000] = bytes(1000)
    path.write_bytes(content)


DAMAGE = [cut_off, emptied, with_another_header, with_a_broken_header]
FLIPPED = [with_a_flipped_bit, with_zeros_in_a_weight]


@pytest.mark.parametrize("damage", [*DAMAGE, *FLIPPED])
def test_a_file_of_weights_in_8_bits_that_is_damaged_or_of_another_version_is_made_again(folder, made, caplog, damage):
    first = encoding(folder)
    written = kept_in(folder).read_bytes()
    damage(kept_in(folder))
    caplog.clear()
    assert np.array_equal(encoding(folder), first)
    assert len(made) == 38
    assert "it is made again" in caplog.text
    assert kept_in(folder).read_bytes() == written


@pytest.mark.parametrize("damage", [cut_off, emptied, with_a_broken_header, *FLIPPED])
def test_canary_verify_names_a_damaged_file_of_weights_in_8_bits(folder, damage):
    encoding(folder)
    assert verify([folder], settings={}, json_output=False)
    damage(kept_in(folder))
    assert not verify([folder], settings={}, json_output=False)
    assert packed_file.is_damaged(kept_in(folder))


def test_weights_in_8_bits_of_a_model_that_was_replaced_are_made_again(folder, made, tmp_path):
    first = encoding(folder)
    archive = archives.tiny_archive(tmp_path, tensors=dict(archives.tensors("180m-flash"), **_other_tensors()))
    other = convert(ConversionConfig(source=archive, output=tmp_path / "other", quantize=8, group_size=32))
    shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")
    assert not np.array_equal(encoding(folder), first)
    assert len(made) == 38
    assert np.array_equal(encoding(folder), encoding(other))


def _other_tensors():
    name = "encoder.layers.0.feed_forward1.linear1.weight"
    return {name: -archives.tensors("180m-flash")[name]}


def test_a_folder_that_cannot_be_written_to_is_loaded_without_keeping_weights_in_8_bits(
    folder, made, caplog, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.safetensors_writer.os.fsync", full)
    first = encoding(folder)
    assert f"8-bit weights are not kept in {kept_in(folder)}: No space left on device" in caplog.text
    assert sorted(path.name for path in folder.iterdir() if "int8" in path.name) == []
    assert np.array_equal(encoding(folder), first)
    assert len(made) == 38


def test_what_a_killed_process_left_half_written_is_removed_when_it_is_old(folder):
    old, new = (folder / f".model.safetensors.int8.partial-{pid}" for pid in (1, 2))
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (0, 0))
    encoding(folder)
    assert not old.exists()
    assert new.exists()
    assert kept_in(folder).exists()


def test_a_cpu_that_is_not_fast_in_8_bits_keeps_no_weights_for_it(folder, monkeypatch):
    monkeypatch.setattr("model.cpu.int8._instructions", set)
    CanaryModel.load(folder, "float32")
    assert not kept_in(folder).exists()
