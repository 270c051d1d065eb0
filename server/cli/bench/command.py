"""`canary bench`: how fast a model is on this machine, by itself and over HTTP."""

import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from server.cli.failures import chosen_settings, fail, log_to_stderr, one_line_failures
from server.settings import Settings

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def bench(
    given: dict[str, Any],
    *,
    seconds: str,
    concurrency: str,
    rows: str,
    lengths: str,
    requests: int,
    pace: float,
    repeats: int,
    threads: int | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure, print tables, and write the files asked for. An empty list skips its part.

    given: settings from the command line.
    """
    asked = {
        "single": _numbers(seconds, "--seconds", float),
        "decode": _numbers(rows, "--rows", int),
        "encode": _numbers(lengths, "--lengths", float),
        "load": _numbers(concurrency, "--concurrency", int),
    }
    if plot_file:
        _check_plotting()
    if threads:
        # The libraries read these when they are loaded, which has not happened yet. The server's process inherits them.
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    settings = chosen_settings(**given)
    log_to_stderr()
    with one_line_failures():
        result = _measured(settings, asked, requests, pace, repeats)
    result["system"]["threads"] = threads
    result["command"] = " ".join(["canary", *sys.argv[1:]])

    from server.cli.bench.report import plot, tables

    typer.echo(tables(result))
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if plot_file:
        plot(result, plot_file)


def _measured(
    settings: Settings, asked: dict[str, list[Any]], requests: int, pace: float, repeats: int
) -> dict[str, Any]:
    from convert.hub import resolve
    from model.arrays import default_dtype
    from model.canary.model import CanaryModel
    from model.config import WEIGHTS_FILE
    from model.loading import device_name
    from server.cli.bench import stages
    from server.cli.bench.load import BenchError, measured_load, running_server

    source, dtype = settings.model[0], settings.dtype or default_dtype()
    conversion_s = _conversion_s(source, dtype, settings)
    folder = resolve(source, dtype=dtype, quantize=settings.quantize, cache_dir=settings.cache)
    began = time.monotonic()
    canary = CanaryModel.load(folder, dtype)
    load_s = time.monotonic() - began
    result: dict[str, Any] = {
        "model": {
            "name": canary.config.name,
            "dtype": dtype,
            "quantization": canary.config.quantization and asdict(canary.config.quantization),
            "weights_mb": (folder / WEIGHTS_FILE).stat().st_size / 1e6,
        },
        "system": {
            # Unlike platform.platform(), this starts no process to ask for the processor.
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": device_name(),
            "blas": _blas(),
        },
        "load_s": load_s,
        "conversion_s": conversion_s,
    }
    single = [stages.single_stream(canary, audio_s, repeats) for audio_s in asked["single"]]
    result["single"] = [{**asdict(each), "rtfx": each.rtfx} for each in single]
    decode = [stages.decode_costs(canary, asked["decode"], audio_s) for audio_s in asked["single"] or [10.0]]
    result["decode"] = [asdict(each) for costs in decode for each in costs]
    result["encode"] = [asdict(each) for each in stages.encode_costs(canary, asked["encode"], repeats)]
    # Leave memory and cores to the server.
    del canary
    result["load"] = []
    for clients in asked["load"]:
        environment = {**os.environ, "CANARY_MAX_QUEUE": str(max(32, 2 * clients))}
        try:
            with running_server(str(folder), dtype, pace, environment) as server:
                result["load"].append(asdict(measured_load(server, clients, max(requests, clients))))
        except BenchError as error:
            fail(error)
    return result


def _conversion_s(source: str, dtype: str, settings: Settings) -> float | None:
    """How long converting an archive takes; None if the source is not an archive on this machine."""
    from convert.convert import ConversionConfig, convert
    from convert.download import MODELS, nemo_file

    if not source.endswith(".nemo") and not (source in MODELS and not MODELS[source].repo):
        return None
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        output = Path(folder) / "model"
        config = {"source": nemo_file(source), "output": output, "dtype": dtype, "quantize": settings.quantize}
        convert(ConversionConfig.model_validate(config), settings.cache)
        return time.monotonic() - began


def _blas() -> str:
    """The BLAS library that numpy uses."""
    import numpy as np

    built_with: Any = np.show_config(mode="dicts")
    return "{name} {version}".format_map(built_with["Build Dependencies"]["blas"])


def _numbers(text: str, option: str, kind: type) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,4,16", param_hint=option) from None
    if any(number <= 0 for number in numbers):
        raise typer.BadParameter(f"{text!r} contains a number that is not positive", param_hint=option)
    return numbers


def _check_plotting() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise typer.BadParameter("plotting needs matplotlib: pip install matplotlib", param_hint="--plot")
