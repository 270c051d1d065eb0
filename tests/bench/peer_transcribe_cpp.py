"""transcribe.cpp's side of the comparison: what `export_gguf_canary.py` writes, run by its Python package.

A decoder context that is full ends a text: its size is how it is told how many tokens to write. It keeps keys and
values in 16 bits, as it does by default; in 32 it writes what the others write. Of a Canary it returns only the text,
in which that export has each token write its id.
"""

import os
import re
import time
from pathlib import Path

from transcribe_cpp import Model, OutputTruncated, Result, TranscribeError, set_log_callback
from worker import Job, Run, Stages, work


def load(weights: Path) -> Run:
    # It warns of every text that it had no room to end.
    set_log_callback(None)
    model = Model(weights, backend="cpu")

    def run(job: Job, stages: Stages) -> list[list[int]]:
        context = len(job.prompt) + max(job.tokens)
        with model.session(n_threads=int(os.environ["OMP_NUM_THREADS"]), n_ctx=context) as session:
            began = time.monotonic()
            results = session.run_batch(job.waveforms, language="en", return_exceptions=True)
            seconds = time.monotonic() - began
        written = [transcript(result) for result in results]
        stages.seconds["features"] = sum(each.timings.mel_ms for each in written) / 1000
        stages.seconds["encode"] = sum(each.timings.encode_ms for each in written) / 1000
        stages.seconds["decode"] = seconds - stages.seconds["features"] - stages.seconds["encode"]
        return [tokens(each.raw_text) for each in written]

    return run


def transcript(result: Result | TranscribeError) -> Result:
    """What was written until the context was full."""
    if isinstance(result, OutputTruncated) and result.partial_result:
        return result.partial_result
    if isinstance(result, TranscribeError):
        raise result
    return result


def tokens(text: str) -> list[int]:
    """The ids in a text; -1 for the only token that is written as it is."""
    return [int(found.strip("[]")) if found[0] == "[" else -1 for found in re.findall(r"\[\d+\]|<.*?>", text)]


if __name__ == "__main__":
    work(load)
