"""The service's settings: a file .env that only its user can read, since it may hold keys."""

import os
import re
from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from server.errors import invalid_field
from server.settings import Settings, variable

# Values that are the same with and without quotes, to python-dotenv and to systemd.
_PLAIN = re.compile(r"[\w./:,@+=-]*", re.ASCII)
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?(CANARY_\w+)\s*=")


def given_settings(settings: Settings) -> dict[str, str]:
    """The settings that are not defaults, as variables. Paths are absolute, since the service runs elsewhere."""
    return {variable(name): _text(name, getattr(settings, name)) for name in sorted(settings.model_fields_set)}


def _text(name: str, value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(_text(name, each) for each in value)
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value.absolute())
        case str() if name == "model":
            return _absolute_model(value)
    return str(value)


def _absolute_model(source: str) -> str:
    """A model's file or folder by its absolute path, a name as it is."""
    from convert.download import MODELS

    path = Path(source).expanduser()
    return str(path.absolute()) if source not in MODELS and path.exists() else source


def merged(old: str, values: dict[str, str]) -> str:
    """The file with these values: lines of other settings and comments stay.

    Raises typer.BadParameter for a value that cannot be written.
    """
    kept = [line for line in old.splitlines() if not ((set_ := _ASSIGNMENT.match(line)) and set_[1] in values)]
    lines = [*kept, *(f"{name}={_quoted(name, value)}" for name, value in values.items())]
    return "".join(f"{line}\n" for line in lines)


def _quoted(name: str, value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    # Neither reader has an escape that the other one knows.
    if re.search(r"['\\\n]|\$\{", value):
        raise typer.BadParameter(f"{name}: a service's setting cannot have a quote, backslash, line break or ${{ in it")
    return f"'{value}'"


def effective_settings(file: Path) -> Settings:
    """What the service will run with. A bad value is a usage error that names the file."""
    try:
        return _OnlyFile(_env_file=file)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise typer.BadParameter(f"{file}: {invalid_field(error)}") from None


class _OnlyFile(Settings):
    """Settings from the file alone: the service does not have this terminal's environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (dotenv_settings,)


def write_private(file: Path, content: str) -> None:
    """Replace the file in one step. Nobody else can ever read it."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as private:
        private.write(content)
    part.replace(file)
