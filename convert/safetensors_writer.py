"""A safetensors file written tensor by tensor, so that a model is never in memory as a whole.

The format: 8 bytes of header length, a JSON header of names, types, shapes and positions, then the tensors' bytes.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2), "uint32": ("U32", 4)}


def write_safetensors(
    path: Path, layout: list[tuple[str, str, tuple[int, ...]]], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """layout: (name, dtype, shape) of each tensor; tensors: (name, array), the same ones in the same order."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, dtype, shape in layout:
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
        for (name, dtype, shape), (written, tensor) in zip(layout, tensors, strict=True):
            assert (name, dtype, shape) == (written, tensor.dtype.name, tensor.shape)
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
