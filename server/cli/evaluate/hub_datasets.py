"""Datasets of the Hugging Face Hub, and folders that the library `datasets` reads: one row at a time.

Rows are streamed, so nothing is downloaded before it is needed. The library never decodes audio: it passes on the bytes
of each file.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from server.cli.evaluate.manifests import ManifestError, Utterance

PREFIX = "hf:"
FORM = "hf:OWNER/NAME[@REVISION] or hf:FOLDER, then optionally ?config=NAME&split=NAME&text=COLUMN&audio=COLUMN"
DEFAULT_SPLIT = "test"
# The columns that are tried if the address names none.
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
AUDIO_COLUMN = "audio"

_OPTIONS = ("config", "split", "text", "audio")
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Address:
    """`hf:…`, in its parts. given: as it was written; dataset: a Hub repository, or an existing folder's full path."""

    given: str
    dataset: str
    is_folder: bool
    revision: str | None = None
    config: str | None = None
    split: str = DEFAULT_SPLIT
    text: str | None = None
    audio: str | None = None

    @classmethod
    def parse(cls, given: str) -> "Address":
        """Raises ManifestError."""
        place, _, query = given.removeprefix(PREFIX).partition("?")
        options = _options(given, query)
        folder = Path(place).expanduser()
        if place and folder.is_dir():
            return cls(given, str(folder.resolve()), True, **options)
        if place.startswith((".", "/", "~")):
            raise ManifestError(f"{given}: no such folder: {place}")
        match = _HUB_NAME.fullmatch(place)
        if not match:
            raise ManifestError(f"{given}: must be {FORM}")
        return cls(given, match["repo"], False, match["revision"], **options)


def _options(given: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ManifestError(f"{given}: {query!r} must have the form NAME=VALUE&NAME=VALUE") from None
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in _OPTIONS:
            raise ManifestError(f"{given}: unknown option {name!r}; supported: {', '.join(_OPTIONS)}")
        if name in options:
            raise ManifestError(f"{given}: {name} is given twice")
        if not value:
            raise ManifestError(f"{given}: {name} is empty")
        options[name] = value
    return options


@dataclass(frozen=True)
class Row:
    """An utterance, and the content of its audio file."""

    utterance: Utterance
    content: bytes


class HubDataset:
    """One split of a dataset. source: its address and the Hub's commit; total: its rows, if the dataset says so.

    Raises ManifestError if it cannot be opened, and for an unknown config, split or column.
    """

    def __init__(self, given: str):
        import datasets  # pyright: ignore[reportMissingImports]

        datasets.disable_progress_bars()
        self._address = address = Address.parse(given)
        self.source = address.given
        self.without_text: list[int] = []
        """The numbers of the rows read so far that have no text. They are skipped."""
        with _one_line_reasons(address):
            commit = None if address.is_folder else _commit(address)
            config, splits = _saved_splits(address) or _splits(address, commit)
            if commit:
                self.source = f"{address.given}, commit {commit}"
            if address.split not in splits:
                raise _unknown(address, "split", address.split, splits)
            dataset = splits[address.split]
            columns = _columns(dataset)
            self._text = _text_column(address, columns)
            self._audio = _audio_column(address, columns)
            counts = (dataset.info.splits or {}).get(address.split)
            self.total: int | None = getattr(counts, "num_examples", None)
            # As Arrow tables, since the library needs torch to make Python objects of audio files.
            self._dataset = dataset.select_columns([self._text, self._audio]).with_format("arrow")
        self._name = "/".join(filter(None, (f"{PREFIX}{address.dataset}", config, address.split)))

    def __iter__(self) -> Iterator[Row]:
        """Raises ManifestError if a row cannot be read."""
        with _one_line_reasons(self._address):
            for number, table in enumerate(self._dataset.iter(batch_size=1)):
                text = table.column(self._text)[0].as_py()
                if not isinstance(text, str):
                    self.without_text.append(number)
                    continue
                yield self._row(number, text, table.column(self._audio)[0].as_py() or {})

    def _row(self, number: int, text: str, audio: Mapping[str, Any]) -> Row:
        path = audio.get("path") or ""
        # zip://talk.wav::hf://… is a file of an archive.
        file = Path(path.partition("::")[0]).name
        name = "/".join(filter(None, (self._name, str(number), file)))
        record = {"audio_filepath": name, "text": text}
        place = f"{self._address.given}, row {number}"
        return Row(Utterance(name, Path(name), text, record=record, place=place), self._content(audio, path))

    def _content(self, audio: Mapping[str, Any], path: str) -> bytes:
        """Empty if the row has no audio, which the decoder then says."""
        if audio.get("bytes") is not None:
            return audio["bytes"]
        # A dataset from the Hub may not name files of this machine or of other servers.
        if not path or not (self._address.is_folder or path.rpartition("::")[2].startswith("hf://")):
            return b""
        import fsspec

        with fsspec.open(path, "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]


def _commit(address: Address) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(address.dataset, revision=address.revision).sha


def _saved_splits(address: Address) -> tuple[str, Mapping[str, Any]] | None:
    """What `save_to_disk` wrote: no config, and the splits. None if the folder is not of this kind."""
    from datasets import DatasetDict, load_from_disk  # pyright: ignore[reportMissingImports]

    folder = Path(address.dataset)
    if not address.is_folder or not any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        return None
    if address.config:
        raise ManifestError(f"{address.given}: there is no config {address.config!r}: save_to_disk writes none")
    saved = load_from_disk(str(folder))
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or DEFAULT_SPLIT): saved}
    return "", {name: split.to_iterable_dataset() for name, split in splits.items()}


def _splits(address: Address, commit: str | None) -> tuple[str, Mapping[str, Any]]:
    """The config's name and its splits."""
    import datasets  # pyright: ignore[reportMissingImports]

    configs = datasets.get_dataset_config_names(address.dataset, revision=commit)
    if address.config and address.config not in configs:
        raise _unknown(address, "config", address.config, configs)
    config = address.config or (configs[0] if len(configs) == 1 else None)
    config = config or datasets.get_dataset_default_config_name(address.dataset, revision=commit)
    if not config:
        raise ManifestError(f"{address.given}: config is required: one of {', '.join(sorted(configs))}")
    builder = datasets.load_dataset_builder(address.dataset, config, revision=commit)
    # Or it would decode the rows ahead.
    builder.config.decode_num_threads = 0
    return config, builder.as_streaming_dataset()


def _columns(dataset: Any) -> dict[str, Any]:
    """The Arrow type of each column, from the dataset's own description or else from its first row."""
    features = dataset.features
    schema = features.arrow_schema if features else None
    if schema is None:
        first = next(dataset.with_format("arrow").iter(batch_size=1), None)
        schema = first.schema if first is not None else ()
    return {field.name: field.type for field in schema}


def _text_column(address: Address, columns: Mapping[str, Any]) -> str:
    import pyarrow  # pyright: ignore[reportMissingImports]

    texts = [name for name, kind in columns.items() if pyarrow.types.is_string(kind) or _is_large_string(kind)]
    if address.text:
        return _chosen(address, "text", address.text, texts)
    likely = [name for name in TEXT_COLUMNS if name in texts]
    if len(likely) != 1:
        raise ManifestError(f"{address.given}: add text=COLUMN to the address: one of {_listed(texts)}")
    return likely[0]


def _is_large_string(kind: Any) -> bool:
    import pyarrow  # pyright: ignore[reportMissingImports]

    return pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)


def _audio_column(address: Address, columns: Mapping[str, Any]) -> str:
    import pyarrow  # pyright: ignore[reportMissingImports]

    files = [
        name
        for name, kind in columns.items()
        if pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}
    ]
    if address.audio:
        return _chosen(address, "audio", address.audio, files)
    if AUDIO_COLUMN in files:
        return AUDIO_COLUMN
    if len(files) != 1:
        raise ManifestError(f"{address.given}: add audio=COLUMN to the address: one of {_listed(files)}")
    return files[0]


def _chosen(address: Address, kind: str, name: str, names: list[str]) -> str:
    if name not in names:
        raise ManifestError(f"{address.given}: no {kind} column {name!r}; must be one of {_listed(names)}")
    return name


def _unknown(address: Address, kind: str, name: str, names: Any) -> ManifestError:
    return ManifestError(f"{address.given}: no {kind} {name!r}; must be one of {_listed(sorted(names))}")


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none: the dataset has no such column"


@contextmanager
def _one_line_reasons(address: Address) -> Iterator[None]:
    """Whatever the libraries raise becomes a ManifestError that says what to do."""
    try:
        yield
    except ManifestError:
        raise
    except Exception as error:  # the library passes on those of its file systems, formats and HTTP clients
        raise ManifestError(f"{address.given}: {_reason(address, error)}") from error


def _reason(address: Address, error: BaseException) -> str:
    from huggingface_hub import constants, errors

    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)

    def is_from(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    detail = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if address.is_folder:
        return f"could not be read ({detail})"
    if is_from(errors.GatedRepoError):
        terms = f"{constants.ENDPOINT}/datasets/{address.dataset}"
        return f"the dataset is gated: accept its terms at {terms}, then log in with `hf auth login` or set HF_TOKEN"
    if is_from(errors.RevisionNotFoundError):
        return f"no revision {address.revision!r}: leave out @{address.revision} or name a branch, tag or commit"
    if is_from(errors.RepositoryNotFoundError):
        return "no such dataset, or it is private: check the name, then log in with `hf auth login` or set HF_TOKEN"
    if "scripts are no longer supported" in str(error):
        return "the dataset is a script, which the library does not run: use a copy in Parquet or audio files"
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set: unset it to read from the Hub, or give a folder"
    return f"could not be read ({detail}): check the connection to {constants.ENDPOINT} and start again"
