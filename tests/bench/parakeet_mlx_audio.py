"""mlx-audio's side of the comparison: its Parakeet, with NeMo's weights under its names.

Its features are not quite NeMo's, so the number of tokens would be another: it is given NeMo's, computed by numpy in
the time measured. It encodes audios of one length together and decodes them in turn.
"""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_audio.stt.models.parakeet import Model
from mlx_weights import configuration_of, placed
from worker import Job, Run, Stages, checkpoint, configuration, featurizer, log_mel, work


def load(archive: Path) -> Run:
    weights = checkpoint(archive)
    constants = featurizer(weights)
    parakeet = Model.from_config(configuration_of(configuration(archive), weights))
    parakeet.load_weights(list(placed(weights).items()))
    parakeet.eval()
    mx.eval(parakeet.parameters())
    encoder = parakeet.encoder

    def run(job: Job, stages: Stages) -> list[list[int]]:
        with stages("features"):
            mels = [log_mel(waveform, constants)[:, : len(waveform) // 160].T for waveform in job.waveforms]
        with stages("encode"):
            groups = [mels] if len({mel.shape for mel in mels}) == 1 else [[mel] for mel in mels]
            encoded = [encoder(mx.array(np.stack(group))) for group in groups]
            mx.eval(encoded)
        with stages("decode"):
            written = []
            for each in encoded:
                parakeet.encoder = lambda _, each=each: each
                written += parakeet.decode(each[0])
            parakeet.encoder = encoder
        return [[token.id for sentence in result.sentences for token in sentence.tokens] for result in written]

    return run


if __name__ == "__main__":
    work(load)
