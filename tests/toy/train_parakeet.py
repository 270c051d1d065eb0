"""Trains convert/toy/toy-parakeet.nemo: the toy's encoder with a TDT and a CTC head, like parakeet-tdt_ctc-110m.

    pip install -r tests/toy/requirements.txt        # and the program espeak-ng
    python -m tests.toy.train_parakeet convert/toy/toy.nemo convert/toy/toy-parakeet.nemo

The frames of all pieces are known (alignment.py). So both heads learn from frames, by cross-entropy, without the sums
over all alignments that the losses of CTC and TDT need. For TDT these are the states near the right path, each with its
best label and duration; word times are then right by construction. The CTC loss is added, because frames alone do not
forbid a piece to be written twice.

The subsampling is not trained: it takes half of a step, and the speech is the same as the toy's. In half of the
examples the prediction network first reads other sentences, as it does in live captions, which never reset it.
"""

import random
from pathlib import Path

import torch
from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel
from omegaconf import OmegaConf

from .alignment import Placed, placed_pieces, transducer_targets
from .examples import Utterance
from .fine_tuning import ctc_loss, restored, train_variant
from .grammar import LANGUAGES, sentence
from .network import make_pieces
from .speech import WordTime
from .train import sounds

PIECES, LONGEST_PIECE = 512, 4  # for all languages; pieces so short seldom last longer than the longest duration
DURATIONS = [0, 1, 2, 3, 4]
PREDICTION, LAYERS, JOINT = 80, 2, 96
STEPS, RATE = 900, 2e-3
CONTEXT_SENTENCES = 8
NEMO = "nemo.collections.asr.modules."


def new_parakeet(toy: Path, folder: Path) -> tuple[EncDecHybridRNNTCTCBPEModel, "HeadsLoss"]:
    """NeMo's hybrid model with the toy's preprocessor and encoder, and new heads and tokenizer; and its loss."""
    make_pieces(folder / "pieces", LANGUAGES, PIECES, LONGEST_PIECE)
    parent = restored(toy)
    head = {"_target_": f"{NEMO}ConvASRDecoder", "feat_in": None, "num_classes": -1, "vocabulary": []}
    config = {
        "sample_rate": parent.cfg.sample_rate,
        "log_prediction": False,
        "compute_eval_loss": False,
        "skip_nan_grad": False,
        "tokenizer": {"dir": str(folder / "pieces"), "type": "bpe"},
        "model_defaults": {
            "enc_hidden": parent.cfg.encoder.d_model,
            "pred_hidden": PREDICTION,
            "joint_hidden": JOINT,
            "tdt_durations": DURATIONS,
            "num_tdt_durations": len(DURATIONS),
        },
        "preprocessor": parent.cfg.preprocessor,
        "spec_augment": parent.cfg.spec_augment,
        "encoder": parent.cfg.encoder,
        "decoder": {
            "_target_": f"{NEMO}RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": PREDICTION, "pred_rnn_layers": LAYERS, "t_max": None, "dropout": 0.1},
        },
        "joint": {
            "_target_": f"{NEMO}RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": JOINT, "activation": "relu", "dropout": 0.1},
            "num_extra_outputs": len(DURATIONS),
        },
        "decoding": {
            "strategy": "greedy_batch",
            "model_type": "tdt",
            "durations": DURATIONS,
            "greedy": {"max_symbols": 10},
            "beam": {"beam_size": 2, "return_best_hypothesis": False, "score_norm": True},
        },
        "interctc": {"loss_weights": [], "apply_at_layers": []},
        "loss": {
            "loss_name": "tdt",
            "tdt_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0, "durations": DURATIONS, "sigma": 0.02, "omega": 0.1},
        },
        "aux_ctc": {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": head,
            "decoding": {"strategy": "greedy"},
        },
    }
    parakeet = EncDecHybridRNNTCTCBPEModel(cfg=OmegaConf.create(config))
    parakeet.cfg.tokenizer.dir = "pieces"  # instead of its path on the training machine
    parakeet.encoder.load_state_dict(parent.encoder.state_dict())
    parakeet.encoder.pre_encode.requires_grad_(False)
    return parakeet, HeadsLoss(parakeet)


class HeadsLoss:
    """The sum of the heads' losses: TDT's labels and durations per state, CTC's frames and texts per frame."""

    def __init__(self, model: EncDecHybridRNNTCTCBPEModel):
        self.model, self.rng = model, random.Random(0)
        self.blank = model.joint.num_classes_with_blank - 1 - len(DURATIONS)

    def __call__(self, batch: list[Utterance]) -> torch.Tensor:
        said = [(item, words) for item in batch if (words := written(item)) is not None]
        encoded, lengths = self.model.forward(**sounds([item for item, _ in said]))
        placed = [
            placed_pieces(words, int(length), self.model.tokenizer)
            for (_, words), length in zip(said, lengths, strict=True)
        ]
        log_probs = self.model.ctc_decoder(encoder_output=encoded)
        of_transducer = self._transducer(encoded.transpose(1, 2), lengths, placed)
        return of_transducer + ctc_loss(log_probs, lengths, placed, self.blank)

    def _transducer(self, encoded: torch.Tensor, lengths: torch.Tensor, placed: list[list[Placed]]) -> torch.Tensor:
        before = [self._context() for _ in placed]
        read = [context + [p.piece for p in pieces] for context, pieces in zip(before, placed, strict=True)]
        ids = torch.full((len(read), max(map(len, read))), self.blank)
        for row, sequence in enumerate(read):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        predicted, _ = self.model.decoder.predict(ids, add_sos=True)
        states = [
            (row, target.frame, len(before[row]) + target.emitted, target.label, target.duration)
            for row, pieces in enumerate(placed)
            for target in transducer_targets(pieces, int(lengths[row]), self.blank, DURATIONS[-1])
        ]
        rows, frames, emitted, labels, durations = torch.tensor(states).T
        joint = self.model.joint
        hidden = joint.enc(encoded)[rows, frames] + joint.pred(predicted)[rows, emitted]
        logits = joint.joint_net(hidden)
        of_labels = torch.nn.functional.cross_entropy(logits[:, : self.blank + 1], labels)
        return of_labels + torch.nn.functional.cross_entropy(logits[:, self.blank + 1 :], durations)

    def _context(self) -> list[int]:
        """The pieces of sentences said before, in any language; in half of the cases none."""
        if self.rng.random() < 0.5:
            return []
        said = [sentence(self.rng, "train") for _ in range(self.rng.randint(1, CONTEXT_SENTENCES))]
        language = self.rng.choice(LANGUAGES)
        return [i for each in said for word in each.words(language) for i in self.model.tokenizer.text_to_ids(word)]


def written(item: Utterance) -> list[WordTime] | None:
    """The words with punctuation and capitals, and with their times. None if the example has no such text."""
    if not item.spoken:
        return []
    for answer in item.answers:
        if answer.source == answer.target and answer.pnc:
            return [(word, start, end) for word, (_, start, end) in zip(answer.words, item.spoken, strict=True)]
    return None


if __name__ == "__main__":
    train_variant(__doc__, new_parakeet, STEPS, RATE)
