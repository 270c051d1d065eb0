"""The session object of OpenAI's realtime transcription: its defaults, its updates, and what its fields mean here."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.live.endpointing import Endpointing
from server.text.languages import language_code

PCM_RATES = (8_000, 16_000, 24_000, 48_000)
# If the client ends turns itself, segments still end at pauses of this length.
MANUAL_SILENCE_S = 1.0
# The longest prompt. It is stored and echoed, but not used.
MAX_PROMPT = 10_000


class _Part(BaseModel):
    # Clients send fields that only other servers know.
    model_config = ConfigDict(extra="ignore")


class AudioFormat(_Part):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    @model_validator(mode="after")
    def _has_its_rate(self) -> "AudioFormat":
        if self.type != "audio/pcm":
            self.rate = None
        elif (self.rate or 24_000) not in PCM_RATES:
            raise ValueError(f"rate {self.rate} is not supported; must be one of {', '.join(map(str, PCM_RATES))}")
        else:
            self.rate = self.rate or 24_000
        return self

    @property
    def encoding(self) -> tuple[str, int]:
        """The encoding and sample rate, as RawSound takes them."""
        return {
            "audio/pcm": ("pcm_s16le", self.rate or 0),
            "audio/pcmu": ("ulaw", 8_000),
            "audio/pcma": ("alaw", 8_000),
        }[self.type]


class TranscriptionSettings(_Part):
    model: str | None = None
    language: str | None = None
    prompt: str | None = Field(default=None, max_length=MAX_PROMPT)

    @field_validator("language")
    @classmethod
    def _as_code(cls, value: str | None) -> str | None:
        return language_code(value) if value else None


class TurnDetection(_Part):
    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(0.5, ge=0.0, le=1.0)
    prefix_padding_ms: int = Field(300, ge=0, le=2_000)
    silence_duration_ms: int = Field(500, ge=100, le=5_000)

    @field_validator("threshold", "prefix_padding_ms", "silence_duration_ms", mode="before")
    @classmethod
    def _default_for_null(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value


class NoiseReduction(_Part):
    type: Literal["near_field", "far_field"] = "near_field"


class Input(_Part):
    format: AudioFormat = Field(default_factory=AudioFormat)
    transcription: TranscriptionSettings | None = Field(default_factory=TranscriptionSettings)
    turn_detection: TurnDetection | None = Field(default_factory=lambda: TurnDetection.model_validate({}))
    noise_reduction: NoiseReduction | None = None


class AudioSettings(_Part):
    input: Input = Field(default_factory=Input)


class Session(_Part):
    """With turn_detection None the client ends turns itself, by committing."""

    type: Literal["transcription"] = "transcription"
    audio: AudioSettings = Field(default_factory=AudioSettings)

    def updated(self, change: dict[str, Any]) -> "Session":
        """This session with the fields in `change` updated; null is a value. Raises ValidationError."""
        return Session.model_validate(_merged(self.model_dump(), change))

    @property
    def endpointing(self) -> Endpointing:
        detection = self.audio.input.turn_detection
        if detection is None:
            return Endpointing(silence_s=MANUAL_SILENCE_S)
        return Endpointing(
            threshold=max(0.2, detection.threshold),
            silence_s=detection.silence_duration_ms / 1000,
            padding_s=detection.prefix_padding_ms / 1000,
        )


def _merged(whole: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(whole)
    for name, value in change.items():
        # A format is replaced as a whole: a rate belongs to its type.
        if name != "format" and isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = value
    return merged
