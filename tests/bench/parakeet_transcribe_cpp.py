"""transcribe.cpp's side of the comparison: what `export_gguf_parakeet.py` writes, run by its Python package."""

import os
import time
from pathlib import Path

from transcribe_cpp import Model, set_log_callback
from worker import Job, Run, Stages, work


def load(weights: Path) -> Run:
    set_log_callback(None)
    model = Model(weights, backend="cpu")

    def run(job: Job, stages: Stages) -> list[list[int]]:
        with model.session(n_threads=int(os.environ["OMP_NUM_THREADS"])) as session:
            began = time.monotonic()
            written = session.run_batch(job.waveforms, timestamps="token", keep_special_tags=True)
            seconds = time.monotonic() - began
        stages.seconds["features"] = sum(each.timings.mel_ms for each in written) / 1000
        stages.seconds["encode"] = sum(each.timings.encode_ms for each in written) / 1000
        stages.seconds["decode"] = seconds - stages.seconds["features"] - stages.seconds["encode"]
        return [[token.id for token in each.tokens] for each in written]

    return run


if __name__ == "__main__":
    work(load)
