"""This project's side of the comparison: the model, as the server's engine drives it."""

from pathlib import Path

import numpy as np
from worker import NEVER, Job, Run, Stages, work

from convert.hub import resolve
from model.arrays import on_cpu
from model.canary.model import CanaryModel
from model.canary.rows import Utterance
from model.loading import load as load_model
from server.cli.bench.stages import EndlessBatch


def load(archive: Path) -> Run:
    dtype = "float32" if on_cpu() else "bfloat16"
    canary = load_model(resolve(archive, dtype=dtype), dtype)
    assert isinstance(canary, CanaryModel)
    own_bias = canary.head.bias

    def run(job: Job, stages: Stages) -> list[list[int]]:
        banned = np.zeros(own_bias.shape, np.float32)
        banned[job.banned] = NEVER
        canary.head.bias = own_bias + canary.xp.asarray(banned)
        encoded = canary.encodings(job.waveforms)
        # On a CPU rows are encoded in turn, on a GPU together.
        turns = range(len(encoded)) if on_cpu() else range(1)
        stages.seconds["features"] = sum(encoded[i].features_s for i in turns)
        stages.seconds["encode"] = sum(encoded[i].encode_s for i in turns)
        with stages("decode"):
            batch = EndlessBatch(canary)
            asked = zip(encoded, job.tokens, strict=True)
            done = batch.join([Utterance(i, e.vectors, job.prompt, tokens) for i, (e, tokens) in enumerate(asked)])
            while batch.rows:
                done += batch.step()
        return [generated.tokens for generated in sorted(done, key=lambda generated: generated.key)]

    return run


if __name__ == "__main__":
    work(load)
