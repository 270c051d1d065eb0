"""Checks of the machine and of what is installed. Nothing of a model is computed here."""

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import distributions, version

from server.cli.doctor.report import Check, Finding, failed, ok, warning
from server.settings import Settings

GB = 1e9
# MLX's libraries. The last one installed overwrites the others.
BACK_ENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")


def checks(settings: Settings) -> list[Check]:
    """In the order of the screen."""
    return [
        ("python", python),
        ("system", system),
        ("mlx", mlx),
        ("device", device),
        ("numpy", numpy),
        ("8 bits", lambda: eight_bits(settings.quantize)),
    ]


def python() -> Finding:
    """Its version; on a Mac also that it is no Intel Python under Rosetta, for which there is no MLX."""
    told = f"{platform.python_version()}, {platform.machine()}"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return failed(told, "MLX needs Apple silicon and a Python built for arm64, not one under Rosetta")
    return ok(told)


def system() -> Finding:
    """The operating system's version, processor cores and memory."""
    cores = os.cpu_count()
    memory = physical_memory()
    size = f", {memory / GB:.0f} GB of memory" if memory else ""
    if sys.platform == "darwin":
        release = platform.mac_ver()[0]
        told = f"macOS {release}, {cores} cores{size}"
        if int(release.partition(".")[0] or 0) < 14:
            return failed(told, "MLX needs macOS 14 or later")
    else:
        libc = " ".join(platform.libc_ver())
        told = f"{platform.system()} {platform.release()}{f', {libc}' if libc else ''}, {cores} cores{size}"
    return ok(told, cores=cores, memory_bytes=memory)


def physical_memory() -> int | None:
    """Bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def mlx() -> Finding:
    """The installed version and back ends. Raises ConfigError, which says how to install it, if there is none."""
    present = {str(each.metadata["Name"]).lower() for each in distributions() if each.metadata["Name"]}
    back_ends = [name for name in BACK_ENDS if name in present]
    if len(back_ends) > 1:
        named = ", ".join(back_ends)
        return failed(f"{named} overwrite each other's files", f"uninstall mlx, {named}, and install one of them again")
    import_module("model.arrays")
    return ok(f"{version('mlx')} ({', '.join(back_ends) or 'no back end'})", back_ends=back_ends)


def device() -> Finding:
    """What models are computed on, with which arrays, and the memory that it offers."""
    import mlx.core as mx

    from model import memory
    from model.arrays import default_dtype, library_for, on_cpu
    from model.loading import device_name

    info = mx.device_info()
    dtype = default_dtype()
    arrays = library_for(dtype).__name__.rpartition(".")[2]
    told = f"{device_name()}, {arrays} arrays, {dtype} by default"
    room, _ = memory.available() or (None, "")
    if room:
        told += f", {room / GB:.1f} GB for models"
    figures = {name: value for name, value in info.items() if name != "device_name"}
    figures |= {"name": device_name(), "arrays": arrays, "dtype": dtype, "usable_bytes": room}
    if sys.platform == "darwin" and on_cpu():
        return failed(told, "MLX finds no Metal GPU: virtual machines and sandboxes have none", **figures)
    return ok(told, **figures)


def numpy() -> Finding:
    """numpy's version and its BLAS, on which speed depends on a CPU."""
    import numpy as np

    built: dict[str, dict[str, dict[str, str]]] = np.show_config(mode="dicts")  # pyright: ignore
    blas = built.get("Build Dependencies", {}).get("blas", {})
    return ok(f"{np.__version__}, BLAS {blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip())


def eight_bits(quantize: int | None) -> Finding:
    """What computes models in 8 bits: MLX on a GPU, onnxruntime on x86-64 CPUs that have the instructions."""
    from model.arrays import on_cpu
    from model.cpu import int8

    if not on_cpu():
        return ok("computed by MLX")
    if int8.is_fast():
        return ok(f"computed by onnxruntime {version('onnxruntime')}")
    told = "no faster or smaller than float32"
    return warning(told, int8.SLOW) if quantize == 8 else ok(f"{told}: {int8.SLOW}")
