"""Trains tests/toy/models/aligner.nemo: the toy's encoder with a CTC head, like the aligner of canary-1b-v2.

    pip install -r tests/toy/requirements.txt        # and the program espeak-ng
    python -m tests.toy.train_aligner convert/toy/toy.nemo tests/toy/models/aligner.nemo

CTC alone places a piece anywhere in its word and usually at a single frame, which would lose the word's end. Each frame
therefore also learns its piece: the word's time is known, and its pieces divide it evenly.
"""

import random
from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf

from .examples import FRAME_S, Utterance
from .fine_tuning import restored, train_variant
from .grammar import LANGUAGES
from .network import make_pieces
from .speech import bare
from .train import sounds

PIECES = 512  # for all four languages together; most words are one or two
STEPS, RATE = 600, 2e-3
MARKS = (".", "?")


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
    """The sum of the frame-wise loss and the CTC loss, per frame."""

    def __init__(self, aligner: EncDecCTCModelBPE):
        self.aligner, self.rng = aligner, random.Random(0)
        self.blank = aligner.decoder.num_classes_with_blank - 1

    def __call__(self, batch: list[Utterance]) -> torch.Tensor:
        log_probs, lengths, _ = self.aligner.forward(**sounds(batch))
        texts, labels = [], torch.full(log_probs.shape[:2], self.blank)
        for row, item in enumerate(batch):
            text, spans = self._pieces(item, int(lengths[row]))
            texts.append(torch.tensor(text, dtype=torch.long))
            for piece, first, stop in spans:
                labels[row, first:stop] = piece
        valid = torch.arange(log_probs.shape[1])[None] < lengths[:, None]
        by_frame = torch.nn.functional.nll_loss(log_probs[valid], labels[valid], reduction="sum")
        ctc = torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            torch.cat(texts),
            lengths,
            torch.tensor([len(text) for text in texts]),
            self.blank,
            reduction="sum",
            zero_infinity=True,  # for texts with more pieces than frames
        )
        return (by_frame + ctc) / lengths.sum()

    def _pieces(self, item: Utterance, frames: int) -> tuple[list[int], list[tuple[int, int, int]]]:
        """The text's pieces, and (piece, first frame, one past the last) of each, both equal if it has no frame."""
        pnc = self.rng.random() < 0.7
        tokenizer, text, spans = self.aligner.tokenizer, [], []
        for i, (word, start, end) in enumerate(item.spoken):
            pieces = tokenizer.text_to_ids(word if pnc else bare(word))
            text += pieces
            first, stop = round(start / FRAME_S), max(round(end / FRAME_S), round(start / FRAME_S) + 1)
            # A mark has no sound; it gets the frame after the word.
            if tokenizer.ids_to_tokens(pieces[-1:])[0] in MARKS:
                after = round(item.spoken[i + 1][1] / FRAME_S) if i + 1 < len(item.spoken) else frames
                spans.append((pieces.pop(), stop, min(stop + 1, after)))
            edges = np.linspace(first, stop, len(pieces) + 1).round().astype(int)
            spans += zip(pieces, edges[:-1], edges[1:], strict=True)
        return text, spans


if __name__ == "__main__":
    train_variant(__doc__, new_aligner, STEPS, RATE)
