"""NeMo's YAML → sections of a converted model's configuration, for every family.

An unsupported setting is an error that names it.
"""

import re
from typing import Any

from sentencepiece import SentencePieceProcessor

from convert.download import EUROPEAN
from convert.errors import ArchiveError
from convert.nemo import NemoArchive
from model.config import ConfigError, section_from
from model.tokenizer import TokenizerError, pieces_from

# By the last part of `target`, the class that NeMo would build.
FAMILIES = {
    "EncDecMultiTaskModel": "canary",
    "EncDecCTCModelBPE": "parakeet",
    "EncDecRNNTBPEModel": "parakeet",
    "EncDecHybridRNNTCTCBPEModel": "parakeet",
}
# Settings that are not in the converted configuration because only one value of each is supported.
FixedSettings = dict[str, dict[str, Any]]
FIXED_SETTINGS: FixedSettings = {
    "preprocessor": {"window": "hann", "log": True, "frame_splicing": 1, "mag_power": 2.0, "exact_pad": False},
    "encoder": {"reduction": None, "conv_context_size": None},
}
# How NeMo limits attention: not at all, to a band, or so only while it streams.
_ATTENTION_STYLES = ("regular", "chunked_limited_with_rc")


def family_of(archive: NemoArchive) -> str:
    """The family of an archive: "canary" or "parakeet". Raises ArchiveError for any other model."""
    target = str(archive.config.get("target", "EncDecMultiTaskModel")).rpartition(".")[2]
    if target.endswith("WithPrompt"):
        raise ArchiveError(f"{archive.path}: {target[:80]} is not supported: its encoder needs a language prompt")
    if target not in FAMILIES:
        raise ArchiveError(
            f"{archive.path}: unsupported model {target[:80]}; must be a Canary (EncDecMultiTaskModel) or "
            "a Parakeet (EncDecCTCModelBPE, EncDecRNNTBPEModel, EncDecHybridRNNTCTCBPEModel)"
        )
    return FAMILIES[target]


def build(archive: NemoArchive, cls: type, values: dict[str, Any], where: str) -> Any:
    try:
        return section_from(cls, values)
    except (ConfigError, TypeError) as error:
        raise ArchiveError(f"{archive.path}: {where}: {error}") from None


def section(archive: NemoArchive, values: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    found = values.get(key)
    if not isinstance(found, dict):
        raise ArchiveError(f"{archive.path}: {where}: {key} is missing")
    return found


def optional_section(values: dict[str, Any], *path: str) -> dict[str, Any]:
    """The section at a path; {} if there is none."""
    for key in path:
        found = values.get(key)
        values = found if isinstance(found, dict) else {}
    return values


def encoder_section(archive: NemoArchive, nemo: dict[str, Any], where: str) -> dict[str, Any]:
    """NeMo's settings of the encoder, with its attention context in one form: [left, right] steps, [-1, -1] for all."""
    values = dict(section(archive, nemo, "encoder", where))
    style = values.get("att_context_style", "regular")
    if style not in _ATTENTION_STYLES:
        raise ArchiveError(
            f"{archive.path}: {where}: encoder.att_context_style: {style!r} is not supported (cache-aware streaming); "
            f"must be one of {', '.join(_ATTENTION_STYLES)}"
        )
    size = values.get("att_context_size", [-1, -1])
    # Of several contexts, the first is the default.
    if isinstance(size, list) and size and isinstance(size[0], list):
        size = size[0]
    # Left, chunk, right: all of the audio unless the model streams.
    values["att_context_size"] = [-1, -1] if style != "regular" and size == [-1, -1, -1] else size
    return values


def check_fixed(archive: NemoArchive, nemo: dict[str, Any], where: str, fixed: FixedSettings) -> None:
    """Raise ArchiveError for a setting that has another value than the only supported one. fixed: the family's own."""
    for name, settings in (FIXED_SETTINGS | fixed).items():
        for key, supported in settings.items():
            value = optional_section(nemo, name).get(key, supported)
            if value != supported:
                raise ArchiveError(
                    f"{archive.path}: {where}: {name}.{key}: {value!r} is not supported; must be {supported!r}"
                )


def tokenizer_files(archive: NemoArchive, nemo: dict[str, Any], where: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """File names by language, in NeMo's order, which determines the token ids; and each file's bytes by its name."""
    tokenizer = section(archive, nemo, "tokenizer", where)
    if tokenizer.get("type") == "agg":
        parts = section(archive, tokenizer, "langs", f"{where}: tokenizer")
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


def processor(archive: NemoArchive, name: str, content: bytes) -> SentencePieceProcessor:
    try:
        return pieces_from(name, content)
    except TokenizerError as error:
        raise ArchiveError(f"{archive.path}: {error}") from None


def trained_languages(processor: SentencePieceProcessor) -> list[str]:
    """Those of `EUROPEAN` that a tokenizer has a token for."""
    pieces = {processor.IdToPiece(index) for index in range(processor.GetPieceSize())}
    return [language for language in EUROPEAN if f"<|{language}|>" in pieces]
