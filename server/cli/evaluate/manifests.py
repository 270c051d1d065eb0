"""What is evaluated: NeMo's manifests, and folders with a .txt beside each audio file."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from server.cli.inputs import AUDIO_SUFFIXES
from server.errors import RequestError, invalid_field
from server.text.languages import Language

TRANSCRIPTION = ("asr", "transcribe")
TRANSLATION = ("ast", "translate", "s2t_translation")


class ManifestError(RequestError):
    """A manifest or dataset that cannot be evaluated. The message names it, and the line or row if there is one."""


@dataclass(frozen=True)
class Utterance:
    """A recording, or a part of one, with its reference.

    name: of the audio as the manifest has it; text: the reference. language, target_language and pnc are None where the
    manifest does not say; offset_s is None for a whole file. record: the manifest's line; place: where it is, for
    errors.
    """

    name: str
    path: Path
    text: str
    language: str | None = None
    target_language: str | None = None
    pnc: bool | None = None
    offset_s: float | None = None
    duration_s: float | None = None
    record: dict[str, Any] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[str, float, str]:
        """Tells the utterances of a manifest apart."""
        return self.name, round(self.offset_s or 0.0, 3), self.translation_target

    @property
    def translation_target(self) -> str:
        """The language to translate into; "" for a transcription."""
        is_translation = self.target_language and self.target_language != self.language
        return self.target_language or "" if is_translation else ""


def _yes_or_no(value: Any) -> Any:
    """NeMo writes yes, no, pnc, nopnc, true and false; some write 1 and 0."""
    return {"pnc": True, "nopnc": False}.get(value, value) if isinstance(value, str) else value


class _Line(BaseModel):
    """One line of a manifest; fields that an evaluation does not need are kept."""

    model_config = ConfigDict(extra="allow")

    audio_filepath: str = Field(min_length=1)
    text: str | None = None
    offset: float | None = Field(None, ge=0)
    duration: float | None = Field(None, gt=0)
    source_lang: Language = Field(None, validation_alias=AliasChoices("source_lang", "lang"))
    target_lang: Language = None
    taskname: Literal["asr", "transcribe", "ast", "translate", "s2t_translation"] | None = None
    pnc: Annotated[bool | None, BeforeValidator(_yes_or_no)] = None


def read_utterances(source: Path) -> tuple[list[Utterance], list[Path]]:
    """The utterances of a manifest or a folder, and the folder's audio files that have no text.

    Raises ManifestError, and OSError for a file that cannot be read.
    """
    if source.is_dir():
        return _folder(source)
    return read_manifest(source), []


def read_manifest(manifest: Path, needs_text: bool = True) -> list[Utterance]:
    """The utterances of a file of JSON lines, whose paths are relative to its folder. needs_text: without a reference,
    a line is an error. Raises ManifestError and OSError.
    """
    utterances = [_utterance(line, place, manifest, needs_text) for line, place in json_lines(manifest)]
    if not utterances:
        raise ManifestError(f"{manifest}: the manifest is empty")
    seen: dict[tuple[str, float, str], str] = {}
    for utterance in utterances:
        if (first := seen.setdefault(utterance.key, utterance.place)) != utterance.place:
            raise ManifestError(f"{utterance.place}: {utterance.name} is on {first.rpartition(', ')[2]} already")
    return utterances


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each object of a file of JSON lines, and its place for errors. Raises ManifestError and OSError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not a text file in UTF-8; supported: JSON lines, and folders") from None
    # Not splitlines: a text may have a line separator of its own within a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError:
            raise ManifestError(f"{place}: not JSON: {line.strip()[:60]!r}") from None
        if not isinstance(record, dict):
            raise ManifestError(f"{place}: must be an object with audio_filepath and text")
        yield record, place


def _utterance(record: dict[str, Any], place: str, manifest: Path, needs_text: bool) -> Utterance:
    try:
        line = _Line.model_validate(record)
    except ValidationError as error:
        raise ManifestError(f"{place}: {invalid_field(error)}") from None
    except RequestError as error:
        raise ManifestError(f"{place}: {error}") from None
    if line.text is None and needs_text:
        raise ManifestError(f"{place}: text is required: it is the reference to compare with")
    utterance = Utterance(
        line.audio_filepath,
        manifest.parent / Path(line.audio_filepath).expanduser(),
        line.text or "",
        line.source_lang,
        line.target_lang,
        line.pnc,
        line.offset,
        line.duration,
        record,
        place,
    )
    if line.taskname in TRANSCRIPTION:
        return replace(utterance, target_language=line.source_lang)
    if line.taskname in TRANSLATION and not utterance.translation_target:
        raise ManifestError(f"{place}: taskname {line.taskname} needs a target_lang other than source_lang")
    return utterance


def _folder(folder: Path) -> tuple[list[Utterance], list[Path]]:
    utterances, without_text = [], []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()):
        text_file = path.with_suffix(".txt")
        if not text_file.is_file():
            without_text.append(path)
            continue
        try:
            text = re.sub(r"\s+", " ", text_file.read_text(encoding="utf-8-sig")).strip()
        except UnicodeDecodeError:
            raise ManifestError(f"{text_file}: not a text file in UTF-8") from None
        # Absolute, since the predictions may be kept in another folder.
        name = str(path.resolve())
        record = {"audio_filepath": name, "text": text}
        utterances.append(Utterance(name, path, text, record=record, place=str(path.parent)))
    if not utterances:
        raise ManifestError(f"{folder}: no audio file with a .txt of the same name beside it")
    return utterances, without_text
