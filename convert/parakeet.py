"""Parakeet: NeMo's YAML and tensors → its configuration and its table of tensors.

The tensors say what the model is: published YAML leaves out `use_bias`, has empty `prednet` sections, and has sections
for heads that are not there.

Sizes in shapes, besides the encoder's: R prediction network's width, J joint network's width, N = V + 1 tokens with the
blank, O outputs of the joint network: N and the durations.
"""

import re
from collections.abc import Mapping
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
from convert.download import MODELS
from convert.encoder import encoder_table
from convert.errors import ArchiveError
from convert.nemo import CONFIG, NemoArchive, StoredTensor
from convert.weights import LazyTensor, Row, Table, module, pointwise, size, unchanged
from model.parakeet.config import ParakeetConfig

EMBEDDING = "decoder.prediction.embed.weight"
LSTM = "decoder.prediction.dec_rnn.lstm"
CTC_HEADS = {"ctc": "decoder.decoder_layers.0", "auxiliary": "ctc_decoder.decoder_layers.0"}
# NeMo's joint network has a dropout before its last layer, or none: the layer's number differs.
JOINT_OUTPUTS = ("joint.joint_net.2", "joint.joint_net.1")
FIXED_SETTINGS = {
    "decoder": {"blank_as_pad": True, "normalization_mode": None},
    "encoder": {"reduction": None, "conv_context_size": None, "global_tokens": 0},
}
# What `config.json` says of the parts after the encoder.
DECODER_SECTIONS = ("prediction", "joint", "durations", "max_symbols", "auxiliary_ctc")
MAX_LSTM_LAYERS = 8
# NeMo's, if the YAML does not say.
MAX_SYMBOLS = 10


def parakeet_config(
    archive: NemoArchive, tensors: dict[str, StoredTensor], name: str, dtype: str
) -> tuple[ParakeetConfig, dict[str, bytes]]:
    """The model's configuration, and its SentencePiece file by its new name.

    name, dtype: written to `config.json` as given. Raises ArchiveError naming a missing or unsupported setting.
    """
    nemo = archive.config
    encoder = encoder_section(archive, nemo, CONFIG)
    check_fixed(archive, nemo, CONFIG, FIXED_SETTINGS)
    models, files = tokenizer_files(archive, nemo, CONFIG)
    if list(models) != [""]:
        raise ArchiveError(f"{archive.path}: {CONFIG}: tokenizer.type: 'agg' is not supported; must be 'bpe'")
    pieces = processor(archive, *next(iter(files.items())))
    is_transducer = any(key.startswith("joint.") for key in tensors)
    values = {
        "name": name,
        "dtype": dtype,
        "kind": "ctc",
        "languages": MODELS[name].languages if name in MODELS else trained_languages(pieces),
        "vocab_size": pieces.GetPieceSize(),
        "preprocessor": section(archive, nemo, "preprocessor", CONFIG),
        "encoder": encoder | _encoder_shapes(tensors),
        "tokenizer": {"type": nemo["tokenizer"].get("type"), "models": models},
    }
    _check_vocabulary(archive, tensors, values["vocab_size"])
    if is_transducer:
        durations = _durations(archive, nemo, tensors, values["vocab_size"] + 1)
        values |= {
            "kind": "tdt" if durations else "rnnt",
            "prediction": {"hidden": _shape(tensors, EMBEDDING)[-1], "layers": _lstm_layers(tensors)},
            "joint": {"hidden": _shape(tensors, "joint.enc.weight")[0]},
            "durations": durations,
            "max_symbols": _max_symbols(archive, nemo),
            "auxiliary_ctc": any(key.startswith("ctc_decoder.") for key in tensors),
        }
        _check_activation(archive, nemo)
    return build(archive, ParakeetConfig, values, CONFIG), files


def _shape(tensors: Mapping[str, LazyTensor], name: str) -> tuple[int, ...]:
    """A tensor's shape; (0,) if it is missing, which the table reports."""
    return tuple(tensors[name].shape) if name in tensors else (0,)


def _encoder_shapes(tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """The settings of the encoder that its first layer's tensors say."""
    first = "encoder.layers.0"
    shapes: dict[str, Any] = {"use_bias": f"{first}.feed_forward1.linear1.bias" in tensors}
    if kernel := _shape(tensors, f"{first}.conv.depthwise_conv.weight")[-1]:
        shapes["conv_kernel_size"] = kernel
    return shapes


def _check_vocabulary(archive: NemoArchive, tensors: Mapping[str, LazyTensor], pieces: int) -> None:
    """The blank follows the last piece."""
    for name in (EMBEDDING, *(f"{head}.weight" for head in CTC_HEADS.values())):
        if name in tensors and _shape(tensors, name)[0] != pieces + 1:
            rows = _shape(tensors, name)[0]
            raise ArchiveError(f"{archive.path}: the tokenizer has {pieces} pieces, but {name} has {rows} rows")


def _lstm_layers(tensors: Mapping[str, LazyTensor]) -> int:
    return sum(re.fullmatch(rf"{re.escape(LSTM)}\.weight_ih_l\d+", name) is not None for name in tensors)


def _durations(archive: NemoArchive, nemo: dict[str, Any], tensors: Mapping[str, LazyTensor], tokens: int) -> list[int]:
    """The durations of a TDT, in encoder steps; none for an RNN-T. tokens: N."""
    durations = optional_section(nemo, "decoding").get("durations") or []
    durations = durations or optional_section(nemo, "model_defaults").get("tdt_durations") or []
    is_valid = isinstance(durations, list) and all(isinstance(d, int) and 0 <= d < 100 for d in durations)
    if not is_valid or (durations and max(durations) == 0):
        raise ArchiveError(f"{archive.path}: {CONFIG}: decoding.durations: {durations!r} is not a list of steps")
    outputs = next((_shape(tensors, f"{name}.bias")[0] for name in JOINT_OUTPUTS if f"{name}.bias" in tensors), tokens)
    if outputs == tokens:
        return []
    if outputs != tokens + len(durations):
        raise ArchiveError(
            f"{archive.path}: the joint network has {outputs} outputs; expected {tokens} tokens"
            + (f" and {len(durations)} durations" if durations else "")
        )
    return durations


def _max_symbols(archive: NemoArchive, nemo: dict[str, Any]) -> int:
    greedy = optional_section(nemo, "decoding", "greedy")
    value = greedy.get("max_symbols") or greedy.get("max_symbols_per_step") or MAX_SYMBOLS
    if not isinstance(value, int) or value < 1:
        raise ArchiveError(f"{archive.path}: {CONFIG}: decoding.greedy.max_symbols: {value!r} is not a positive number")
    return value


def _check_activation(archive: NemoArchive, nemo: dict[str, Any]) -> None:
    activation = optional_section(nemo, "joint", "jointnet").get("activation", "relu")
    if str(activation).lower() != "relu":
        raise ArchiveError(
            f"{archive.path}: {CONFIG}: joint.jointnet.activation: {activation!r} is not supported; must be 'relu'"
        )


def parakeet_table(config: ParakeetConfig, tensors: Mapping[str, LazyTensor], encoder_only: bool = False) -> Table:
    """The table of a Parakeet; with encoder_only, only the preprocessor and the encoder.

    tensors: the archive's, which tell the number of the joint network's last layer.
    """
    rows, sizes = encoder_table(config.preprocessor, config.encoder)
    if encoder_only:
        return Table(tuple(rows), sizes)
    sizes["N"] = size("vocab_size", config.vocab_size) + 1
    if config.prediction and config.joint:
        sizes["R"] = size(f"width of {EMBEDDING}", config.prediction.hidden)
        sizes["J"] = size("width of joint.enc", config.joint.hidden)
        sizes["O"] = sizes["N"] + len(config.durations)
        rows += prediction_rows(size(f"layers of {LSTM}", config.prediction.layers, MAX_LSTM_LAYERS))
        rows += joint_rows(next((name for name in JOINT_OUTPUTS if f"{name}.weight" in tensors), JOINT_OUTPUTS[0]))
    if "ctc" in config.heads:
        source = CTC_HEADS["auxiliary" if config.auxiliary_ctc else "ctc"]
        rows += module("ctc", "N D", source, stored="N D 1", layout=pointwise)
    return Table(tuple(rows), sizes)


def prediction_rows(layers: int) -> list[Row]:
    rows = [Row("prediction.embedding.weight", "N R", ((EMBEDDING, "N R"),), unchanged)]
    for k in range(layers):
        at = f"prediction.layers.{k}"
        # One product with [input | output of the step before]. Gates in torch's order: i, f, g, o.
        matrices = ((f"{LSTM}.weight_ih_l{k}", "4R R"), (f"{LSTM}.weight_hh_l{k}", "4R R"))
        biases = ((f"{LSTM}.bias_ih_l{k}", "4R"), (f"{LSTM}.bias_hh_l{k}", "4R"))
        rows.append(Row(f"{at}.weight", "4R 2R", matrices, side_by_side))
        rows.append(Row(f"{at}.bias", "4R", biases, summed))
    return rows


def joint_rows(output: str) -> list[Row]:
    """output: NeMo's name of the last layer."""
    return [
        *module("joint.encoder", "J D", "joint.enc"),
        *module("joint.prediction", "J R", "joint.pred"),
        *module("joint.out", "O J", output),
    ]


def side_by_side(*matrices: np.ndarray) -> np.ndarray:
    """Several (O, I) → one (O, n·I)."""
    return np.concatenate(matrices, axis=1)


def summed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first + second
