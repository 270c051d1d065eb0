"""Everything that can be set: `CANARY_*` in the environment or in `.env`; the command line goes before both."""

import ipaddress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

VERSION = version("canary-server")

Dtype = Literal["float32", "bfloat16", "float16"]


def _split(value: Any) -> Any:
    """What the environment writes with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


# The environment and the command line write text.
Bits = Annotated[Literal[4, 8], BeforeValidator(lambda value: {"8": 8, "4": 4}.get(value, value))]
Folder = Annotated[Path | None, BeforeValidator(lambda value: Path(value).expanduser() if value else None)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Seconds end in `_s`, megabytes (10⁶) in `_mb`. Several values are separated by commas."""

    model_config = SettingsConfigDict(env_prefix="CANARY_", env_file=".env", extra="ignore", frozen=True)

    model: Names = Field(
        ("toy",),
        min_length=1,
        description="Models to serve: known names, Hugging Face repositories, .nemo files or converted folders. "
        "The first is the default and is loaded at the start, the others on first use.",
    )
    dtype: Dtype | None = Field(None, description="What the weights are held in; by default what suits the device.")
    quantize: Bits | None = Field(
        None, description="Pack the weights of large linear layers into 8 or 4 bits, when a model is converted."
    )
    cache: Folder = Field(
        None,
        description="Where converted models are kept; by default ~/.cache/canary-server, on a Mac "
        "~/Library/Caches/canary-server.",
    )
    idle_unload_s: float | None = Field(
        None, gt=0, description="Give a model's memory back after so long without a request; by default never."
    )
    load_wait_s: float = Field(
        20.0, ge=0, description="How long a request waits for its model to be loaded before it is answered 503."
    )
    default_language: str = Field(
        "auto", description="The language of a request that names none; auto finds it out from the sound."
    )

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="The port; 0 takes a free one.")
    api_keys: Secrets = Field((), description="Keys of which every request must bring one, as a Bearer token.")
    public_without_key: bool = Field(
        False, description="Listen on an address that others can reach although there are no API keys."
    )
    allowed_hosts: Names = Field(
        (), description="Host names to be called by, besides localhost, the listening address and IP addresses."
    )
    allowed_origins: Names = Field(
        (), description="Web origins, such as https://app.example, whose pages may use the server."
    )

    max_upload_mb: float = Field(1074.0, gt=0, description="The largest body (1 GiB).")
    max_audio_s: float = Field(14_400.0, gt=0, description="The longest audio (4 hours).")
    max_sample_rate: int = Field(192_000, ge=16_000, description="The highest sample rate, in Hz.")
    max_channels: int = Field(8, ge=1, description="The most channels.")

    pass_s: float | None = Field(
        None,
        ge=2,
        le=40,
        description="Longer audio is cut into pieces of at most so long; by default what the model is good for.",
    )
    loop_guard: bool = Field(
        True, description="Decode what repeats itself without end, or was passed over, again in another way."
    )

    # The usual limits: Netflix's timed text style guide.
    subtitle_line_length: int = Field(42, ge=1, description="The most characters in a line of srt and vtt.")
    subtitle_lines: int = Field(2, ge=1, description="The most lines of a subtitle.")
    subtitle_min_s: float = Field(1.0, ge=0, description="How long a subtitle stays at least, if none follows.")
    subtitle_max_s: float = Field(7.0, gt=0, description="How long a subtitle stays at most.")
    subtitle_reading_speed: float = Field(17.0, gt=0, description="Characters of subtitles that are read in a second.")

    max_queue: int = Field(32, ge=1, description="Passes that may wait for a model; the next one is answered 503.")
    max_rows: int = Field(16, ge=1, description="Texts, and hypotheses of a beam, that a model decodes side by side.")
    max_connections: int = Field(256, ge=1, description="Connections at once; the next one is answered 503.")
    max_message_mb: float = Field(1.0, gt=0, description="The largest websocket message.")
    keep_alive_s: int = Field(10, ge=1, description="How long an idle connection is kept.")
    shutdown_s: int = Field(30, ge=0, description="How long requests may go on after Ctrl-C.")

    live_policy: Literal["alignatt", "agreement"] = Field(
        "alignatt", description="What decides that a caption stays: AlignAtt or LocalAgreement-2."
    )
    live_step_s: float = Field(0.4, gt=0.05, description="New sound between two looks at what is being said.")
    live_idle_s: float = Field(60.0, gt=0, description="A live session without a message for so long is closed.")
    max_live_sessions: int = Field(16, ge=1, description="Live sessions at once; the next one is closed at once.")
    max_live_rate: float = Field(8.0, ge=1, description="Sound taken from a live session, in times real time.")
    max_live_buffer_s: float = Field(
        30.0, gt=1, description="Sound of a live session that may wait for the model; then no more is read of it."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged at least.")
    log_format: Literal["text", "json"] = Field("text", description="Lines to read, or one JSON object a line.")

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
                raise ValueError(
                    f"{origin!r} is not an origin; write it as https://app.example or http://localhost:3000"
                )
        return origins

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(not key.get_secret_value().isascii() or len(key.get_secret_value()) < 8 for key in keys):
            raise ValueError("a key must have at least 8 characters, all ASCII")
        return keys

    @property
    def is_public(self) -> bool:
        """Whether others than this machine can reach the listening address."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"


def settings_table() -> str:
    """Every setting as rows of a Markdown table, as README has it."""
    rows = ["| flag | variable | default | what it is |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        written = "" if default is None or default == "" else f"`{str(default).lower()}`"
        rows.append(f"| `{flag(name)}` | `CANARY_{name.upper()}` | {written} | {field.description} |")
    return "\n".join(rows) + "\n"


def flag(name: str) -> str:
    """The option of `canary serve` for a setting."""
    singular = {"api_keys": "api_key", "allowed_hosts": "allowed_host", "allowed_origins": "allowed_origin"}
    return "--" + singular.get(name, name).removesuffix("_s").replace("_", "-")
