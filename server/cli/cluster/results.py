"""The results of an archive: a folder, local or in object storage, of parts as JSON lines or parquet.

Only the command itself writes here, never a worker, and each part is written whole. So whatever is killed, and
whenever, each recording is in the results at most once.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from server.cli.cluster.listing import Recording, is_local, named_errors, storage
from server.cli.cluster.parquet import from_parquet, to_parquet
from server.errors import RequestError

Record = dict[str, Any]

# How the results were made; a run that resumes must be of the same kind.
RUN_FILE = "run.json"
# A part is written when it has this many records, or this long after the one before.
PART_RECORDS, PART_S = 1000, 30.0


@dataclass(frozen=True)
class Format:
    suffix: str
    encode: Callable[[list[Record]], bytes]
    decode: Callable[[bytes], list[Record]]


def to_json_lines(records: list[Record]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def from_json_lines(data: bytes) -> list[Record]:
    return [json.loads(line) for line in data.split(b"\n") if line]


FORMATS = {
    "json": Format(".jsonl", to_json_lines, from_json_lines),
    "parquet": Format(".parquet", to_parquet, from_parquet),
}


class Results:
    """A record has `file`, `size` and `version` of its recording, and either its transcript or an `error`."""

    def __init__(self, folder: str, format: str, now: Callable[[], float] = time.monotonic):
        """folder: a path or URL. Raises RequestError for a storage that is not supported."""
        self.name = folder
        self._files, self._folder = storage(folder)
        self._format = FORMATS[format]
        self._now = now
        self._waiting: list[Record] = []
        self._written_at = now()
        # Parts sort by the time of their run, and two runs never write the same.
        self._run = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3)
        self._written = 0

    def begin(self, made_with: Record, resume: bool) -> None:
        """Create the folder, or check that what is in it can be resumed.

        made_with: the options that decide what is written. Raises RequestError and OSError.
        """
        if is_local(self._files):
            self._files.makedirs(self._folder, exist_ok=True)
        if not any(name.startswith("part-") for name in self._names()):
            self._write(RUN_FILE, json.dumps(made_with, indent=2).encode())
            return
        if not resume:
            raise RequestError(f"{self.name} holds results; add --resume to go on with them, or choose another folder")
        before = json.loads(self._files.cat_file(f"{self._folder}/{RUN_FILE}"))
        for name, value in made_with.items():
            if before.get(name) != value:
                raise RequestError(
                    f"{self.name} was made with {name} {_shown(before.get(name))}, not {_shown(value)}; "
                    "choose another folder, or the same options"
                )

    def finished(self, recordings: Iterable[Recording]) -> set[Recording]:
        """Those of the recordings that have a transcript here.

        Drops the records of recordings that failed or have changed since, so that they can be transcribed again.
        """
        wanted = {recording.path: recording for recording in recordings}
        done: set[Recording] = set()
        parts = [name for name in self._names() if name.startswith("part-") and name.endswith(self._format.suffix)]
        for name in parts:
            records = self._format.decode(self._files.cat_file(f"{self._folder}/{name}"))
            kept = []
            for record in records:
                recording = wanted.get(record["file"])
                if recording and (record.get("error") or recording in done or _recording(record) != recording):
                    continue
                kept.append(record)
                if recording:
                    done.add(recording)
            if not kept:
                self._files.rm_file(f"{self._folder}/{name}")
            elif len(kept) < len(records):
                self._write(name, self._format.encode(kept))
        return done

    def _names(self) -> list[str]:
        """Of the files in the folder. Object storage has no empty folders."""
        try:
            with named_errors(self.name):
                paths = self._files.ls(self._folder, detail=False)
            return sorted(path.rpartition("/")[2] for path in paths)
        except FileNotFoundError:
            return []

    def add(self, record: Record) -> bool:
        """Keep a record. Returns whether a part was written, with all records so far. Raises OSError."""
        self._waiting.append(record)
        if len(self._waiting) < PART_RECORDS and self._now() - self._written_at < PART_S:
            return False
        self.write()
        return True

    def write(self) -> None:
        """Write what was added and is not yet written. Raises OSError."""
        if self._waiting:
            self._written += 1
            name = f"part-{self._run}-{self._written:05}{self._format.suffix}"
            self._write(name, self._format.encode(self._waiting))
            self._waiting = []
            self._written_at = self._now()

    def _write(self, name: str, data: bytes) -> None:
        """Write a file so that it is there whole or not at all: object storage does that by itself."""
        path = f"{self._folder}/{name}"
        if not is_local(self._files):
            with named_errors(self.name):
                self._files.pipe_file(path, data)
            return
        with open(f"{path}.part", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.part", path)


def _recording(record: Record) -> Recording:
    return Recording(record["file"], record["size"], record["version"])


def _shown(value: Any) -> str:
    return "by default" if value is None else repr(value)
