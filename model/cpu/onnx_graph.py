"""Graphs in ONNX's file format, as far as the products of linear layers need it.

It is protobuf. The package `onnx` writes it too, but takes 31 MB and a fifth of a second of every start.
Source: onnx/onnx.proto of ONNX, whose field numbers these are.
"""

from collections.abc import Mapping

import numpy as np

_IR_VERSION, _OPSET = 8, 18
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}
_FLOAT, _EXTERNAL, _INT_ATTRIBUTE = _TYPES["float32"], 1, 2


def node(operator: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    """One operation."""
    named = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, operator)
    return named + b"".join(
        _field(5, _field(1, name) + _field(3, value) + _field(20, _INT_ATTRIBUTE)) for name, value in attributes.items()
    )


def graph(nodes: list[bytes], weights: Mapping[str, np.ndarray], constants: Mapping[str, np.ndarray]) -> bytes:
    """A model with one input and one output, "rows" (R, I) and "product" (R, O), both float32.

    weights: what the session is given beside the graph; constants: what is written into it.
    """
    content = b"".join(_field(1, each) for each in nodes) + _field(2, "linear")
    elsewhere = _field(13, _field(1, "location") + _field(2, "memory")) + _field(14, _EXTERNAL)
    content += b"".join(_field(5, _tensor(name, value) + elsewhere) for name, value in weights.items())
    content += b"".join(
        _field(5, _tensor(name, value) + _field(9, value.tobytes())) for name, value in constants.items()
    )
    content += _field(11, _matrix("rows", "I")) + _field(12, _matrix("product", "O"))
    return _field(1, _IR_VERSION) + _field(8, _field(1, "") + _field(2, _OPSET)) + _field(7, content)


def _tensor(name: str, value: np.ndarray) -> bytes:
    dimensions = b"".join(_field(1, size) for size in value.shape)
    return dimensions + _field(2, _TYPES[value.dtype.name]) + _field(8, name)


def _matrix(name: str, columns: str) -> bytes:
    """An input or output of any size."""
    shape = _field(1, _field(2, "R")) + _field(1, _field(2, columns))
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a message in protobuf's encoding."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + _varint(value >> 7)
