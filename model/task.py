"""What a model is asked to do with an audio, for every family."""

from dataclasses import dataclass

TIMESTAMPS = ("none", "segment", "word")
# The language of a task that detects it from the audio.
AUTO = "auto"


class TaskError(ValueError):
    """The loaded model cannot do this. `param` is the field at fault."""

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


class CanaryOnlyError(TaskError):
    """Of all families, only Canary does this."""


class LanguagePairError(TaskError):
    """The model does not translate between these two languages."""


@dataclass(frozen=True)
class Task:
    """One text to write from an audio. `target_language` None means the spoken language; another means translation.

    language: ISO 639-1, or AUTO. timestamps: one of TIMESTAMPS. context: text that helps, such as names.
    """

    language: str = "en"
    target_language: str | None = None
    pnc: bool = True
    timestamps: str = "none"
    context: str = ""

    @property
    def target(self) -> str:
        return self.target_language or self.language

    @property
    def is_translation(self) -> bool:
        return self.target != self.language
