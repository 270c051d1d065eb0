"""Everything that can be set: `CANARY_*` in the environment or in `.env`; the command line goes before both."""

from importlib.metadata import version
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

VERSION = version("canary-server")

Dtype = Literal["float32", "bfloat16", "float16"]


class Settings(BaseSettings):
    """Seconds end in `_s`, megabytes (10⁶) in `_mb`."""

    model_config = SettingsConfigDict(env_prefix="CANARY_", env_file=".env", extra="ignore")

    model: str = Field("toy", description="a known name, a Hugging Face repository, a .nemo file or a converted folder")
    dtype: Dtype | None = Field(None, description="what the weights are held in; by default what suits the device")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    default_language: str = Field("en", description="assumed, and said to be, when a request names none")

    # One pass through the model is good to about 40 s.
    max_audio_s: float = Field(40.0, gt=0)
    max_upload_mb: float = Field(100.0, gt=0)
    max_sample_rate: int = Field(192_000, ge=16_000)
    max_channels: int = Field(8, ge=1)

    max_queue: int = Field(32, ge=1, description="requests that may wait; the next one is answered 503")
    max_rows: int = Field(16, ge=1, description="texts, and hypotheses of a beam, that are decoded side by side")
    max_connections: int = Field(256, ge=1)
    max_message_mb: float = Field(1.0, gt=0, description="one websocket message")
    keep_alive_s: int = Field(10, ge=1)
    shutdown_s: int = Field(30, ge=0, description="how long requests that wait or run may go on after Ctrl-C")
