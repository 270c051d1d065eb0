"""`.nemo` archive → a folder with `config.json`, `model.safetensors`, the SentencePiece files and `digests.json`.

The folder is written under a temporary name beside its final place, and renamed once what was written can be loaded:
so it is never half done.
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

from convert import canary, parakeet
from convert.cache import locked
from convert.configuration import family_of
from convert.download import nemo_file
from convert.errors import ConversionError
from convert.folder import (
    DEFAULT_DTYPE,
    Bits,
    Dtype,
    OnLoadProgress,
    check_loads,
    folder_name,
    is_converted,
    put_in_place,
    sync_folder,
    write_digests,
    write_file,
)
from convert.nemo import ALIGNER_CONFIG, ALIGNER_WEIGHTS, WEIGHTS, NemoArchive
from convert.quantize import fits, is_large, packed, packed_specs
from convert.weights import LazyTensor, Table, convert_tensors, dtype_of
from model.config import ALIGNER_DIR, CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, QuantizationConfig
from model.safetensors_writer import write_safetensors

logger = logging.getLogger(__name__)

DEFAULT_GROUP_SIZE = 64


class ConversionConfig(BaseModel):
    """What to convert and how. One field per option of `canary convert`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | Path
    """A known model name, a Hub repository or a `.nemo` file."""
    output: Path | None = None
    """The folder to create. Default: a folder in the working directory, named after the model and its precision."""
    dtype: Dtype = DEFAULT_DTYPE
    quantize: Bits | None = None
    """Quantize the weights of large linear layers to this many bits. Default: no quantization."""
    group_size: Literal[32, 64, 128] | None = None
    """How many quantized weights share a scale and an offset. Default: 64."""
    preserve_keys: bool = False
    """Keep NeMo's tensor names and layouts, for debugging. The resulting folder cannot be served."""
    encoder_only: bool = False
    """Convert only the preprocessor and the encoder."""
    upload_repo: str | None = None
    """A Hub repository, `org/name`, to publish the folder to."""
    verbose: bool = False
    """Print the name of each tensor as it is written."""
    progress: OnLoadProgress | None = None
    """Called with the stage ("downloading" or "converting"), how many bytes or tensors are done, and the total."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.group_size and not self.quantize:
            raise ValueError(f"group_size {self.group_size} can be used only with quantize")
        if self.quantize and self.preserve_keys:
            raise ValueError("quantize and preserve_keys exclude each other: NeMo has no quantized tensors")
        return self

    @property
    def quantization(self) -> QuantizationConfig | None:
        return QuantizationConfig(self.quantize, self.group_size or DEFAULT_GROUP_SIZE) if self.quantize else None


def convert(config: ConversionConfig, cache_dir: Path | None = None) -> Path:
    """Convert a model into a new folder, and return that folder.

    cache_dir: where to keep the lock, instead of the default. Raises ConversionError and then leaves no folder behind.
    """
    output = _output_folder(config)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConversionError(f"{output} already exists; remove it or choose another folder")
    convert_once(config, cache_dir)
    if config.upload_repo:
        from convert.upload import upload

        upload(output, config.upload_repo, str(config.source))
    return output


def convert_once(
    config: ConversionConfig, cache_dir: Path | None = None, may_stay: Callable[[Path], bool] = is_converted
) -> Path:
    """Like `convert`, but keep an existing folder that `may_stay`, and replace another.

    Of several processes at once, only one converts. cache_dir: where to keep the lock, instead of the default.
    """
    archive = nemo_file(str(config.source), config.progress)
    output = _output_folder(config)
    with locked(output, cache_dir):
        if not may_stay(output):
            _write_folder(archive, output, config)
    return output


def _output_folder(config: ConversionConfig) -> Path:
    name = Path(str(config.source).partition("@")[0]).name.removesuffix(".nemo")
    # The precision is added because the bare name, given as a model, means the one on the Hub.
    return Path(config.output or folder_name(name, config.dtype, config.quantize)).expanduser().absolute()


def _write_folder(archive: Path, output: Path, config: ConversionConfig) -> None:
    """Write a temporary folder beside the output and rename it, replacing a folder that is there.

    The temporary folder is removed on any failure; the folder that it would replace is then still there.
    """
    pattern = f".{output.name}.partial-"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for stale in output.parent.iterdir():
            if stale.name.startswith(pattern):  # left by a killed process: we hold the lock
                shutil.rmtree(stale)
        partial = output.parent / f"{pattern}{os.getpid()}"
        partial.mkdir()
        try:
            _write_models(archive, partial, config)
            write_digests(partial, archive)
            put_in_place(partial, output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise ConversionError(f"cannot write {output}: {error.strerror or error}") from None


# A tensor's name, dtype and shape.
TensorSpec = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """One folder to write: the model itself, or the aligner inside it."""

    folder: Path
    config: dict[str, Any]
    tokenizer_files: dict[str, bytes]
    tensors: Mapping[str, LazyTensor]
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
    def named(table: Table) -> Table:
        return table.with_nemo_names() if config.preserve_keys else table

    quantization = asdict(config.quantization) if config.quantization else None
    name = nemo.path.name.removesuffix(".nemo")
    tensors = nemo.tensors(WEIGHTS)
    family = family_of(nemo)
    if family == "parakeet":
        model, files = parakeet.parakeet_config(nemo, tensors, name, config.dtype)
        table = parakeet.parakeet_table(model, tensors, config.encoder_only)
        after_encoder = parakeet.DECODER_SECTIONS
    else:
        model, files = canary.canary_config(nemo, tensors, name, config.dtype)
        table = canary.canary_table(model, config.encoder_only)
        after_encoder = canary.DECODER_SECTIONS
    values = {"family": family, **asdict(model), "quantization": quantization}
    if config.encoder_only:
        tensors = {key: tensors[key] for key in tensors if key.startswith(("preprocessor.", "encoder."))}
        values = {key: value for key, value in values.items() if key not in after_encoder}
    parts = [Part(folder, values, files, tensors, named(table))]
    if ALIGNER_CONFIG in nemo and not config.encoder_only:
        aligner, files = canary.aligner_config(nemo, config.dtype)
        tensors = nemo.tensors(ALIGNER_WEIGHTS)
        values = {**asdict(aligner), "quantization": quantization}
        parts.append(Part(folder / ALIGNER_DIR, values, files, tensors, named(canary.aligner_table(aligner))))
    return parts


def _write_part(part: Part, config: ConversionConfig, report: Callable[[], None]) -> None:
    part.folder.mkdir(exist_ok=True)
    for name, content in part.tokenizer_files.items():
        write_file(part.folder / name, content)
    shape = part.table.shape
    specs = [(row.target, dtype_of(row.target, config.dtype), shape(row.shape)) for row in part.table.rows]
    tensors = convert_tensors(part.tensors, part.table, config.dtype)
    tensors = _with_progress(tensors, part.table, config.verbose, report)
    if config.quantization:
        specs, tensors = _quantized(specs, tensors, config.quantization)
    write_safetensors(part.folder / WEIGHTS_FILE, specs, tensors)
    values = {"format_version": FORMAT_VERSION, **part.config}
    if config.preserve_keys:
        values["preserved_keys"] = True
    write_file(part.folder / CONFIG_FILE, json.dumps(values, indent=2, ensure_ascii=False).encode())
    check_loads(part.folder, [name for name, *_ in specs])
    sync_folder(part.folder)


def _quantized(
    specs: list[TensorSpec], tensors: Iterator[tuple[str, Any]], quantization: QuantizationConfig
) -> tuple[list[TensorSpec], Iterator[tuple[str, Any]]]:
    """The tensors with large layers quantized. Layers whose width the group size does not divide are left as they are.

    Logs a warning that counts those layers.
    """
    large = {name: shape for name, _, shape in specs if is_large(name)}
    quantized = {name for name, shape in large.items() if fits(shape, quantization)}
    if kept := sorted(large.keys() - quantized):
        logger.warning(
            "%d of %d large layers are not quantized: groups of %d do not fill a row of %s %s",
            *(len(kept), len(large), quantization.group_size, kept[0], large[kept[0]]),
        )

    def stream() -> Iterator[tuple[str, Any]]:
        for name, tensor in tensors:
            if name in quantized:
                names = [part for part, *_ in packed_specs(name, "", tuple(tensor.shape), quantization)]
                yield from zip(names, packed(tensor, quantization), strict=True)
            else:
                yield name, tensor

    specs_by_tensor = [packed_specs(*spec, quantization) if spec[0] in quantized else [spec] for spec in specs]
    return list(itertools.chain.from_iterable(specs_by_tensor)), stream()


def _with_progress(
    tensors: Iterator[tuple[str, Any]], table: Table, verbose: bool, report: Callable[[], None]
) -> Iterator[tuple[str, Any]]:
    """The same tensors. Calls `report` after the consumer is done with each."""
    for row, (name, tensor) in zip(table.rows, tensors, strict=True):
        if verbose:
            sources = ", ".join(source for source, _ in row.sources)
            tqdm.write(f"{name} {tuple(tensor.shape)} <- {sources}", file=sys.stderr)
        yield name, tensor
        report()
