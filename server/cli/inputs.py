"""Which files `canary transcribe` reads, and where the text of each goes."""

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# The files to take from folders. A file named on the command line may have any suffix.
AUDIO_SUFFIXES = {
    *(".aac", ".aif", ".aifc", ".aiff", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mov", ".mp3", ".mp4", ".ogg"),
    *(".opus", ".wav", ".webm"),
}


@dataclass(frozen=True)
class Job:
    """A file, and where its text goes; None is standard output."""

    path: Path
    output: Path | None

    @property
    def is_done(self) -> bool:
        return self.output is not None and self.output.exists()


def missing_paths(named: Iterable[Path]) -> list[Path]:
    """The paths that do not exist and are not patterns."""
    return [path for path in named if not path.exists() and not glob.has_magic(str(path))]


def no_audio(name: Path | str) -> str:
    """What to say of a folder or pattern that holds no audio files."""
    return f"{name}: no audio files; supported: {', '.join(sorted(AUDIO_SUFFIXES))}"


def find_jobs(named: Iterable[Path], output_dir: Path | None, suffix: str) -> tuple[list[Job], list[Path]]:
    """One job per file, in the order given, and the folders and patterns that hold no audio file.

    named: files, folders (searched for audio files) and patterns. suffix: of the output files.
    """
    # By absolute path, so that a file named twice is transcribed once.
    found: dict[str, tuple[Path, Path]] = {}
    empty = []
    for path in named:
        files = _files(path)
        if not files:
            empty.append(path)
        for file, place in files.items():
            found.setdefault(os.path.abspath(file), (file, place))
    if output_dir is None:
        return [Job(file, None) for file, _ in found.values()], empty
    outputs = _outputs({absolute: place for absolute, (_, place) in found.items()}, suffix)
    return [Job(file, output_dir / outputs[absolute]) for absolute, (file, _) in found.items()], empty


def _files(path: Path) -> dict[Path, Path]:
    """The files that a path, folder or pattern stands for, each with its place in the output folder."""
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
        return {file: file.relative_to(path) for file in inside}
    if not path.exists() and glob.has_magic(str(path)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        return {file: Path(file.name) for file in matches if file.is_file()}
    return {path: Path(path.name)}


def _outputs(places: dict[str, Path], suffix: str) -> dict[str, Path]:
    """An output path for each file, all of them different. places: by absolute path."""
    places = _apart(places)
    names = Counter(_folded(place.with_suffix("")) for place in places.values())
    # a.wav and a.mp3 cannot both become a.txt; nor can a.wav become a.wav.txt beside a.wav.flac.
    names.update({_folded(place) for place in places.values() if place.suffix})
    return {
        absolute: place.with_suffix(suffix) if names[_folded(place.with_suffix(""))] == 1 else Path(f"{place}{suffix}")
        for absolute, place in places.items()
    }


def _apart(places: dict[str, Path]) -> dict[str, Path]:
    """The places, with as many parent folders put before equal ones as it takes to tell them apart."""
    files = defaultdict(set)
    for absolute, place in places.items():
        files[_folded(place)].add(_folded(absolute))
    same = {absolute for absolute, place in places.items() if len(files[_folded(place)]) > 1}
    if not same:
        return places
    longer = {absolute: Path(*Path(absolute).parts[1:][-len(places[absolute].parts) - 1 :]) for absolute in same}
    return _apart(places | longer)


def _folded(path: Path | str) -> str:
    """Equal for names that some file systems cannot tell apart, such as Talk.wav and talk.wav."""
    return str(path).casefold()
