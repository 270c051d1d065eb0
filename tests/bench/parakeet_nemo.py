"""NeMo's side of the comparison: its own classes and its own greedy search in batches, by label looping."""

from pathlib import Path

import torch
from nemo.collections.asr.models import ASRModel
from nemo.utils import logging
from worker import Job, Run, Stages, work


def load(archive: Path) -> Run:
    logging.setLevel(logging.ERROR)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ASRModel.restore_from(str(archive), map_location=device).eval()

    def run(job: Job, stages: Stages) -> list[list[int]]:
        audio, lengths = (torch.from_numpy(each).to(device) for each in job.padded())
        with torch.inference_mode():
            with stages("features"):
                mel, frames = model.preprocessor(input_signal=audio, length=lengths)
                _wait()
            with stages("encode"):
                states, steps = model.encoder(audio_signal=mel, length=frames)
                _wait()
            with stages("decode"):
                written = model.decoding.rnnt_decoder_predictions_tensor(states, steps, return_hypotheses=True)
        return [[int(token) for token in each.y_sequence] for each in written]

    return run


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    work(load)
