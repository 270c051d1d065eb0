"""A fast BLAS for MLX's CPU back end on Linux.

MLX's Linux wheels are linked with reference BLAS: some fifty times slower than a tuned one. Symbols that are already in
the process's global scope win over it, so a tuned library is loaded there before `mlx.core` is first imported. On macOS
MLX uses Accelerate and Metal, and there is nothing to do.
"""

import ctypes
import importlib.util
import os
import platform
import sys
from pathlib import Path

# torch is a dependency for conversion, and its x86-64 wheel carries MKL: the fastest seen for products with few rows.
_TORCH_LIBRARIES = ("libgomp*.so*", "libc10.so", "libtorch_cpu.so")
_SYSTEM_LIBRARIES = ("libmkl_rt.so.2", "libmkl_rt.so", "libopenblas.so.0", "libopenblas.so", "libblis.so.4")

_chosen: str | None = None


def load() -> str | None:
    """Put a fast BLAS in place; returns its name, or None where MLX is left with its own slow one."""
    global _chosen
    if sys.platform != "linux":
        _chosen = "Accelerate"
    elif _chosen is None and "mlx.core" not in sys.modules:
        # Its threads wait for work by keeping a core busy, which numpy's BLAS then lacks.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        _chosen = _from_torch() or _from_system()
    return _chosen


def status() -> str:
    """One line for the start-up log."""
    return f"BLAS: {_chosen}" if _chosen else "BLAS: reference (slow)"


def warning() -> str | None:
    """What to tell the user when there is no fast BLAS, else None."""
    if _chosen:
        return None
    return (
        "No fast BLAS was found: matrix products on the CPU run about fifty times slower than they could. "
        "Install one (Debian, Ubuntu: apt install libopenblas0; Fedora: dnf install openblas) and start again."
    )


def _from_torch() -> str | None:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    searched = (folder / "lib", folder.parent / "torch.libs")
    paths = [p for pattern in _TORCH_LIBRARIES for place in searched for p in sorted(place.glob(pattern))]
    try:
        loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]
    except OSError:
        return None
    if not loaded or not hasattr(loaded[-1], "sgemm_"):
        return None
    return f"torch's ({'MKL' if platform.machine() == 'x86_64' else 'OpenBLAS'})"


def _from_system() -> str | None:
    for name in _SYSTEM_LIBRARIES:
        try:
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(library, "sgemm_"):
            return name
    return None
