"""A converted folder on disk: its name, and files that survive a power failure, checked before it gets that name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from convert.errors import ConversionError
from model import digests
from model.canary.prompt import REQUIRED_TOKENS
from model.config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ConfigError,
    TokenizerConfig,
    WeightsError,
    read_values,
    section_from,
)
from model.tokenizer import TokenizerError, load_tokenizer

Dtype = Literal["float32", "bfloat16", "float16"]
Bits = Literal[4, 8]
DEFAULT_DTYPE: Dtype = "float32"
# Called with the stage ("downloading" or "converting"), how many bytes or tensors are done, and the total.
OnLoadProgress = Callable[[str, int, int], None]


def folder_name(model: str, dtype: str, quantize: int | None) -> str:
    """The folder's name: a model has one folder per precision."""
    return f"{model}-{dtype}" + (f"-q{quantize}" if quantize else "")


def is_converted(folder: Path) -> bool:
    """Whether the folder holds a finished conversion."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def write_file(path: Path, content: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_digests(folder: Path, archive: Path) -> None:
    """Write the digests of all files below `folder`, and of the archive that they were converted from."""
    write_file(folder / digests.DIGESTS_FILE, digests.listed(folder, archive).encode())


def check_loads(folder: Path, tensor_names: list[str]) -> None:
    """Load what was written, but for the tensors' values, as the model will. Raises ConversionError.

    tensor_names: all that the weights must have.
    """
    try:
        values = read_values(folder)
        writes_text = values.get("family") == "canary" and "decoder" in values
        tokenizer = section_from(TokenizerConfig, values["tokenizer"], "tokenizer")
        load_tokenizer(folder, tokenizer, REQUIRED_TOKENS if writes_text else ())
        with safe_open(folder / WEIGHTS_FILE, "np") as file:
            if sorted(file.keys()) != sorted(tensor_names):
                raise WeightsError(f"{WEIGHTS_FILE} does not have the tensors that were written")
    except (ConfigError, TokenizerError, WeightsError, SafetensorError) as error:
        raise ConversionError(f"the converted model cannot be loaded: {error}") from None


def put_in_place(written: Path, output: Path) -> None:
    """Rename the folder `written` to `output`, and remove what was there."""
    sync_folder(written)
    if output.exists():
        # With a name by which the next conversion removes it, if this process is killed before it does.
        former = written.with_name(f"{written.name}-former")
        os.rename(output, former)
        os.rename(written, output)
        shutil.rmtree(former)
    else:
        os.rename(written, output)
    sync_folder(output.parent)
