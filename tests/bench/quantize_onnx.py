"""What an `export_onnx_*.py` wrote, its products and LSTMs in 8 bits: run in onnxruntime's environment.

    python tests/bench/quantize_onnx.py FOLDER OUT

Dynamic quantization: weights by channel, activations as they come. Convolutions stay as they are, which is faster.
"""

import shutil
import sys
from pathlib import Path

import onnx
from onnxruntime.quantization import quantize_dynamic


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix in (".npz", ".txt", ".json"):
            shutil.copy(file, out)
    for file in folder.glob("*.onnx"):
        model = untied(onnx.load(file))
        quantize_dynamic(model, out / file.name, op_types_to_quantize=["MatMul", "Gemm", "LSTM"], per_channel=True)


def untied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, the head having a copy of the embedding: as one tensor they could not be packed apart."""
    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in looked_up]:
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = f"{tensor.name}_of_head"
        for node in model.graph.node:
            if node.op_type in ("MatMul", "Gemm"):
                node.input[:] = [copy.name if name == tensor.name else name for name in node.input]
    return model


if __name__ == "__main__":
    main()
