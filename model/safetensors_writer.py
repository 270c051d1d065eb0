"""Write a safetensors file one tensor at a time, so that a whole model is never in memory.

The format: 8 bytes of header length, a JSON header with names, types, shapes and offsets, then the tensors' bytes.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {
    "float32": ("F32", 4),
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "uint32": ("U32", 4),
    "int8": ("I8", 1),
}


def write_safetensors(
    path: Path,
    specs: list[tuple[str, str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: dict[str, str] = {"format": "mlx"},  # noqa: B006
) -> None:
    """Write `tensors`, pairs of (name, array), which must match `specs`, (name, dtype, shape), in order."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, shape in specs:
        code, size = TYPES[dtype]
        start = end
        for length in shape:
            size *= length
        end += size
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec, (name, tensor) in zip(specs, tensors, strict=True):
            assert spec == (name, tensor.dtype.name, tensor.shape)
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
