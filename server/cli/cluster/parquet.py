"""Records as parquet, with one schema for all parts, so that they can be read as one table."""

import io
from typing import Any


def to_parquet(records: list[dict[str, Any]]) -> bytes:
    """A file of these records. What a record does not have is null."""
    import pyarrow  # pyright: ignore[reportMissingImports]
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records, _schema()), file, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes) -> list[dict[str, Any]]:
    """The records of a file."""
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    # A thread that Arrow starts for reading, ahead or in parallel, can abort the process when it ends.
    file = parquet.ParquetFile(io.BytesIO(data), pre_buffer=False)
    return file.read(use_threads=False).to_pylist()


def _schema() -> Any:
    """The fields of `server.text.formats.to_dict`, after those that name the recording."""
    from pyarrow import bool_, float64, int32, int64, list_, schema, string, struct  # pyright: ignore[reportMissingImports]

    word = {"word": string(), "start": float64(), "end": float64(), "probability": float64(), "confidence": float64()}
    segment = {
        "start": float64(),
        "end": float64(),
        "text": string(),
        "tokens": list_(int32()),
        "words": list_(struct(list(word.items()))),
        "language": string(),
        "avg_logprob": float64(),
        "no_speech_prob": float64(),
    }
    warning = {
        "code": string(),
        "message": string(),
        "language": string(),
        "detected_language": string(),
        "language_probability": float64(),
    }
    record = {
        "file": string(),
        "size": int64(),
        "version": string(),
        "error": struct([("code", string()), ("message", string())]),
        "text": string(),
        "language": string(),
        "language_source": string(),
        "language_probability": float64(),
        "language_runner_up": string(),
        "target_language": string(),
        "duration": float64(),
        "timestamps_source": string(),
        "segments": list_(struct(list(segment.items()))),
        "uncovered": list_(list_(float64())),
        "truncated": bool_(),
        "warnings": list_(struct(list(warning.items()))),
    }
    return schema(list(record.items()))
