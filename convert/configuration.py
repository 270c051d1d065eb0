"""NeMo's YAML → the configuration of a converted model. An unsupported setting is an error that names it."""

import re
from typing import Any

import sentencepiece

from convert.errors import ArchiveError
from convert.nemo import ALIGNER_CONFIG, CONFIG, NemoArchive, StoredTensor
from model.canary.config import CanaryConfig
from model.config import AlignerConfig, ConfigError, section_from
from model.tokenizer import SPECIAL

EMBEDDING = "transf_decoder._embedding.token_embedding.weight"
# The languages canary-1b-v2 was trained on. Its tokenizer has tokens for many more.
# fmt: off
UNIFIED_LANGUAGES = [
    "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
    "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
]
# fmt: on

# Settings that are not in the converted configuration because only one value of each is supported.
FIXED_SETTINGS: dict[str, dict[str, Any]] = {
    "preprocessor": {"window": "hann", "log": True, "frame_splicing": 1, "mag_power": 2.0, "exact_pad": False},
    "encoder": {"reduction": None, "conv_context_size": None},
    "transf_encoder": {"num_layers": 0},
    "head": {"num_layers": 1, "log_softmax": True},
}


def canary_config(
    archive: NemoArchive, tensors: dict[str, StoredTensor], name: str, dtype: str
) -> tuple[CanaryConfig, dict[str, bytes]]:
    """The model's configuration, and its SentencePiece files by their new names.

    name, dtype: written to `config.json` as given. Raises ArchiveError naming a missing or unsupported setting.
    """
    nemo = archive.config
    _check_target(archive, nemo, "EncDecMultiTaskModel")
    _check_fixed(archive, nemo, CONFIG)
    models, files = _tokenizer_files(archive, nemo, CONFIG)
    decoder = _section(archive, nemo, "transf_decoder", CONFIG)
    values = {
        "name": name,
        "dtype": dtype,
        "prompt_format": nemo.get("prompt_format"),
        "prompt_defaults": _prompt_defaults(archive, nemo.get("prompt_defaults") or []),
        "languages": _languages(archive, models, files),
        "vocab_size": _vocabulary_rows(archive, nemo, tensors, files),
        "preprocessor": _section(archive, nemo, "preprocessor", CONFIG),
        "encoder": _section(archive, nemo, "encoder", CONFIG),
        "decoder": {
            **_section(archive, decoder, "config_dict", f"{CONFIG}: transf_decoder"),
            "pre_ln_final_layer_norm": decoder.get("pre_ln_final_layer_norm", True),
        },
        "decoding": _decoding(archive, nemo.get("decoding") or {}),
        "tokenizer": {"type": nemo["tokenizer"].get("type"), "models": models},
    }
    return _build(archive, CanaryConfig, values, CONFIG), files


def aligner_config(archive: NemoArchive, dtype: str) -> tuple[AlignerConfig, dict[str, bytes]]:
    """The configuration of the aligner in canary-1b-v2's archive, and its SentencePiece file by its new name."""
    nemo = archive.yaml(ALIGNER_CONFIG)
    _check_fixed(archive, nemo, ALIGNER_CONFIG)
    models, files = _tokenizer_files(archive, nemo, ALIGNER_CONFIG)
    values = {
        "dtype": dtype,
        "vocab_size": _section(archive, nemo, "decoder", ALIGNER_CONFIG).get("num_classes"),
        "preprocessor": _section(archive, nemo, "preprocessor", ALIGNER_CONFIG),
        "encoder": _section(archive, nemo, "encoder", ALIGNER_CONFIG),
        "tokenizer": {"type": nemo["tokenizer"].get("type"), "models": models},
    }
    return _build(archive, AlignerConfig, values, ALIGNER_CONFIG), files


def _build(archive: NemoArchive, cls: type, values: dict[str, Any], where: str) -> Any:
    try:
        return section_from(cls, values)
    except (ConfigError, TypeError) as error:
        raise ArchiveError(f"{archive.path}: {where}: {error}") from None


def _section(archive: NemoArchive, values: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    section = values.get(key)
    if not isinstance(section, dict):
        raise ArchiveError(f"{archive.path}: {where}: {key} is missing")
    return section


def _check_target(archive: NemoArchive, nemo: dict[str, Any], expected: str) -> None:
    target = str(nemo.get("target", expected)).rpartition(".")[2]
    if target != expected:
        raise ArchiveError(f"{archive.path}: unsupported model {target[:80]}; must be a Canary model ({expected})")


def _check_fixed(archive: NemoArchive, nemo: dict[str, Any], where: str) -> None:
    for section, settings in FIXED_SETTINGS.items():
        for key, supported in settings.items():
            values = nemo.get(section)
            value = values.get(key, supported) if isinstance(values, dict) else supported
            if value != supported:
                raise ArchiveError(
                    f"{archive.path}: {where}: {section}.{key}: {value!r} is not supported; must be {supported!r}"
                )


def _tokenizer_files(archive: NemoArchive, nemo: dict[str, Any], where: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """File names by language, in NeMo's order, which determines the token ids; and each file's bytes by its name."""
    tokenizer = _section(archive, nemo, "tokenizer", where)
    if tokenizer.get("type") == "agg":
        parts = _section(archive, tokenizer, "langs", f"{where}: tokenizer")
    else:
        parts = {"": tokenizer}
    models: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for language, part in parts.items():
        path = part.get("model_path") if isinstance(part, dict) else None
        if not isinstance(path, str) or not re.fullmatch(r"[a-z_]{0,20}", str(language)):
            raise ArchiveError(f"{archive.path}: {where}: tokenizer of {language!r} has no model_path")
        models[language] = f"tokenizer.{language}.model" if language else "tokenizer.model"
        files[models[language]] = archive.read(path)
    return models, files


def _processor(archive: NemoArchive, name: str, content: bytes) -> Any:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except Exception as error:  # the exception type differs between versions of the library
        raise ArchiveError(f"{archive.path}: {name} is not a SentencePiece model: {error}") from None
    return processor


def _languages(archive: NemoArchive, models: dict[str, str], files: dict[str, bytes]) -> list[str]:
    """Languages with their own tokenizer; for a unified one, canary-1b-v2's languages that it has a token for."""
    if "" not in models:
        return [language for language in models if language != SPECIAL]
    processor = _processor(archive, models[""], files[models[""]])
    pieces = {processor.IdToPiece(index) for index in range(processor.GetPieceSize())}
    return [language for language in UNIFIED_LANGUAGES if f"<|{language}|>" in pieces]


def _vocabulary_rows(
    archive: NemoArchive, nemo: dict[str, Any], tensors: dict[str, StoredTensor], files: dict[str, bytes]
) -> Any:
    """Rows of the head: as configured, or as stored if the configuration leaves the number open."""
    rows = (nemo.get("head") or {}).get("num_classes")
    if rows is None and EMBEDDING in tensors:
        rows = tensors[EMBEDDING].shape[0]
    pieces = sum(_processor(archive, name, content).GetPieceSize() for name, content in files.items())
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
