"""An archive with random weights in a published model's shape, built by NeMo: run in its environment.

    python -m tests.bench.build_archive parakeet-tdt_ctc-110m OUT.nemo

A random Canary never ends a text: the comparison says how many tokens to write. A random Parakeet would write none, or
one at every step: the bias of its blank is set so that it writes four a second. A duration of 0 is put out of reach: a
random model would choose it for blanks too, which trained ones do not, and some peers lose time there. The tokens so
far count for little: else one other token could silence all that comes after it, and numbers of tokens would differ.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from nemo.utils import logging

from tests.bench.speech import speech
from tests.bench.worker import NEVER
from tests.parity import build_archives, build_parakeet
from tests.parity.building import replace_weights
from tests.parity.make_parakeet_goldens import count

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

# What the tokens so far weigh in a Parakeet's joint network, of what they do in the small archives of tests/parity.
HISTORY = 0.1


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
        model.joint.joint_net[-1].bias[-len(shape.durations)] = NEVER
        model.joint.pred.weight *= HISTORY
    heard = [speech(35.0), speech(10.0, 1)]
    for head in build_parakeet.heads(model):
        build_parakeet.set_blank(model, head, shape, count, heard)
    replace_weights(path, model, shape.gzipped)


if __name__ == "__main__":
    main()
