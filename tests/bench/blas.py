"""A fast BLAS for peers on MLX, whose wheels for Linux are linked with a slow one.

    python tests/bench/blas.py mkl|openblas SCRIPT ARGUMENT…

Symbols in the process's global scope win over a library's own, so the BLAS is loaded before the script imports MLX.
"""

import ctypes
import importlib.util
import runpy
import sys
from pathlib import Path

OPENBLAS = "libopenblas.so.0"


def use(name: str) -> None:
    """Put `name` in the place of MLX's own BLAS: "mkl" from torch's x86-64 wheel, or the system's "openblas".

    On macOS MLX has Accelerate, which stays. Exits with a message if the library is not there, or not the one in use.
    """
    if sys.platform == "darwin":
        return
    try:
        for library in {"mkl": _mkl, "openblas": lambda: [OPENBLAS]}[name]():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise SystemExit(f"BLAS {name!r} cannot be loaded: {error}; on Debian: apt install libopenblas0") from None
    used = provider("sgemm_")
    if {"mkl": "torch", "openblas": "openblas"}[name] not in used:
        raise SystemExit(f"BLAS {name!r} was asked for, but sgemm_ comes from {used or 'no library'}")


def provider(symbol: str) -> str:
    """The file of the library whose function `symbol` everything in this process calls; empty if there is none."""
    process, found = ctypes.CDLL(None), _Found()
    try:
        address = ctypes.cast(getattr(process, symbol), ctypes.c_void_p)
    except AttributeError:
        return ""
    process.dladdr(address, ctypes.byref(found))
    return found.file.decode()


class _Found(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _mkl() -> list[Path]:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("BLAS 'mkl' is torch's, which is not installed: pip install torch==2.13.0")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    patterns = ("libgomp*.so*", "libc10.so", "libtorch_cpu.so")
    return [library for pattern in patterns for library in sorted(folder.glob(pattern))]


def main() -> None:
    use(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
