"""An archive with random weights in a published model's shape, built by NeMo: run in its environment.

    python -m tests.bench.build_archive parakeet-tdt_ctc-110m OUT.nemo

How much is written must not hang on random weights, which 8 bits or another order of additions would change. A Canary
never ends its text here: the comparison says how many tokens to write. A Parakeet never chooses the blank and always a
duration of three steps, 0.24 s: it writes 4.2 tokens a second, on every side. Which tokens, the weights decide.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from nemo.utils import logging

from tests.bench.worker import NEVER
from tests.parity import build_archives, build_parakeet
from tests.parity.building import replace_weights

CANARIES = {
    "canary-180m-flash": build_archives.Shape(
        # With the special tokens, 5248 rows in the head.
        vocab=1301,
        encoder_layers=17,
        d_model=512,
        encoder_heads=8,
        conv_channels=256,
        decoder_layers=4,
        hidden=1024,
        decoder_heads=8,
        max_sequence_length=1024,
        gzipped=False,
    ),
}
PARAKEETS = {
    "parakeet-tdt_ctc-110m": build_parakeet.ParakeetShape(
        kind="tdt_ctc",
        features=80,
        vocab=1024,
        encoder_layers=17,
        d_model=512,
        encoder_heads=8,
        conv_channels=256,
        lstm_layers=1,
        pred_hidden=640,
        joint_hidden=640,
        gzipped=False,
    ),
    "parakeet-tdt-0.6b-v3": build_parakeet.ParakeetShape(
        kind="tdt",
        vocab=8192,
        encoder_layers=24,
        d_model=1024,
        encoder_heads=8,
        conv_channels=256,
        use_bias=False,
        lstm_layers=2,
        pred_hidden=640,
        joint_hidden=640,
        special=True,
        gzipped=False,
    ),
}

STEPS_PER_TOKEN = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=[*CANARIES, *PARAKEETS])
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    logging.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as workdir:
        if given.shape in CANARIES:
            build_archives.build(CANARIES[given.shape], given.out, Path(workdir))
        else:
            build(PARAKEETS[given.shape], given.out, Path(workdir))


def build(shape: build_parakeet.ParakeetShape, path: Path, workdir: Path) -> None:
    model = build_parakeet.build(shape, path, workdir)
    with torch.no_grad():
        # Of all tokens, then the blank, then the durations.
        bias = model.joint.joint_net[-1].bias
        durations = bias[-len(shape.durations) :]
        bias[-len(shape.durations) - 1] = NEVER
        durations[torch.tensor(shape.durations) != STEPS_PER_TOKEN] = NEVER
    replace_weights(path, model, shape.gzipped)


if __name__ == "__main__":
    main()
