"""Trains tests/toy/models/aligner.nemo: the toy's encoder with a CTC head, like the aligner of canary-1b-v2.

    pip install -r tests/toy/requirements.txt        # and the program espeak-ng
    python -m tests.toy.train_aligner convert/toy/toy.nemo tests/toy/models/aligner.nemo

CTC alone places a piece anywhere in its word and usually at a single frame, which would lose the word's end. Each frame
therefore also learns its piece: the word's time is known, and its pieces divide it evenly.
"""

import random
from pathlib import Path

import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf

from .alignment import Placed, placed_pieces
from .examples import Utterance
from .fine_tuning import ctc_loss, restored, train_variant
from .grammar import LANGUAGES
from .network import make_pieces
from .speech import bare
from .train import sounds

PIECES = 512  # for all four languages together; most words are one or two
STEPS, RATE = 600, 2e-3


def new_aligner(toy: Path, folder: Path) -> tuple[EncDecCTCModelBPE, "FrameLoss"]:
    """NeMo's CTC model with the toy's preprocessor and encoder, and a new head and tokenizer; and its loss."""
    make_pieces(folder / "pieces", LANGUAGES, PIECES)
    parent = restored(toy)
    config = {
        "sample_rate": parent.cfg.sample_rate,
        "log_prediction": False,
        "ctc_reduction": "mean_volume",
        "tokenizer": {"dir": str(folder / "pieces"), "type": "bpe"},
        "preprocessor": parent.cfg.preprocessor,
        "spec_augment": parent.cfg.spec_augment,
        "encoder": parent.cfg.encoder,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": parent.cfg.encoder.d_model,
            "num_classes": -1,
            "vocabulary": [],
        },
    }
    aligner = EncDecCTCModelBPE(cfg=OmegaConf.create(config))
    aligner.cfg.tokenizer.dir = "pieces"  # instead of its path on the training machine
    aligner.encoder.load_state_dict(parent.encoder.state_dict())
    aligner.encoder.pre_encode.requires_grad_(False)  # it takes half of a step, and the speech is the same as before
    return aligner, FrameLoss(aligner)


class FrameLoss:
    """The loss of a batch, whose texts lack punctuation and capitals in three of ten cases."""

    def __init__(self, aligner: EncDecCTCModelBPE):
        self.aligner, self.rng = aligner, random.Random(0)
        self.blank = aligner.decoder.num_classes_with_blank - 1

    def __call__(self, batch: list[Utterance]) -> torch.Tensor:
        log_probs, lengths, _ = self.aligner.forward(**sounds(batch))
        placed = [self._placed(item, int(length)) for item, length in zip(batch, lengths, strict=True)]
        return ctc_loss(log_probs, lengths, placed, self.blank)

    def _placed(self, item: Utterance, frames: int) -> list[Placed]:
        pnc = self.rng.random() < 0.7
        words = [(word if pnc else bare(word), start, end) for word, start, end in item.spoken]
        return placed_pieces(words, frames, self.aligner.tokenizer)


if __name__ == "__main__":
    train_variant(__doc__, new_aligner, STEPS, RATE)
