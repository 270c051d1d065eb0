"""Small Parakeet archives with random weights, built and saved by NeMo itself: every head, and what encoders differ in.

The blank's bias is set last, on the sounds that are measured, so that each head writes a few tokens a second. A model
with random weights alone would write none, or one at every frame.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel, EncDecRNNTBPEModel
from nemo.utils.app_state import AppState
from omegaconf import OmegaConf

from server.cli.doctor.sounds import LENGTHS, SAMPLE_RATE, sound
from tests.parity.building import (
    EncoderShape,
    augmentation_config,
    drop_normalisation_table,
    encoder_config,
    make_lively,
    preprocessor_config,
    sentences,
    train_tokenizer,
)


@dataclass(frozen=True)
class ParakeetShape(EncoderShape):
    """What published Parakeets differ in, in small."""

    kind: str = "tdt"  # or ctc, rnnt, tdt_ctc
    languages: tuple[str, ...] = ("en", "es")
    special: bool = False  # Canary's special tokens at the head of the vocabulary, as in parakeet-tdt-0.6b-v3
    vocab: int = 96
    local_context: int = 0  # encoder steps seen on each side; 0: all
    unified: bool = False
    lstm_layers: int = 2
    pred_hidden: int = 40
    joint_hidden: int = 44
    joint_dropout: bool = True
    durations: tuple[int, ...] = (0, 1, 2, 3, 4)
    max_symbols: int = 10
    tokens_per_s: float = 4.0


SHAPES = {
    "ctc": ParakeetShape(kind="ctc", features=80, xscaling=True, seed=1),
    "rnnt": ParakeetShape(kind="rnnt", features=80, xscaling=True, conv_kernel=5, max_symbols=4, seed=2),
    "tdt": ParakeetShape(kind="tdt", use_bias=False, special=True, seed=3),
    "tdt_ctc": ParakeetShape(kind="tdt_ctc", features=80, lstm_layers=1, joint_dropout=False, seed=4),
    "tdt_ctc-local": ParakeetShape(
        kind="tdt_ctc", features=80, conv_kernel=5, local_context=8, durations=(0, 1, 2, 4), max_symbols=2, seed=25
    ),
    "unified": ParakeetShape(kind="rnnt", xscaling=True, unified=True, lstm_layers=1, seed=16),
}
_CLASSES = {
    "ctc": EncDecCTCModelBPE,
    "rnnt": EncDecRNNTBPEModel,
    "tdt": EncDecRNNTBPEModel,
    "tdt_ctc": EncDecHybridRNNTCTCBPEModel,
}
_MARKS = ".?!,"


def build(shape: ParakeetShape, path: Path, workdir: Path) -> Any:
    """The model, saved as an archive of `shape` at `path`; its weights are changed once more by `set_blank`."""
    # A model made after one was restored would look for its files in that one's archive.
    AppState().model_restore_path = None
    torch.manual_seed(shape.seed)
    tokenizer = _trained_tokenizer(shape, workdir / "tokenizer")
    model = _CLASSES[shape.kind](cfg=OmegaConf.create(_model_config(shape, tokenizer))).eval()
    make_lively(model, shape.seed, _GAINS, _EMBEDDINGS)
    with torch.no_grad():
        if shape.kind != "ctc":
            # NeMo's padding index: zero in every model.
            model.decoder.prediction["embed"].weight[-1] = 0
            for head in heads(model):
                _even_out(model, head, shape)
        else:
            _even_out(model, "ctc", shape)
    model.save_to(str(path))
    return model


def heads(model: Any) -> list[str]:
    """The heads that can write: "ctc", and "transducer" for RNN-T and TDT."""
    is_transducer = hasattr(model, "joint")
    has_ctc = hasattr(model, "ctc_decoder") or not is_transducer
    return ["transducer"] * is_transducer + ["ctc"] * has_ctc


@torch.inference_mode()
def encode(model: Any, waveforms: list[torch.Tensor]) -> dict[str, Any]:
    """Features (B, T, n_mels) and encodings (B, D, T') of waveforms padded to one batch, with their lengths."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    signal = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    mel, mel_lengths = model.preprocessor(input_signal=signal, length=lengths)
    states, state_lengths = model.encoder(audio_signal=mel, length=mel_lengths)
    return {"mel": mel.transpose(1, 2), "mel_lengths": mel_lengths, "states": states, "lengths": state_lengths}


def set_blank(
    model: Any,
    head: str,
    shape: ParakeetShape,
    count: Callable[[Any, str, dict[str, Any]], int],
    waveforms: list[np.ndarray],
) -> None:
    """Bisect the blank's bias until `head` writes `tokens_per_s`. count: tokens that it writes of one encoding."""
    layer, outputs = _last_layer(model, head)
    encoded = [encode(model, [torch.from_numpy(waveform)]) for waveform in waveforms]
    wanted = shape.tokens_per_s * sum(map(len, waveforms)) / SAMPLE_RATE
    low, high = -10.0, 40.0
    for _ in range(12):
        middle = (low + high) / 2
        with torch.no_grad():
            layer.bias[outputs - 1] = middle
        too_many = sum(count(model, head, each) for each in encoded) > wanted
        low, high = (middle, high) if too_many else (low, middle)


def _last_layer(model: Any, head: str) -> tuple[Any, int]:
    """The layer that scores tokens, and how many outputs come before those of the durations."""
    if head == "ctc":
        layer = (model.ctc_decoder if hasattr(model, "ctc_decoder") else model.decoder).decoder_layers[0]
        return layer, len(layer.bias)
    return model.joint.joint_net[-1], model.joint.num_classes_with_blank - model.joint.num_extra_outputs


def _even_out(model: Any, head: str, shape: ParakeetShape) -> None:
    """Make every token as likely as the next on average, so that none repeats for ever; then lift and lower some."""
    layer, outputs = _last_layer(model, head)
    frames = torch.cat([encode(model, [torch.from_numpy(sound(name))])["states"][0].T for name in LENGTHS])
    if head == "ctc":
        logits = layer(frames.T[None])[0].T
    else:
        generator = torch.Generator().manual_seed(shape.seed)
        tokens = torch.randint(0, outputs - 1, (24, 12), generator=generator)
        predicted, _ = model.decoder.predict(tokens, add_sos=True)
        predicted = predicted.reshape(-1, predicted.shape[-1])
        heard = frames[torch.randint(0, len(frames), (len(predicted),), generator=generator)]
        logits = model.joint.joint_net(model.joint.enc(heard) + model.joint.pred(predicted))
    mean = logits[:, :outputs].mean(0)
    spread = (logits[:, :outputs] - mean).std()
    layer.bias[:outputs] -= mean
    # Whether a token comes changes from frame to frame and from token to token.
    layer.weight[outputs - 1] *= 2.5
    for token, piece in enumerate(model.tokenizer.ids_to_tokens(list(range(outputs - 1)))):
        layer.bias[token] += spread * (-10 if piece.startswith("<") else piece in _MARKS or 0.5 * piece.startswith("▁"))
    if durations := len(layer.bias) - outputs:
        layer.bias[outputs:] = torch.linspace(0.4, -0.4, durations)
        layer.bias[outputs] = -0.4


def _trained_tokenizer(shape: ParakeetShape, folder: Path) -> dict[str, str]:
    """Without tokens for the start and end of a text, as the published ones; with marks within and before words."""
    special = ["nospeech", "pad", "endoftext", "startoftranscript", "pnc", "nopnc", *shape.languages]
    lines = [line for language in shape.languages for line in sentences(language, 600)]
    for i, line in enumerate(lines):
        first, _, rest = line.partition(" ")
        if i % 7 == 0:
            lines[i] = f"{first}'s {rest}"
        elif i % 11 == 0:
            lines[i] = f"{first}-{rest}"
        elif line.endswith("?"):
            lines[i] = f"¿{line}"
    train_tokenizer(folder, shape.vocab, lines, [f"<|{name}|>" for name in special] if shape.special else None)
    drop_normalisation_table(folder / "tokenizer.model")
    return {"dir": str(folder), "type": "bpe"}


def _model_config(shape: ParakeetShape, tokenizer: dict[str, str]) -> dict[str, Any]:
    modules = "nemo.collections.asr.modules"
    encoder = encoder_config(shape)
    if shape.local_context:
        encoder |= {"self_attention_model": "rel_pos_local_attn", "att_context_size": [shape.local_context] * 2}
    if shape.unified:
        encoder |= {
            "att_context_style": "chunked_limited_with_rc",
            "conv_context_style": "dcc",
            "att_context_size": [-1, -1, -1],
            "att_chunk_context_size": [[70], [1, 2, 7, 13], [0, 1, 2, 3, 4, 7, 13]],
        }
    ctc_decoder = {"_target_": f"{modules}.ConvASRDecoder", "feat_in": None, "num_classes": -1, "vocabulary": []}
    shared = {
        "sample_rate": 16000,
        "log_prediction": False,
        "skip_nan_grad": False,
        "tokenizer": tokenizer,
        "preprocessor": preprocessor_config(shape),
        "spec_augment": augmentation_config(),
        "encoder": encoder,
        "interctc": {"loss_weights": [], "apply_at_layers": []},
    }
    if shape.kind == "ctc":
        return {**shared, "ctc_reduction": "mean_volume", "decoder": ctc_decoder}
    durations = list(shape.durations) if "tdt" in shape.kind else []
    tdt_defaults = {"tdt_durations": durations, "num_tdt_durations": len(durations)}
    tdt_loss = {"fastemit_lambda": 0.0, "clamp": -1.0, "durations": durations, "sigma": 0.02, "omega": 0.1}
    rnnt_loss = {"fastemit_lambda": 0.0, "clamp": -1.0}
    joint_net = {"joint_hidden": shape.joint_hidden, "activation": "relu"}
    config = {
        **shared,
        "compute_eval_loss": False,
        "model_defaults": {
            "enc_hidden": shape.d_model,
            "pred_hidden": shape.pred_hidden,
            "joint_hidden": shape.joint_hidden,
            **(tdt_defaults if durations else {}),
        },
        "decoder": {
            "_target_": f"{modules}.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {
                "pred_hidden": shape.pred_hidden,
                "pred_rnn_layers": shape.lstm_layers,
                "t_max": None,
                "dropout": 0.2,
            },
        },
        "joint": {
            "_target_": f"{modules}.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": True,
            "fused_batch_size": 4,
            "jointnet": joint_net | ({"dropout": 0.2} if shape.joint_dropout else {}),
            **({"num_extra_outputs": len(durations)} if durations else {}),
        },
        "decoding": {
            "strategy": "greedy_batch",
            "greedy": {"max_symbols": shape.max_symbols},
            "beam": {"beam_size": 2, "return_best_hypothesis": False, "score_norm": True},
            **({"model_type": "tdt", "durations": durations} if durations else {}),
        },
        "loss": {"loss_name": "tdt", "tdt_kwargs": tdt_loss}
        if durations
        else {"loss_name": "default", "warprnnt_numba_kwargs": rnnt_loss},
    }
    if shape.kind == "tdt_ctc":
        config["aux_ctc"] = {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": ctc_decoder,
            "decoding": {"strategy": "greedy"},
        }
    return config


# Standard deviations of the weights, times the square root of the inputs; the first that a name contains counts.
_GAINS = {
    "pre_encode.conv": 1.5,
    "pre_encode.out": 0.7,
    "encoder.layers": 1.0,
    "decoder_layers": 1.5,
    "weight_ih": 2.0,
    "weight_hh": 3.0,
    "joint.enc": 1.5,
    "joint.pred": 3.0,
    "joint.joint_net": 2.0,
}
_EMBEDDINGS = (("embed.weight", 1.0),)
