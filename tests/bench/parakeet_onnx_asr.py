"""onnx-asr's side of the comparison: NeMo's own export by `export_onnx_parakeet.py`, in float32 or 8 bits."""

import os
from pathlib import Path

import onnx_asr
import onnxruntime
from worker import Job, Run, Stages, work


def load(folder: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    options.inter_op_num_threads = 1
    loaded = onnx_asr.load_model("nemo-conformer-tdt", folder, sess_options=options, providers=["CPUExecutionProvider"])
    asr = loaded.asr

    def run(job: Job, stages: Stages) -> list[list[int]]:
        audio, lengths = job.padded()
        with stages("features"):
            mel, frames = asr._preprocessor(audio, lengths)
        with stages("encode"):
            states, steps = asr._encode(mel, frames)
        with stages("decode"):
            written = list(asr._decoding(states, steps))
        return [[int(token) for token in tokens] for tokens, *_ in written]

    return run


if __name__ == "__main__":
    work(load)
