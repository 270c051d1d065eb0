"""Canary: NeMo's YAML and tensors → its configuration and its table of tensors.

Sizes in shapes, besides the encoder's: M decoder width, I feed-forward width, L layers, S longest sequence,
V vocabulary rows, N = V + 1 with the aligner's CTC blank.
"""

from itertools import chain
from typing import Any

import numpy as np

from convert.configuration import (
    build,
    check_fixed,
    encoder_section,
    optional_section,
    processor,
    section,
    tokenizer_files,
    trained_languages,
)
from convert.encoder import MAX_LAYERS, encoder_table
from convert.errors import ArchiveError, TensorError
from convert.nemo import ALIGNER_CONFIG, CONFIG, NemoArchive, StoredTensor
from convert.weights import Row, Table, concatenated, module, pointwise, size, unchanged
from model.canary.config import CanaryConfig, DecoderConfig
from model.config import AlignerConfig
from model.tokenizer import SPECIAL

EMBEDDING = "transf_decoder._embedding.token_embedding.weight"
FIXED_SETTINGS = {
    "transf_encoder": {"num_layers": 0},
    "head": {"num_layers": 1, "log_softmax": True},
}
# What `config.json` says of the parts after the encoder.
DECODER_SECTIONS = ("decoder", "decoding")


def canary_config(
    archive: NemoArchive, tensors: dict[str, StoredTensor], name: str, dtype: str
) -> tuple[CanaryConfig, dict[str, bytes]]:
    """The model's configuration, and its SentencePiece files by their new names.

    name, dtype: written to `config.json` as given. Raises ArchiveError naming a missing or unsupported setting.
    """
    nemo = archive.config
    check_fixed(archive, nemo, CONFIG, FIXED_SETTINGS)
    models, files = tokenizer_files(archive, nemo, CONFIG)
    decoder = section(archive, nemo, "transf_decoder", CONFIG)
    values = {
        "name": name,
        "dtype": dtype,
        "prompt_format": nemo.get("prompt_format"),
        "prompt_defaults": _prompt_defaults(archive, nemo.get("prompt_defaults") or []),
        "languages": _languages(archive, models, files),
        "vocab_size": _vocabulary_rows(archive, nemo, tensors, files),
        "preprocessor": section(archive, nemo, "preprocessor", CONFIG),
        "encoder": encoder_section(archive, nemo, CONFIG),
        "decoder": {
            **section(archive, decoder, "config_dict", f"{CONFIG}: transf_decoder"),
            "pre_ln_final_layer_norm": decoder.get("pre_ln_final_layer_norm", True),
        },
        "decoding": _decoding(archive, nemo.get("decoding") or {}),
        "tokenizer": {"type": nemo["tokenizer"].get("type"), "models": models},
    }
    return build(archive, CanaryConfig, values, CONFIG), files


def aligner_config(archive: NemoArchive, dtype: str) -> tuple[AlignerConfig, dict[str, bytes]]:
    """The configuration of the aligner in canary-1b-v2's archive, and its SentencePiece file by its new name."""
    nemo = archive.yaml(ALIGNER_CONFIG)
    check_fixed(archive, nemo, ALIGNER_CONFIG, {})
    models, files = tokenizer_files(archive, nemo, ALIGNER_CONFIG)
    values = {
        "dtype": dtype,
        "vocab_size": section(archive, nemo, "decoder", ALIGNER_CONFIG).get("num_classes"),
        "preprocessor": section(archive, nemo, "preprocessor", ALIGNER_CONFIG),
        "encoder": encoder_section(archive, nemo, ALIGNER_CONFIG),
        "tokenizer": {"type": nemo["tokenizer"].get("type"), "models": models},
    }
    return build(archive, AlignerConfig, values, ALIGNER_CONFIG), files


def _languages(archive: NemoArchive, models: dict[str, str], files: dict[str, bytes]) -> list[str]:
    """Languages with their own tokenizer; for a unified one, those that it has a token for."""
    if "" not in models:
        return [language for language in models if language != SPECIAL]
    return trained_languages(processor(archive, models[""], files[models[""]]))


def _vocabulary_rows(
    archive: NemoArchive, nemo: dict[str, Any], tensors: dict[str, StoredTensor], files: dict[str, bytes]
) -> Any:
    """Rows of the head: as configured, or as stored if the configuration leaves the number open."""
    rows = optional_section(nemo, "head").get("num_classes")
    if rows is None and EMBEDDING in tensors:
        rows = tensors[EMBEDDING].shape[0]
    pieces = sum(processor(archive, name, content).GetPieceSize() for name, content in files.items())
    if not isinstance(rows, int) or rows < pieces:
        raise ArchiveError(f"{archive.path}: the tokenizer has {pieces} pieces, but the head has {rows!r} classes")
    return rows


def _prompt_defaults(archive: NemoArchive, turns: Any) -> list[dict[str, Any]]:
    """[{role, slots}], with any other keys of NeMo's left out."""
    try:
        defaults = [{"role": turn["role"], "slots": dict(turn.get("slots") or {})} for turn in turns]
    except (TypeError, KeyError, AttributeError, ValueError):
        raise ArchiveError(f"{archive.path}: {CONFIG}: prompt_defaults is not a list of roles with slots") from None
    for turn in defaults:
        for value in (turn["role"], *turn["slots"], *turn["slots"].values()):
            if not isinstance(value, str | int | float | None):
                raise ArchiveError(f"{archive.path}: {CONFIG}: prompt_defaults must hold only strings and numbers")
    return defaults


def _decoding(archive: NemoArchive, decoding: Any) -> dict[str, Any]:
    """The beam search settings. NeMo reads `beam.length_penalty`; the `len_pen` in its files has no effect."""
    beam = decoding.get("beam") if isinstance(decoding, dict) else None
    beam = beam if isinstance(beam, dict) and str(decoding.get("strategy", "beam")).startswith("beam") else {}
    settings = {
        key: beam[key] for key in ("beam_size", "length_penalty", "max_generation_delta") if beam.get(key) is not None
    }
    for key, value in settings.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ArchiveError(f"{archive.path}: {CONFIG}: decoding.beam.{key}: {value!r} is not a number")
    return settings


def canary_table(config: CanaryConfig, encoder_only: bool = False) -> Table:
    """The table of a Canary model; with encoder_only, only the preprocessor and the encoder."""
    rows, sizes = encoder_table(config.preprocessor, config.encoder)
    if encoder_only:
        return Table(tuple(rows), sizes)
    sizes |= _decoder_sizes(config.decoder, config.vocab_size)
    if sizes["D"] != sizes["M"]:
        rows += module("encoder_decoder_proj", "M D", "encoder_decoder_proj")
    return Table((*rows, *decoder_rows(sizes["L"])), sizes)


def aligner_table(config: AlignerConfig) -> Table:
    """The table of canary-1b-v2's aligner."""
    rows, sizes = encoder_table(config.preprocessor, config.encoder)
    sizes["N"] = size("vocab_size", config.vocab_size) + 1
    return Table((*rows, *aligner_head_rows()), sizes)


def _decoder_sizes(decoder: DecoderConfig, vocab_size: int) -> dict[str, int]:
    return {
        "M": size("transf_decoder.hidden_size", decoder.hidden_size),
        "I": size("transf_decoder.inner_size", decoder.inner_size),
        "L": size("transf_decoder.num_layers", decoder.num_layers, MAX_LAYERS),
        "S": size("transf_decoder.max_sequence_length", decoder.max_sequence_length),
        "V": size("vocab_size", vocab_size),
    }


def decoder_rows(layers: int) -> list[Row]:
    embedding, decoder = "transf_decoder._embedding", "transf_decoder._decoder"
    tokens, head = f"{embedding}.token_embedding.weight", "log_softmax.mlp.layer0"
    positions = f"{embedding}.position_embedding.pos_enc"
    # All layers' keys and values of the encoded audio in one matrix, so that a single product computes them.
    cross = [f"{decoder}.layers.{n}.second_sub_layer.{net}" for n in range(layers) for net in ("key_net", "value_net")]
    rows = [
        [Row("decoder.token_embedding.weight", "V M", ((tokens, "V M"), (f"{head}.weight", "V M")), tied)],
        [Row("decoder.position_encoding", "S M", ((positions, "S M"),), unchanged)],
        module("decoder.embedding_layer_norm", "M", f"{embedding}.layer_norm"),
        *(decoder_layer_rows(f"decoder.layers.{n}", f"{decoder}.layers.{n}") for n in range(layers)),
        module("decoder.cross_kv", "2LM M", *cross, stored="M M", layout=concatenated),
        module("decoder.final_layer_norm", "M", f"{decoder}.final_layer_norm"),
        [Row("head.bias", "V", ((f"{head}.bias", "V"),), unchanged)],
    ]
    return list(chain.from_iterable(rows))


def decoder_layer_rows(target: str, source: str) -> list[Row]:
    self_attention = [f"{source}.first_sub_layer.{net}" for net in ("query_net", "key_net", "value_net")]
    rows = [
        module(f"{target}.layer_norm_1", "M", f"{source}.layer_norm_1"),
        module(f"{target}.self_attn.linear_qkv", "3M M", *self_attention, stored="M M", layout=concatenated),
        module(f"{target}.self_attn.linear_out", "M M", f"{source}.first_sub_layer.out_projection"),
        module(f"{target}.layer_norm_2", "M", f"{source}.layer_norm_2"),
        module(f"{target}.cross_attn.linear_q", "M M", f"{source}.second_sub_layer.query_net"),
        module(f"{target}.cross_attn.linear_out", "M M", f"{source}.second_sub_layer.out_projection"),
        module(f"{target}.layer_norm_3", "M", f"{source}.layer_norm_3"),
        module(f"{target}.dense_in", "I M", f"{source}.third_sub_layer.dense_in"),
        module(f"{target}.dense_out", "M I", f"{source}.third_sub_layer.dense_out"),
    ]
    return list(chain.from_iterable(rows))


def aligner_head_rows() -> list[Row]:
    return module("head", "N D", "decoder.decoder_layers.0", stored="N D 1", layout=pointwise)


def tied(embedding: np.ndarray, head: np.ndarray) -> np.ndarray:
    """The matrix that both embeds and scores tokens."""
    if not np.array_equal(embedding, head):
        raise TensorError(
            "log_softmax.mlp.layer0.weight differs from the token embedding; only a tied head is supported"
        )
    return embedding
