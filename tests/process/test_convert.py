"""Conversion by several processes, by one that is killed, and the memory that it takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convert.convert import ConversionConfig, convert
from model.canary.config import CanaryConfig
from model.config import read_config
from tests import archives
from tests.archives import weights

PARTIALS = ".*.partial-*"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))


CONVERT = """
import logging, os, signal, sys, time
from pathlib import Path
from convert.convert import ConversionConfig, convert_once
archive, out, at_first_tensor = sys.argv[1:]
logging.basicConfig(level=logging.INFO, format="%(message)s")
steps = []
def progress(stage, done, total):
    steps.append(done)
    if done == 1:
        print("started", flush=True)
        if at_first_tensor == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.readline()
convert_once(ConversionConfig(source=archive, output=Path(out), progress=progress))
print(len(steps), flush=True)
"""


def start(archive: Path, out: Path, at_first_tensor: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, str(archive), str(out), at_first_tensor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_of_two_processes_at_once_one_converts_and_the_other_waits_for_it(tmp_path):
    archive, out = archives.tiny_archive(tmp_path), tmp_path / "out"
    with start(archive, out, "wait") as first:
        assert first.stdout.readline() == "started\n"
        with start(archive, out, "wait") as second:
            assert "waiting for another process" in second.stderr.readline()
            assert not out.exists()
            first_out, _ = first.communicate("go on\n", timeout=60)
            second_out, _ = second.communicate(timeout=60)
    assert int(first_out) == len(weights(out))
    assert int(second_out) == 0


def test_a_killed_conversion_leaves_no_finished_folder_and_the_next_one_cleans_up(tmp_path):
    archive, out = archives.tiny_archive(tmp_path), tmp_path / "out"
    with start(archive, out, "die") as process:
        process.communicate(timeout=60)
    assert process.returncode == -9
    assert not out.exists()
    assert len(list(tmp_path.glob(PARTIALS))) == 1
    assert not list(tmp_path.glob(f"{PARTIALS}/config.json"))
    convert(ConversionConfig(source=archive, output=out))
    assert read_config(out, CanaryConfig).name == "canary-180m-flash"
    assert not list(tmp_path.glob(PARTIALS))


MEASURE = """
import sys
from pathlib import Path
from convert.convert import ConversionConfig, convert
convert(ConversionConfig(source=sys.argv[1], output=Path(sys.argv[2]), dtype="bfloat16"))
if sys.platform == "linux":  # where ru_maxrss includes the parent's memory before exec
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["VmHWM"].split()[0]) * 1024)
else:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def large_files() -> dict[str, bytes]:
    """A checkpoint of 400 MB, so that torch itself, about 300 MB, is not the larger part of the memory used."""
    d, layers = 1024, 4
    config, values = archives.config("1b"), archives.Zeros()
    archives.encoder_tensors(values, d, layers)
    archives.decoder_tensors(values, d, 1, archives.vocabulary_rows("1b"), d)
    config["encoder"] |= {"n_layers": layers, "d_model": d}
    config["transf_decoder"]["config_dict"] |= {"hidden_size": d, "inner_size": 4 * d, "num_layers": 1}
    return archives.members("1b", config=config, tensors=dict(values))


@pytest.mark.parametrize("gzipped", [False, True])
def test_converting_uses_at_most_1_3_times_the_checkpoints_size_in_memory(tmp_path, large_files, gzipped):
    size = len(large_files["model_weights.ckpt"])
    assert size > 400e6
    archive = archives.write_archive(tmp_path / "large.nemo", large_files, gzipped=gzipped)
    command = [sys.executable, "-c", MEASURE, str(archive), str(tmp_path / "out")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert peak < 1.3 * size, f"{peak / 1e6:.0f} MB for {size / 1e6:.0f} MB"
