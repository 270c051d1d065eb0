"""Small Canary archives with random weights, built and saved by NeMo itself.

They have the real ones' four shapes at a hundredth of the width; two more have heads as wide as the real ones'.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from nemo.collections.asr.models import EncDecCTCModelBPE, EncDecMultiTaskModel
from nemo.collections.common.tokenizers.canary_tokenizer import DEFAULT_TOKENS, CanaryTokenizer
from nemo.utils.app_state import AppState
from omegaconf import OmegaConf

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
from tests.toy.combined import with_aligner


@dataclass(frozen=True)
class Shape(EncoderShape):
    """One of the published models' shapes, in small."""

    tokenizer: str = "agg"  # or bpe
    prompt_format: str = "canary2"  # or canary
    languages: tuple[str, ...] = ("en", "de", "es", "fr")
    vocab: int = 96  # pieces per language; for bpe, of the one model besides its special tokens
    decoder_layers: int = 2
    hidden: int = 48
    decoder_heads: int = 4
    max_sequence_length: int = 256
    aligner: bool = False


SHAPES = {
    "180m-flash": Shape(d_model=40, hidden=48, seed=11),
    "1b-flash": Shape(d_model=32, hidden=32, conv_channels=8, gzipped=False, seed=12),
    # A short sequence, into whose end a 12 s sound runs.
    "1b": Shape(prompt_format="canary", decoder_layers=3, max_sequence_length=128, seed=3),
    "1b-v2": Shape(
        tokenizer="bpe",
        languages=("en", "de", "fr", "bg", "uk"),
        vocab=256,
        d_model=40,
        hidden=40,
        aligner=True,
        seed=14,
    ),
    # Attention heads and subsampling as wide as the published models', which a GPU's fast kernels ask for.
    "180m-flash-wide": Shape(
        features=32,
        d_model=64,
        encoder_heads=1,
        conv_channels=256,
        hidden=128,
        decoder_heads=1,
        max_sequence_length=96,
        seed=31,
    ),
    "1b-v2-wide": Shape(
        tokenizer="bpe",
        languages=("en", "de", "fr", "bg", "uk"),
        vocab=256,
        features=32,
        encoder_layers=1,
        d_model=128,
        encoder_heads=1,
        conv_channels=256,
        hidden=128,
        decoder_heads=2,
        max_sequence_length=96,
        seed=31,
    ),
}

# fmt: off
_TASK_TOKENS = {
    "canary": ["endoftext", "startoftranscript", "transcribe", "translate", "nopnc", "pnc", "nospeech"],
    "canary2": [
        "endoftext", "startoftranscript", "nopnc", "pnc", "nospeech", "startofcontext", "itn", "noitn", "timestamp",
        "notimestamp", "diarize", "nodiarize", "emo:undefined", "emo:neutral", "unklang", *map(str, range(20)),
    ],
}
# fmt: on


def build(shape: Shape, path: Path, workdir: Path) -> None:
    """Save an archive of `shape` at `path`."""
    # A model made after one was restored would look for its timestamps model in that one's archive.
    AppState().model_restore_path = None
    torch.manual_seed(shape.seed)
    tokenizer = _trained_tokenizer(shape, workdir / "tokenizers")
    model = EncDecMultiTaskModel(cfg=OmegaConf.create(_model_config(shape, tokenizer))).eval()
    make_lively(model, shape.seed, _GAINS, _EMBEDDINGS)
    _quieten_special_tokens(model)
    model.save_to(str(path))
    if shape.aligner:
        aligner = EncDecCTCModelBPE(cfg=OmegaConf.create(_aligner_config(model.cfg, tokenizer))).eval()
        make_lively(aligner, shape.seed + 1, _GAINS, _EMBEDDINGS)
        aligner.save_to(str(workdir / "aligner.nemo"))
        with_aligner(path, workdir / "aligner.nemo", workdir / "both.nemo").replace(path)


def set_end(model: EncDecMultiTaskModel, vector: torch.Tensor, bias: float) -> None:
    """When and how readily the model stops: the head's row for the end of the text."""
    with torch.no_grad():
        model.log_softmax.mlp.layer0.weight[model.tokenizer.eos] = vector
        model.log_softmax.mlp.layer0.bias[model.tokenizer.eos] = bias


def _trained_tokenizer(shape: Shape, folder: Path) -> dict:
    special = [f"<|{name}|>" for name in (*_TASK_TOKENS[shape.prompt_format], *shape.languages)]
    if shape.tokenizer == "bpe":
        special = list(dict.fromkeys(DEFAULT_TOKENS + special))
        lines = [line for language in shape.languages for line in sentences(language, 400)]
        train_tokenizer(folder / "one", len(special) + shape.vocab, lines, special)
        custom = "CanaryBPETokenizer"
        config = {"dir": str(folder / "one"), "type": "bpe"}
    else:
        CanaryTokenizer.build_special_tokenizer(special, folder / "spl_tokens", force_rebuild=True)
        for language in shape.languages:
            train_tokenizer(folder / language, shape.vocab, sentences(language, 1000))
        custom = "CanaryTokenizer"
        langs = {name: {"dir": str(folder / name), "type": "bpe"} for name in ("spl_tokens", *shape.languages)}
        config = {"dir": None, "type": "agg", "langs": langs}
    for model in folder.glob("*/tokenizer.model"):
        drop_normalisation_table(model)
    target = f"nemo.collections.common.tokenizers.canary_tokenizer.{custom}"
    return {**config, "custom_tokenizer": {"_target_": target, "tokenizers": None}}


def _model_config(shape: Shape, tokenizer: dict) -> dict:
    asr = "nemo.collections.asr"
    slots = {
        "decodercontext": "",
        "source_lang": "<|en|>",
        "target_lang": "<|en|>",
        "emotion": "<|emo:undefined|>",
        "pnc": "<|pnc|>",
        "itn": "<|noitn|>",
        "diarize": "<|nodiarize|>",
        "timestamp": "<|notimestamp|>",
    }
    is_v1 = shape.prompt_format == "canary"
    return {
        "sample_rate": 16000,
        "label_smoothing": 0.0,
        "use_loss_mask_for_prompt": False,
        "log_prediction": False,
        "prompt_format": shape.prompt_format,
        "prompt_defaults": None if is_v1 else [{"role": "user", "slots": slots}],
        "model_defaults": {
            "asr_enc_hidden": shape.d_model,
            "lm_enc_hidden": shape.hidden,
            "lm_dec_hidden": shape.hidden,
        },
        "tokenizer": tokenizer,
        "preprocessor": preprocessor_config(shape),
        "spec_augment": augmentation_config(),
        "encoder": encoder_config(shape),
        "transf_encoder": {
            "_target_": f"{asr}.modules.transformer.transformer_encoders.TransformerEncoder",
            "num_layers": 0,
            "hidden_size": shape.hidden,
            "inner_size": 4 * shape.hidden,
            "num_attention_heads": shape.decoder_heads,
            "ffn_dropout": 0.1,
            "attn_score_dropout": 0.1,
            "attn_layer_dropout": 0.1,
            "mask_future": False,
            "pre_ln": True,
            "pre_ln_final_layer_norm": True,
        },
        "transf_decoder": {
            "_target_": f"{asr}.modules.transformer.get_nemo_transformer",
            "model_name": None,
            "pretrained": False,
            "encoder": None,
            "pre_ln_final_layer_norm": True,
            "config_dict": {
                "max_sequence_length": shape.max_sequence_length,
                "num_token_types": 0,
                "embedding_dropout": 0.1,
                "learn_positional_encodings": False,
                "hidden_size": shape.hidden,
                "inner_size": 4 * shape.hidden,
                "num_layers": shape.decoder_layers,
                "num_attention_heads": shape.decoder_heads,
                "ffn_dropout": 0.1,
                "attn_score_dropout": 0.1,
                "attn_layer_dropout": 0.1,
                "hidden_act": "relu",
                "pre_ln": True,
                "vocab_size": None,
            },
        },
        "head": {
            "_target_": f"{asr}.parts.submodules.token_classifier.TokenClassifier",
            "num_layers": 1,
            "activation": "relu",
            "log_softmax": True,
            "hidden_size": shape.hidden,
            "num_classes": None,
            "dropout": 0.0,
            "use_transformer_init": True,
        },
        "decoding": {
            "strategy": "beam",
            "return_best_hypothesis": True,
            "beam": {"beam_size": 1, "len_pen": 0.0, "max_generation_delta": 50},
        },
        "loss": {
            "_target_": "nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
            "label_smoothing": 0.0,
            "pad_id": None,
        },
    }


def _aligner_config(main, tokenizer: dict) -> dict:
    """canary-1b-v2's timestamps model: the same encoder without biases and a CTC head."""
    container = OmegaConf.to_container(main)
    return {
        "sample_rate": 16000,
        "log_prediction": False,
        "ctc_reduction": "mean_volume",
        "tokenizer": {"dir": tokenizer["dir"], "type": "bpe"},
        "preprocessor": container["preprocessor"],
        "spec_augment": container["spec_augment"],
        "encoder": {**container["encoder"], "use_bias": False},
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,
            "num_classes": -1,
            "vocabulary": [],
        },
        "interctc": {"loss_weights": [], "apply_at_layers": []},
    }


# Standard deviations of the weights, times the square root of the inputs; the first that a name contains counts.
_GAINS = {
    "pre_encode.conv": 1.5,
    "pre_encode.out": 0.7,
    "encoder.layers": 1.0,
    "encoder_decoder_proj": 1.0,
    "query_net": 3.0,
    "key_net": 3.0,
    # Attention gives way to the feed-forward layers, which are of the last token and its position: else one repeats.
    "value_net": 0.7,
    "out_projection": 0.7,
    "third_sub_layer": 4.0,
    "decoder_layers": 1.5,
}
_EMBEDDINGS = (("token_embedding", 0.12),)


def _quieten_special_tokens(model: EncDecMultiTaskModel) -> None:
    """Texts of words: special tokens hardly ever, the rows that only fill up the vocabulary never."""
    bias = model.log_softmax.mlp.layer0.bias
    size = model.tokenizer.vocab_size
    pieces = model.tokenizer.ids_to_tokens(list(range(size)))
    with torch.no_grad():
        for token, piece in enumerate(pieces):
            if re.fullmatch(r"<.+>", piece):
                bias[token] -= 4.0
        bias[size:] = -30.0
