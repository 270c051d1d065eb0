"""Warnings that come with a transcript: the text is there, but it may not be what the caller wanted."""

from dataclasses import dataclass, field
from typing import Any

from server.text.languages import LANGUAGE_NAMES


@dataclass(frozen=True)
class TranscriptionWarning:
    """`code` is for programs, `message` for people; `details` are further fields of the JSON form."""

    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, **self.details}


TRUNCATED = TranscriptionWarning("truncated", "The audio file is cut off; the text ends where the file does.")


def language_mismatch(language: str, detected: str, probability: float) -> TranscriptionWarning:
    """The speech is not in the `language` that the request or the settings name. Canary then translates silently."""
    given, spoken = (LANGUAGE_NAMES.get(code, code).title() for code in (language, detected))
    return TranscriptionWarning(
        "language_mismatch",
        f"The speech sounds like {spoken} (probability {probability:.2f}), but the language is set to {given}, "
        f"so the text may be a translation. Set language to {detected!r} or 'auto'.",
        {"language": language, "detected_language": detected, "language_probability": round(probability, 4)},
    )
