"""The languages of models, and how requests may write them."""

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

# ISO 639-1: what is accepted for a model that does not name its languages.
_TWO_LETTERS = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja "
    "jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb "
    "nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq "
    "sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
_ISO_639_1 = frozenset(_TWO_LETTERS.split())
_CODES = {name: code for code, name in LANGUAGE_NAMES.items()}


def language_code(value: str, param: str = "language") -> str:
    """The ISO 639-1 code of a language as requests may write it: `de`, `DE`, `de-DE`, `de_AT` or `german`.

    `language` may also be `auto`. Raises RequestError, naming the field `param`, for an unknown language.
    """
    name = value.strip().lower()
    if name == AUTO and param == "language":
        return AUTO
    code = _CODES.get(name, name.replace("_", "-").partition("-")[0])
    if code not in _ISO_639_1:
        supported = ", ".join(sorted(LANGUAGE_NAMES))
        raise RequestError(
            f"{param}: {value[:40]!r} is not supported; must be one of {supported}, or another ISO 639-1 code", param
        )
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
