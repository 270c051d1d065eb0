"""onnxruntime and its sessions, each on the calling thread."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def runtime() -> ModuleType:
    """onnxruntime. From 1.29 on it would tell its maker about every process and session; unless asked, it does not."""
    # Read when it is first imported. Its own function for this leaves the event and the files of its start.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def session(graph: bytes | Path, weights: Mapping[str, np.ndarray] | None = None, optimized: bool = False) -> Any:
    """An InferenceSession.

    graph: a file, or from `model.cpu.onnx_graph` with its weights, which are copied; optimized: let onnxruntime choose
    other operations and layouts for it. For a file it always does.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if isinstance(graph, bytes):
        # malloc keeps freed memory already.
        options.enable_cpu_mem_arena = False
        # A plan of memory for each number of rows would scatter it: after recordings of many lengths, gigabytes.
        options.enable_mem_pattern = False
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if weights:
        # They share the arrays' memory, which the session copies.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(each)) for each in weights.values()]
        options.add_external_initializers(list(weights), values)
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
