"""Graphs in ONNX's file format, as far as products and a few functions need it.

It is protobuf. The package `onnx` writes it too, but takes 31 MB and a fifth of a second of every start.
Source: onnx/onnx.proto of ONNX, whose field numbers these are.
"""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

_IR_VERSION, _OPSET = 8, 18
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}
_FLOAT, _EXTERNAL = _TYPES["float32"], 1
_FLOAT_ATTRIBUTE, _INT_ATTRIBUTE, _INTS_ATTRIBUTE = 1, 2, 7
# onnxruntime's own operators.
_EXTENSIONS = "com.microsoft"


def node(
    operator: str, inputs: Sequence[str], *outputs: str, extension: bool = False, **attributes: float | list[int]
) -> bytes:
    """One operation. An input without a name is left out. extension: it is one of onnxruntime's own."""
    content = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in outputs)
    content += _field(4, operator)
    content += b"".join(_field(5, _attribute(name, value)) for name, value in attributes.items())
    return content + (_field(7, _EXTENSIONS) if extension else b"")


def graph(
    nodes: Sequence[bytes],
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    weights: Mapping[str, np.ndarray] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """A model whose inputs and outputs, given with their numbers of axes, are float32 of any size.

    weights: what the session is given beside the graph; constants: what is written into it.
    """
    content = b"".join(_field(1, each) for each in nodes) + _field(2, "graph")
    elsewhere = _field(13, _field(1, "location") + _field(2, "memory")) + _field(14, _EXTERNAL)
    for name, value in (weights or {}).items():
        content += _field(5, _tensor(name, value) + elsewhere)
    for name, value in (constants or {}).items():
        content += _field(5, _tensor(name, value) + _field(9, value.tobytes()))
    content += b"".join(_field(11, _array(*each)) for each in inputs.items())
    content += b"".join(_field(12, _array(*each)) for each in outputs.items())
    operators = _field(8, _field(1, "") + _field(2, _OPSET)) + _field(8, _field(1, _EXTENSIONS) + _field(2, 1))
    return _field(1, _IR_VERSION) + operators + _field(7, content)


def _attribute(name: str, value: float | list[int]) -> bytes:
    if isinstance(value, list):
        return _field(1, name) + b"".join(_field(8, each) for each in value) + _field(20, _INTS_ATTRIBUTE)
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, _INT_ATTRIBUTE)
    return _field(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _field(20, _FLOAT_ATTRIBUTE)


def _tensor(name: str, value: np.ndarray) -> bytes:
    dimensions = b"".join(_field(1, size) for size in value.shape)
    return dimensions + _field(2, _TYPES[value.dtype.name]) + _field(8, name)


def _array(name: str, axes: int) -> bytes:
    """An input or output. Each of its axes has a size of its own."""
    shape = b"".join(_field(1, _field(2, f"{name} {axis}")) for axis in range(axes))
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a message in protobuf's encoding."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value >> 7)
