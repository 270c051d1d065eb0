"""The languages of Canary models, and how requests may write them."""

from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from model.task import AUTO
from server.errors import RequestError

LANGUAGE_NAMES = {
    "bg": "bulgarian", "hr": "croatian", "cs": "czech", "da": "danish", "nl": "dutch",
    "en": "english", "et": "estonian", "fi": "finnish", "fr": "french", "de": "german",
    "el": "greek", "hu": "hungarian", "it": "italian", "lv": "latvian", "lt": "lithuanian",
    "mt": "maltese", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sk": "slovak", "sl": "slovenian", "es": "spanish", "sv": "swedish", "uk": "ukrainian",
}  # fmt: skip

_CODES = {name: code for code, name in LANGUAGE_NAMES.items()}


def language_code(value: str, param: str = "language") -> str:
    """The ISO 639-1 code of a language as requests may write it: `de`, `DE`, `de-DE`, `de_AT` or `german`.

    `language` may also be `auto`. Raises RequestError, naming the field `param`, for an unknown language.
    """
    name = value.strip().lower()
    if name == AUTO and param == "language":
        return AUTO
    code = _CODES.get(name, name.replace("_", "-").partition("-")[0])
    if code not in LANGUAGE_NAMES:
        supported = ", ".join(sorted(LANGUAGE_NAMES))
        raise RequestError(f"{param}: {value[:40]!r} is not supported; must be one of {supported}", param)
    return code


def language_pair(language: str | None, target_language: str | None, default: str) -> tuple[str, str | None]:
    """The spoken language and the one to write, as codes: how HTTP, the command line and Python read a request.

    language: None or "" means `default`. A target that is the spoken language asks for no translation, so it becomes
    None: the answer is a plain transcript. Raises RequestError for an unknown language.
    """
    spoken = language_code(language or default)
    target = language_code(target_language, "target_language") if target_language else None
    return spoken, None if target == spoken else target


def _field_as_code(value: str | None, info: ValidationInfo) -> str | None:
    return value and language_code(value, info.field_name or "language")


Language = Annotated[str | None, AfterValidator(_field_as_code)]
"""A pydantic field for a language, converted to its code. An empty string counts as not given."""
