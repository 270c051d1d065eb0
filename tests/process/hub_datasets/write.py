"""Write the toy's samples as datasets of three kinds: python -m tests.process.hub_datasets.write FOLDER."""

import csv
import json
import shutil
import sys
from pathlib import Path

from datasets import Audio, Dataset, DatasetDict

SAMPLES = Path(__file__).parents[3] / "convert" / "toy" / "samples"
NAMES = ("en.flac", "de.flac", "es.flac")


def rows(names: tuple[str, ...]) -> Dataset:
    texts = {name: sample["text"] for name, sample in json.loads((SAMPLES / "samples.json").read_text()).items()}
    columns = {
        "id": list(range(len(names))),
        "audio": [{"bytes": (SAMPLES / name).read_bytes(), "path": name} for name in names],
        "transcription": [texts[name] for name in names],
        "raw_transcription": [texts[name].lower() for name in names],
    }
    return Dataset.from_dict(columns).cast_column("audio", Audio(sampling_rate=16000))


def with_a_bad_row(dataset: Dataset) -> Dataset:
    """And one whose text is missing."""
    bad = {"id": [3, 4], "audio": [{"bytes": b"no sound", "path": "bad.wav"}] * 2, "transcription": ["Gone.", None]}
    bad |= {"raw_transcription": ["gone", "gone"]}
    both = {name: [*dataset.data.column(name).to_pylist(), *bad[name]] for name in bad}
    return Dataset.from_dict(both).cast_column("audio", Audio(sampling_rate=16000))


def main(folder: Path) -> None:
    dataset = rows(NAMES)
    for config in ("clean", "other"):
        dataset.to_parquet(folder / "parquet" / config / "test-00000-of-00001.parquet")
    configs = [
        {"config_name": config, "data_files": [{"split": "test", "path": f"{config}/*.parquet"}]}
        for config in ("clean", "other")
    ]
    (folder / "parquet" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with_a_bad_row(dataset).to_parquet(folder / "bad" / "data" / "test-00000-of-00001.parquet")
    DatasetDict({"test": dataset}).save_to_disk(folder / "saved")
    two_texts = dataset.rename_columns({"transcription": "title", "raw_transcription": "words"})
    DatasetDict({"test": two_texts}).save_to_disk(folder / "ambiguous")
    elsewhere = {"audio": [{"bytes": None, "path": str(SAMPLES / "en.flac")}], "text": ["Not in the dataset."]}
    pointing = Dataset.from_dict(elsewhere).cast_column("audio", Audio())
    pointing.to_parquet(folder / "pointing" / "test-00000-of-00001.parquet")
    (folder / "none").mkdir()
    files = folder / "files" / "test"
    files.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(SAMPLES / name, files / name)
    with (files / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("file_name", "transcription"))
        writer.writerows(zip(NAMES, dataset.data.column("transcription").to_pylist(), strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
