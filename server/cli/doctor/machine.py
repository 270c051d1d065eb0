"""Checks of the machine and of what is installed. Nothing of a model is computed here."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec

from server.cli.doctor.report import Check, Finding, failed, ok, warning
from server.settings import Settings

GB = 1e9
# MLX's libraries. The last one installed overwrites the others.
BACK_ENDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
X86 = ("x86_64", "AMD64")


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
    """The installed version and back ends."""
    try:
        installed = version("mlx")
    except PackageNotFoundError:
        return failed("not installed", _installing())
    present = {str(each.metadata["Name"]).lower() for each in distributions() if each.metadata["Name"]}
    back_ends = [name for name in BACK_ENDS if name in present]
    told = f"{installed} ({', '.join(back_ends) or 'no back end'})"
    if len(back_ends) > 1:
        return failed(told, f"these bring the same library: uninstall all of {', '.join(back_ends)}, then install one")
    try:
        import mlx.core
    except ImportError as error:
        return failed(f"{told}: {error}", _installing())
    return ok(told, version=installed, back_ends=back_ends, loaded=mlx.core.__name__)


def _installing() -> str:
    extra = "" if sys.platform == "darwin" else "[cpu]"
    others = "" if sys.platform == "darwin" else ", or with [cuda12] or [cuda13] for a GPU"
    return f"install canary-server{extra}{others}"


def device() -> Finding:
    """What models are computed on, with which arrays, and the memory that it offers."""
    import mlx.core as mx

    from model.arrays import default_dtype, library_for, on_cpu
    from model.loading import device_name

    info = mx.device_info()
    dtype = default_dtype()
    arrays = library_for(dtype).__name__.rpartition(".")[2]
    told = f"{device_name()}, {arrays} arrays, {dtype} by default"
    if memory := device_memory():
        told += f", {memory / GB:.1f} GB to use"
    figures = {name: value for name, value in info.items() if name != "device_name"}
    figures |= {"name": device_name(), "arrays": arrays, "dtype": dtype, "usable_bytes": memory}
    if sys.platform == "darwin" and on_cpu():
        return failed(told, "MLX finds no Metal GPU: virtual machines and sandboxes have none", **figures)
    return ok(told, **figures)


def device_memory() -> int | None:
    """Bytes that a model may take: a GPU's recommended working set or memory, else the machine's."""
    import mlx.core as mx

    info = mx.device_info()
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if size := info.get(name):
            return int(size)
    return physical_memory()


def numpy() -> Finding:
    """numpy's version and its BLAS, on which speed depends on a CPU."""
    import numpy as np

    built: dict[str, dict[str, dict[str, str]]] = np.show_config(mode="dicts")  # pyright: ignore
    blas = built.get("Build Dependencies", {}).get("blas", {})
    return ok(f"{np.__version__}, BLAS {blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip())


def eight_bits(quantize: int | None) -> Finding:
    """torch, which computes 8-bit products on an x86-64 CPU. Elsewhere MLX does."""
    from model.arrays import on_cpu

    if not on_cpu() or platform.machine() not in X86:
        return ok("computed by MLX" if not on_cpu() else "unpacked to float32 on this CPU")
    if find_spec("torch"):
        return ok(f"computed by torch {version('torch')}")
    told = "torch is not installed: 8-bit models need the memory and time of float32"
    advice = "pip install 'canary-server[int8]', if you use --quantize 8"
    return warning(told, advice) if quantize == 8 else ok(f"{told} (canary-server[int8] brings it)")
