"""This project's side of the comparison: the model, as the server's engine drives it."""

from pathlib import Path

from worker import Job, Run, Stages, work

from convert.hub import resolve
from model.arrays import on_cpu
from model.decoding import DecodingOptions
from model.loading import load as load_model
from model.parakeet.model import ParakeetModel
from model.task import AUTO, Task


def load(archive: Path) -> Run:
    dtype = "float32" if on_cpu() else "bfloat16"
    parakeet = load_model(resolve(archive, dtype=dtype), dtype)
    assert isinstance(parakeet, ParakeetModel)

    def run(job: Job, stages: Stages) -> list[list[int]]:
        encoded = parakeet.encodings(job.waveforms)
        # On a CPU rows are encoded in turn, on a GPU together.
        turns = range(len(encoded)) if on_cpu() else range(1)
        stages.seconds["features"] = sum(encoded[i].features_s for i in turns)
        stages.seconds["encode"] = sum(encoded[i].encode_s for i in turns)
        with stages("decode"):
            asked = [parakeet.utterance(i, e, Task(AUTO), DecodingOptions()) for i, e in enumerate(encoded)]
            written = parakeet.generate(asked)
        return [text.tokens for text in written]

    return run


if __name__ == "__main__":
    work(load)
