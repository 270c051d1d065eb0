"""A fast BLAS for peers on MLX, whose wheels for Linux are linked with a slow one: the MKL in torch's x86-64 wheel.

Symbols that are in the process's global scope win over a library's own, so importing this goes before importing MLX.
"""

import ctypes
import importlib.util
from pathlib import Path

spec = importlib.util.find_spec("torch")
assert spec
assert spec.submodule_search_locations
FOLDER = Path(spec.submodule_search_locations[0]) / "lib"
for pattern in ("libgomp*.so*", "libc10.so", "libtorch_cpu.so"):
    for library in sorted(FOLDER.glob(pattern)):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
