"""All settings: `CANARY_*` in the environment or in `.env`; options of the command line take precedence."""

import ipaddress
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

VERSION = version("canary-server")

Dtype = Literal["float32", "bfloat16", "float16"]


def _split(value: Any) -> Any:
    """Environment variables separate values by commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


# The environment and the command line give text.
Bits = Annotated[Literal[4, 8], BeforeValidator(lambda value: {"8": 8, "4": 4}.get(value, value))]
Folder = Annotated[Path | None, BeforeValidator(lambda value: Path(value).expanduser() if value else None)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


def _about(group: str) -> Any:
    """`Field` for the settings of a group, which `serve --help` and the documents list under its name."""
    return partial(Field, json_schema_extra={"group": group})


_models = _about("Models")
_network = _about("Network and access")
_files = _about("Audio files")
_subtitles = _about("Subtitles")
_capacity = _about("Capacity")
_recovery = _about("Recovery")
_live = _about("Live captions")
_logs = _about("Logs")


class Settings(BaseSettings):
    """Names end in their unit: `_s` for seconds, `_mb` for megabytes (10⁶ bytes). Commas separate several values."""

    model_config = SettingsConfigDict(env_prefix="CANARY_", env_file=".env", extra="ignore", frozen=True)

    model: Names = _models(
        ("toy",),
        min_length=1,
        description="Models to serve: known names, Hugging Face repositories, .nemo files or converted folders. "
        "The first is the default and is loaded at start-up, the others on first use.",
    )
    dtype: Dtype | None = _models(
        None, description="Data type of the weights. By default 16 bits on a GPU and float32 on a CPU."
    )
    quantize: Bits | None = _models(
        None, description="Quantize the weights of large linear layers to this many bits when converting a model."
    )
    cache: Folder = _models(
        None,
        description="Folder for converted models. By default ~/.cache/canary-server, on a Mac "
        "~/Library/Caches/canary-server.",
    )
    idle_unload_s: float | None = _models(
        None, gt=0, description="Unload a model after this many seconds without a request. By default never."
    )
    load_wait_s: float = _models(
        20.0, ge=0, description="Seconds that a request waits for its model to load before it gets 503."
    )
    default_language: str = _models(
        "auto", description="Language of requests that name none; auto detects it from the audio."
    )

    host: str = _network("127.0.0.1", description="Address to listen on.")
    port: int = _network(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_keys: Secrets = _network(
        (),
        description="API keys. If there are any, every request must send one as a Bearer token. "
        "The option is deprecated: other users of the machine can see it.",
    )
    api_key_file: Folder = _network(
        None, description="File of further API keys, one on each line. Lines that begin with # are comments."
    )
    public_without_key: bool = _network(
        False, description="Allow listening on an address that other machines can reach without an API key."
    )
    allowed_hosts: Names = _network(
        (),
        description="Host names that requests may use, besides localhost, the listening address and IP addresses.",
    )
    allowed_origins: Names = _network(
        (), description="Web origins, such as https://app.example, whose pages may call the server."
    )

    max_upload_mb: float = _files(1074.0, gt=0, description="Largest request body, in MB (1074 MB are 1 GiB).")
    max_audio_s: float = _files(14_400.0, gt=0, description="Longest audio, in seconds (14400 are 4 hours).")
    max_sample_rate: int = _files(192_000, ge=16_000, description="Highest sample rate, in Hz.")
    max_channels: int = _files(8, ge=1, description="Highest number of channels.")
    pass_s: float | None = _files(
        None,
        ge=2,
        le=40,
        description="Longest piece, in seconds, that long audio is cut into. By default as long as the model allows.",
    )
    loop_guard: bool = _files(
        True, description="Decode again, in another way, where the text repeats itself endlessly or speech has no text."
    )

    # Defaults from Netflix's timed text style guide.
    subtitle_line_length: int = _subtitles(42, ge=1, description="Longest line in srt and vtt, in characters.")
    subtitle_lines: int = _subtitles(2, ge=1, description="Maximum number of lines in a subtitle.")
    subtitle_min_s: float = _subtitles(
        1.0, ge=0, description="Shortest time a subtitle stays, in seconds, unless the next one follows sooner."
    )
    subtitle_max_s: float = _subtitles(7.0, gt=0, description="Longest time a subtitle stays, in seconds.")
    subtitle_reading_speed: float = _subtitles(17.0, gt=0, description="Reading speed, in characters per second.")

    max_queue: int = _capacity(
        32, ge=1, description="Maximum number of pieces of audio that wait for a model; further requests get 503."
    )
    max_wait_s: float = _capacity(
        600.0,
        gt=0,
        description="Seconds after its upload that a request may wait before the model starts on it; "
        "then it gets 503. Live sessions are not concerned.",
    )
    max_queue_audio_s: float = _capacity(
        3600.0, gt=0, description="Seconds of audio that may wait for a model; further requests get 503."
    )
    max_rows: int = _capacity(
        16, ge=1, description="Maximum number of rows (texts, or hypotheses of a beam search) in one batch."
    )
    max_connections: int = _capacity(
        256, ge=1, description="Maximum number of connections at a time; further ones get 503."
    )
    max_connections_per_address: int = _capacity(
        64,
        ge=1,
        description="Maximum number of connections from one address, if other machines can reach the server; "
        "further ones get 503.",
    )
    max_message_mb: float = _capacity(1.0, gt=0, description="Largest websocket message, in MB.")
    keep_alive_s: int = _capacity(10, ge=1, description="Seconds before an idle connection is closed.")
    shutdown_s: int = _capacity(30, ge=0, description="Seconds that running requests have to finish after Ctrl-C.")

    supervise: bool = _recovery(
        False,
        description="Run the server as a child process, and start it again when it crashes or hangs; connections wait "
        "meanwhile.",
    )

    live_policy: Literal["alignatt", "agreement"] = _live(
        "alignatt", description="Policy that decides when a Canary's caption is final: AlignAtt or LocalAgreement-2."
    )
    live_step_s: float = _live(
        0.4, gt=0.05, description="Seconds of new audio before the model runs again, while it keeps up."
    )
    max_live_step_s: float = _live(
        2.0,
        gt=0.05,
        description="Longest step, in seconds, while the model is busy. Further sessions are refused when the open "
        "ones could no longer keep to it.",
    )
    live_idle_s: float = _live(60.0, gt=0, description="Seconds without a message before a live session is closed.")
    max_live_sessions: int = _live(
        32,
        ge=1,
        description="Maximum number of live sessions at a time, however fast the model is; further ones are refused.",
    )
    max_live_rate: float = _live(
        8.0, ge=1, description="Fastest rate at which a session may send audio; 1 is real time."
    )
    max_live_buffer_s: float = _live(
        30.0, gt=1, description="Seconds of a session's audio that may wait for the model before reading pauses."
    )

    log_level: Literal["debug", "info", "warning", "error"] = _logs("info", description="Lowest level to log.")
    log_format: Literal["text", "json"] = _logs("text", description="Plain text, or one JSON object per line.")

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
        if not all(_is_key(key.get_secret_value()) for key in keys):
            raise ValueError(_KEY_RULE)
        return keys

    @field_validator("api_key_file")
    @classmethod
    def _has_keys(cls, path: Path | None) -> Path | None:
        if path and not _keys_in(path):
            raise ValueError(f"{path} has no keys")
        return path

    @property
    def accepted_keys(self) -> tuple[SecretStr, ...]:
        """All API keys: those of `api_keys` and of `api_key_file`."""
        return (*self.api_keys, *(_keys_in(self.api_key_file) if self.api_key_file else ()))

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the listening address."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"


_KEY_RULE = "a key must have at least 8 characters, all of them ASCII"


def _is_key(text: str) -> bool:
    return text.isascii() and len(text) >= 8


def _keys_in(path: Path) -> tuple[SecretStr, ...]:
    """The keys in a file. Raises ValueError, which names the line but not what is on it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if wrong := [number for number, key in keys if not _is_key(key)]:
        raise ValueError(f"{path}, line {wrong[0]}: {_KEY_RULE}")
    return tuple(SecretStr(key) for _, key in keys)


def settings_table() -> str:
    """Every setting in Markdown tables, one per group, as the documents show them."""
    tables = []
    for name, fields in groupby(Settings.model_fields.items(), lambda item: group(item[1])):
        rows = [f"**{name}**", "", "| flag | variable | default | what it is |", "|---|---|---|---|"]
        for setting, field in fields:
            default = f"`{default_text(field)}`" if default_text(field) else ""
            values = ", ".join(f"`{value}`" for value in choices(field))
            description = f"{field.description} One of {values}." if values else field.description
            rows.append(f"| `{flag(setting)}` | `{variable(setting)}` | {default} | {description} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables) + "\n"


def flag(name: str) -> str:
    """The option of `canary serve` for a setting."""
    singular = {"api_keys": "api_key", "allowed_hosts": "allowed_host", "allowed_origins": "allowed_origin"}
    return "--" + singular.get(name, name).removesuffix("_s").replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"CANARY_{name.upper()}"


def group(field: FieldInfo) -> str:
    """The heading that a setting is listed under."""
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["group"])


def default_text(field: FieldInfo) -> str:
    """A setting's default as a user would type it; "" if it has none."""
    match field.default:
        case None:
            return ""
        case tuple() as values:
            return ",".join(values)
        case bool() as value:
            return str(value).lower()
        case int() | float() as number:
            return f"{number:.10g}"
        case text:
            return str(text)


def value_type(field: FieldInfo) -> Any:
    """A setting's type without None and pydantic's markers: int, float, bool, str, a Literal or a tuple."""
    kind = field.annotation
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = get_args(kind)[0]
    return kind


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values that a setting can have, as text; empty if they are not a list."""
    kind = value_type(field)
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
