"""What an import does to a process: it loads what it needs, and changes nothing."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from convert.download import TOYS
from convert.hub import resolve

# Runs before the import: counts calls of mallopt through ctypes, and notes the environment.
WATCHED = """
import ctypes, importlib, json, os, pkgutil, sys

mallopt_calls = []
class Watched(ctypes.CDLL):
    def __getattr__(self, name):
        function = super().__getattr__(name)
        if name == "mallopt":
            return lambda *options: mallopt_calls.append(options) or function(*options)
        return function
ctypes.CDLL = Watched
before = dict(os.environ)

def everything_in(name):
    package = importlib.import_module(name)
    return [importlib.import_module(each.name) for each in pkgutil.walk_packages(package.__path__, f"{name}.")]

def changed_variables():
    return sorted(k for k in before.keys() | os.environ.keys() if before.get(k) != os.environ.get(k))
"""


def child(code: str) -> dict:
    """What a process of its own prints as JSON."""
    done = subprocess.run([sys.executable, "-c", WATCHED + code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("package", ["model", "convert", "server.engine"])
def test_importing_a_package_changes_neither_the_environment_nor_malloc(package):
    found = child(f"""
modules = everything_in({package!r})
print(json.dumps([len(modules), changed_variables(), len(mallopt_calls)]))
""")
    assert found[0] >= 3
    assert found[1:] == [[], 0]


def test_the_watch_sees_what_preparing_a_process_sets():
    found = child("""
os.environ.pop("MLX_ENABLE_TF32", None)
before = dict(os.environ)
from model.process import prepare_process
prepare_process()
print(json.dumps([changed_variables(), len(mallopt_calls)]))
""")
    assert found == [["MLX_ENABLE_TF32"], 3 if sys.platform == "linux" else 0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere malloc decides")
def test_memory_that_is_freed_goes_back_to_the_system_after_importing_the_model():
    found = child("""
everything_in("model")
import numpy as np
import psutil

def resident_mb():
    return psutil.Process().memory_info().rss / 1e6

before_mb = resident_mb()
arrays = [np.ones(2_500_000) for _ in range(10)]
held_mb = resident_mb() - before_mb
del arrays
print(json.dumps([held_mb, resident_mb() - before_mb]))
""")
    assert found[0] >= 190
    assert found[1] < 20


@pytest.mark.parametrize("package", ["server.engine", "server.longform", "server.live"])
def test_what_lies_below_the_web_loads_no_web_library(package):
    loaded = child(f"""
everything_in({package!r})
print(json.dumps(sorted(sys.modules)))
""")
    assert {name.partition(".")[0] for name in loaded} & {"fastapi", "starlette", "uvicorn"} == set()


def test_the_engine_loads_no_array_library_for_models_until_it_loads_one():
    loaded = child("""
everything_in("server.engine")
print(json.dumps(sorted(sys.modules)))
""")
    assert "server.engine.thread" in loaded
    assert "mlx.core" not in loaded
    assert "torch" not in loaded


# What a command waits for would be longer by each of these.
FOR_CONVERTING = {"convert.convert", "filelock", "ml_dtypes", "yaml", "huggingface_hub"}
FOR_DECODING_ELSEWHERE = {"av", "soundfile"}
FOR_OTHER_MODELS = {"model.parakeet.model", "py3langid", "torch"}
FOR_SERVING = {"fastapi", "starlette", "uvicorn", "websockets", "prometheus_client", "server.web"}


def test_transcribing_a_short_file_with_a_converted_canary_loads_nothing_that_it_does_not_need(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_CACHE", str(tmp_path / "cache"))
    resolve("toy")
    arguments = ["transcribe", str(TOYS / "samples" / "fr.flac"), "--output-dir", str(tmp_path)]
    loaded = child(f"""
from server.__main__ import main
main({arguments!r}, standalone_mode=False)
print(json.dumps(sorted(sys.modules)))
""")
    assert (tmp_path / "fr.txt").read_text().strip()
    assert {"server.longform.transcribe", "model.canary.model"} <= set(loaded)
    needless = FOR_CONVERTING | FOR_DECODING_ELSEWHERE | FOR_OTHER_MODELS | FOR_SERVING
    assert needless.intersection(loaded) == set()


@pytest.mark.parametrize(
    ("arguments", "needless"),
    [
        (["--help"], {"asyncio", "model", "numpy", "pydantic", "server.settings"}),
        (["doctor", "--help"], {"convert", "model", "numpy", "onnxruntime", "server.cli.doctor.command"}),
        (["transcribe", "--help"], {"convert", "model", "numpy", "server.cli.transcribe", "server.engine"}),
    ],
)
def test_help_loads_nothing_that_only_running_a_command_needs(arguments, needless):
    loaded = child(f"""
import contextlib, io
from server.__main__ import main
with contextlib.redirect_stdout(io.StringIO()) as shown:
    main({arguments!r}, prog_name="canary", standalone_mode=False)
print(json.dumps([shown.getvalue(), sorted(sys.modules)]))
""")
    assert loaded[0].startswith("Usage: canary")
    assert "typer" in loaded[1]
    assert needless.intersection(loaded[1]) == set()


def test_an_array_library_that_does_not_exist_ends_a_command_with_one_line(tmp_path):
    recording = tmp_path / "silence.wav"
    soundfile.write(recording, np.zeros(16000, np.float32), 16000)
    done = subprocess.run(
        [sys.executable, "-m", "server", "transcribe", str(recording)],
        env={**os.environ, "CANARY_ARRAYS": "torch", "CANARY_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "canary: CANARY_ARRAYS 'torch' is not supported; must be one of mlx, numpy"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["transcribe", "convert"])
@pytest.mark.parametrize("reason", ["No module named 'mlx'", "libmlx.so: cannot open shared object file"])
def test_without_mlx_a_command_ends_with_one_line_that_names_the_extras(tmp_path, command, reason):
    """As on Linux when no extra was installed."""
    package = tmp_path / "packages" / "mlx"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "core.py").write_text(f"raise ImportError({reason!r})\n")
    recording = tmp_path / "silence.wav"
    soundfile.write(recording, np.zeros(16000, np.float32), 16000)
    arguments = {
        "transcribe": ["transcribe", str(recording)],
        "convert": ["convert", "toy", str(tmp_path / "out"), "--quantize", "8"],
    }
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments[command]],
        env={**os.environ, "CANARY_CACHE": str(tmp_path / "cache"), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"canary: MLX cannot be imported ({reason}); on Linux, install it with pip install 'canary-server[cpu]', "
        "or for an NVIDIA GPU with [cuda12] or [cuda13]"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
