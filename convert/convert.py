"""`.nemo` archive → a folder with `config.json`, `model.safetensors` and the SentencePiece files.

The folder is written under another name beside its place and renamed when whole, so one that is there is finished.
"""

import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator
from tqdm import tqdm

from convert.cache import locked
from convert.configuration import aligner_config, canary_config
from convert.download import nemo_file
from convert.errors import ConversionError
from convert.nemo import ALIGNER_CONFIG, ALIGNER_WEIGHTS, WEIGHTS, NemoArchive
from convert.quantize import fits, is_large, packed, packed_layout
from convert.safetensors_writer import write_safetensors
from convert.weights import Stored, Table, aligner_table, canary_table, convert_tensors, dtype_of
from model.config import ALIGNER_DIR, CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, QuantizationConfig

logger = logging.getLogger(__name__)

OnLoadProgress = Callable[[str, int, int], None]
Dtype = Literal["float32", "bfloat16", "float16"]
Bits = Literal[4, 8]
DEFAULT_DTYPE: Dtype = "float32"
DEFAULT_GROUP_SIZE = 64


class ConversionConfig(BaseModel):
    """What to convert, and how. One field for each option of `canary convert`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | Path
    """A known name, a Hub repository, or a `.nemo` file."""
    output: Path | None = None
    """The folder to make; by default the model's name and precision, here."""
    dtype: Dtype = DEFAULT_DTYPE
    quantize: Bits | None = None
    """Bits that the weights of large linear layers are packed into; by default they are not."""
    group_size: Literal[32, 64, 128] | None = None
    """Weights that share a scale and an offset; by default 64."""
    preserve_keys: bool = False
    """Keep NeMo's tensor names and layouts, for debugging; such a folder cannot be served."""
    encoder_only: bool = False
    upload_repo: str | None = None
    """A Hub repository, `org/name`, to publish the folder to."""
    verbose: bool = False
    """Name each tensor as it is written."""
    progress: OnLoadProgress | None = None
    """Called with a stage ("downloading" or "converting"), bytes or tensors done, and their total."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.group_size and not self.quantize:
            raise ValueError(f"group_size {self.group_size} is of use only with quantize")
        if self.quantize and self.preserve_keys:
            raise ValueError("quantize and preserve_keys exclude each other: NeMo has no packed tensors")
        return self

    @property
    def quantization(self) -> QuantizationConfig | None:
        return QuantizationConfig(self.quantize, self.group_size or DEFAULT_GROUP_SIZE) if self.quantize else None


def convert(config: ConversionConfig, cache_dir: Path | None = None) -> Path:
    """The finished folder. Raises ConversionError; then nothing is left where the folder would have been.

    cache_dir: where the lock lies, in place of the default.
    """
    output = _output(config)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConversionError(f"{output} already exists; remove it or name another folder")
    convert_once(config, cache_dir)
    if config.upload_repo:
        from convert.upload import upload

        upload(output, config.upload_repo, str(config.source))
    return output


def convert_once(config: ConversionConfig, cache_dir: Path | None = None) -> Path:
    """The finished folder, as it is if it is there; of several processes that ask at once, one makes it.

    cache_dir: where the lock lies, in place of the default.
    """
    archive = nemo_file(str(config.source), config.progress)
    output = _output(config)
    with locked(output, cache_dir):
        if not is_converted(output):
            _write_folder(archive, output, config)
    return output


def _output(config: ConversionConfig) -> Path:
    name = Path(str(config.source).partition("@")[0]).name.removesuffix(".nemo")
    # Not the name alone: where a model is asked for, that means the one on the Hub.
    return Path(config.output or folder_name(name, config.dtype, config.quantize)).expanduser().absolute()


def folder_name(model: str, dtype: str, quantize: int | None) -> str:
    """One for each precision of a model."""
    return f"{model}-{dtype}" + (f"-q{quantize}" if quantize else "")


def is_converted(folder: Path) -> bool:
    """Whether the folder holds a finished conversion."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def _write_folder(archive: Path, output: Path, config: ConversionConfig) -> None:
    """Write a sibling of the output folder and rename it; whatever happens, no sibling stays behind."""
    pattern = f".{output.name}.partial-"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for stale in output.parent.iterdir():
            if stale.name.startswith(pattern):  # of a process that was killed: the lock is ours
                shutil.rmtree(stale)
        partial = output.parent / f"{pattern}{os.getpid()}"
        partial.mkdir()
        try:
            _write_models(archive, partial, config)
            _sync(partial)
            os.rename(partial, output)
            _sync(output.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise ConversionError(f"{output} cannot be written: {error.strerror or error}") from None


# A tensor's name, dtype and shape.
Layout = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """One folder of a conversion: the model itself, or the aligner within it."""

    folder: Path
    config: dict[str, Any]
    tokenizer_files: dict[str, bytes]
    tensors: Mapping[str, Stored]
    table: Table


def _write_models(archive: Path, folder: Path, config: ConversionConfig) -> None:
    with NemoArchive(archive, scratch=folder) as nemo:
        parts = _parts(nemo, folder, config)
        for part in parts:
            part.table.check(part.tensors)
        total, done = sum(len(part.table.rows) for part in parts), itertools.count(1)
        with tqdm(total=total, desc="converting", unit=" tensors", disable=None, leave=False) as bar:

            def report() -> None:
                bar.update()
                if config.progress:
                    config.progress("converting", next(done), total)

            for part in parts:
                _write_part(part, config, report)


def _parts(nemo: NemoArchive, folder: Path, config: ConversionConfig) -> list[Part]:
    def chosen(table: Table) -> Table:
        return table.preserved() if config.preserve_keys else table

    quantization = asdict(config.quantization) if config.quantization else None
    name = nemo.path.name.removesuffix(".nemo")
    tensors = nemo.tensors(WEIGHTS)
    model, files = canary_config(nemo, tensors, name, config.dtype)
    values = {"family": "canary", **asdict(model), "quantization": quantization}
    if config.encoder_only:
        tensors = {key: tensors[key] for key in tensors if key.startswith(("preprocessor.", "encoder."))}
        del values["decoder"], values["decoding"]
    parts = [Part(folder, values, files, tensors, chosen(canary_table(model, config.encoder_only)))]
    if ALIGNER_CONFIG in nemo and not config.encoder_only:
        aligner, files = aligner_config(nemo, config.dtype)
        tensors = nemo.tensors(ALIGNER_WEIGHTS)
        values = {**asdict(aligner), "quantization": quantization}
        parts.append(Part(folder / ALIGNER_DIR, values, files, tensors, chosen(aligner_table(aligner))))
    return parts


def _write_part(part: Part, config: ConversionConfig, report: Callable[[], None]) -> None:
    part.folder.mkdir(exist_ok=True)
    for name, content in part.tokenizer_files.items():
        _write(part.folder / name, content)
    shape = part.table.shape
    layout = [(row.target, dtype_of(row.target, config.dtype), shape(row.shape)) for row in part.table.rows]
    tensors = convert_tensors(part.tensors, part.table, config.dtype)
    tensors = _reported(tensors, part.table, config.verbose, report)
    if config.quantization:
        layout, tensors = _quantized(layout, tensors, config.quantization)
    write_safetensors(part.folder / WEIGHTS_FILE, layout, tensors)
    values = {"format_version": FORMAT_VERSION, **part.config}
    if config.preserve_keys:
        values["preserved_keys"] = True
    _write(part.folder / CONFIG_FILE, json.dumps(values, indent=2, ensure_ascii=False).encode())
    _sync(part.folder)


def _quantized(
    layout: list[Layout], tensors: Iterator[tuple[str, Any]], quantization: QuantizationConfig
) -> tuple[list[Layout], Iterator[tuple[str, Any]]]:
    """The same with the weights of large layers packed; those that the groups do not fit are kept, which is said."""
    large = {name: shape for name, _, shape in layout if is_large(name)}
    chosen = {name for name, shape in large.items() if fits(shape, quantization)}
    if kept := sorted(large.keys() - chosen):
        logger.warning(
            "%d of %d large layers are kept as they are: groups of %d do not fill a row of %s %s",
            *(len(kept), len(large), quantization.group_size, kept[0], large[kept[0]]),
        )

    def streamed() -> Iterator[tuple[str, Any]]:
        for name, tensor in tensors:
            if name in chosen:
                names = [each for each, *_ in packed_layout(name, "", tuple(tensor.shape), quantization)]
                yield from zip(names, packed(tensor, quantization), strict=True)
            else:
                yield name, tensor

    packed_or_not = [packed_layout(*each, quantization) if each[0] in chosen else [each] for each in layout]
    return list(itertools.chain.from_iterable(packed_or_not)), streamed()


def _reported(
    tensors: Iterator[tuple[str, Any]], table: Table, verbose: bool, report: Callable[[], None]
) -> Iterator[tuple[str, Any]]:
    """The same tensors; `report` is called as each has been written."""
    for row, (name, tensor) in zip(table.rows, tensors, strict=True):
        if verbose:
            sources = ", ".join(source for source, _ in row.sources)
            tqdm.write(f"{name} {tuple(tensor.shape)} <- {sources}", file=sys.stderr)
        yield name, tensor
        report()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make a folder's entries last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
