"""`canary doctor` as a whole, with the toy."""

import getpass
import json
import os
import socket
from pathlib import Path

NAMES = [
    *(
        "python",
        "system",
        "mlx",
        "device",
        "numpy",
        "8 bits",
        "cache",
        "disk",
        "port",
        "hub",
        "hub token",
        "microphone",
    ),
    *("memory", "loading", "toy's texts", "decoding", "primitives", "look-ahead", "speed", "steady memory"),
]


def test_all_is_well_here_and_the_json_holds_every_figure(run_canary):
    checked = run_canary("doctor", "--dtype", "float32", "--json", "--port", "0", HF_HUB_OFFLINE="1")
    report = json.loads(checked.stdout)
    wrong = [check for check in report["checks"] if check["status"] != "ok"]
    assert (checked.returncode, report["ok"], wrong) == (0, True, [])
    assert [check["name"] for check in report["checks"]] == NAMES + 5 * ["NeMo float32"]
    figures = {check["name"]: check["figures"] for check in report["checks"]}
    assert figures["toy's texts"] == {"right": 20, "texts": 20, "wrong": [], "dtype": "float32"}
    assert figures["speed"]["alone"] > 0
    assert figures["steady memory"]["requests"] >= 32
    # The lines go to stderr.
    assert checked.stderr.startswith("canary doctor ")
    assert "To report a problem, paste everything above" in checked.stderr
    assert str(Path.home()) not in checked.stdout + checked.stderr
    assert f"/{getpass.getuser()}/" not in checked.stdout + checked.stderr


def test_on_mlxs_arrays_in_16_bits_both_types_are_compared_and_look_ahead_too(run_canary):
    checked = run_canary(
        "doctor", "--dtype", "bfloat16", "--json", "--port", "0", CANARY_ARRAYS="mlx", HF_HUB_OFFLINE="1"
    )
    report = json.loads(checked.stdout)
    wrong = [check for check in report["checks"] if check["status"] != "ok"]
    assert (checked.returncode, wrong) == (0, [])
    assert [check["name"] for check in report["checks"]] == NAMES + 5 * ["NeMo float32"] + 5 * ["NeMo bfloat16"]
    figures = {check["name"]: check["figures"] for check in report["checks"]}
    assert figures["device"]["arrays"] == "mlx"
    assert figures["toy's texts"]["dtype"] == "bfloat16"
    assert set(figures["look-ahead"]["step_ms"]) == {"on", "off"}
    assert set(figures["primitives"]) == {"step", "decoder_layers", "encoder_layer", "encoder_layer_padded"}


def test_a_failed_check_is_the_exit_code_and_the_others_are_still_made(run_canary, tmp_path):
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        checked = run_canary(
            "doctor", "--quick", "--port", port, "--cache", tmp_path / "file" / "cache", HF_HUB_OFFLINE="1"
        )
    assert checked.returncode == 1
    lines = checked.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FAILED")] == ["cache", "port"]
    assert f"cannot listen on port {port} of 127.0.0.1: Address already in use" in checked.stdout
    assert "ok       toy's texts    20 of 20 exact" in checked.stdout
    assert "NeMo" not in checked.stdout
    assert lines[-3].startswith("13 ok, 0 warnings, 2 failed in ")


def test_without_mlx_it_is_said_how_to_install_it_and_nothing_is_computed(run_canary, tmp_path):
    package = tmp_path / "packages" / "mlx"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "core.py").write_text("raise ImportError('libmlx.so: no such file')\n")
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    checked = run_canary("doctor", "--port", "0", HF_HUB_OFFLINE="1", PYTHONPATH=path)
    assert checked.returncode == 1
    assert (
        "FAILED   mlx            MLX cannot be imported (libmlx.so: no such file); on Linux, install" in checked.stdout
    )
    named = [line[9:24].strip() for line in checked.stdout.splitlines() if line.startswith(("ok", "warning", "FAILED"))]
    assert named == ["python", "system", "mlx", "numpy", *NAMES[6:12]]
