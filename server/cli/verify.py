"""`canary verify`: are the files of converted models as they were written?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer
from tqdm import tqdm

from convert.cache import default_cache_dir
from convert.folder import is_converted
from model import digests
from model.config import WEIGHTS_FILE
from model.cpu import packed_file
from server.cli.failures import chosen_settings, fail

Status = Literal["ok", "damaged", "no_digests"]


@dataclass(frozen=True)
class Verified:
    """What was found in a converted folder. damage: one line for each file; source: the archive's name and digest."""

    folder: Path
    damage: tuple[str, ...]
    source: dict[str, digests.FileDigest] | None

    @property
    def status(self) -> Status:
        if self.damage:
            return "damaged"
        return "no_digests" if self.source is None else "ok"

    def lines(self) -> list[str]:
        match self.status:
            case "damaged":
                return [f"FAILED   {line}" for line in self.damage]
            case "no_digests":
                advice = "convert the model again to add them"
                return [f"FAILED   {self.folder} has no {digests.DIGESTS_FILE}, so damage cannot be found; {advice}"]
        return [f"ok       {self.folder}"]


def verify(folders: Sequence[Path], *, settings: dict[str, Any], json_output: bool) -> bool:
    """Check converted folders, by default those in the cache, and print a line for each; whether all are intact."""
    for folder in folders:
        if not is_converted(folder) and not (folder / digests.DIGESTS_FILE).exists():
            fail(f"{folder} is not a converted model")
    folders = folders or _cached(chosen_settings(**settings).cache)
    results = []
    for folder in folders:
        results.append(result := _verified(folder))
        if not json_output:
            typer.echo("\n".join(result.lines()))
    if json_output:
        found = [{**asdict(each), "folder": str(each.folder), "status": each.status} for each in results]
        typer.echo(json.dumps({"folders": found}, indent=2, ensure_ascii=False))
    elif not results:
        typer.echo("canary: there are no converted models in the cache", err=True)
    return all(result.status == "ok" for result in results)


def _cached(cache: Path | None) -> list[Path]:
    """The converted folders in the cache."""
    return sorted(path for path in ((cache or default_cache_dir()) / "models").glob("[!.]*") if is_converted(path))


def _verified(folder: Path) -> Verified:
    packed = [path for path in folder.rglob(f"{WEIGHTS_FILE}{packed_file.SUFFIX}") if packed_file.is_damaged(path)]
    damage = [f"{path} is damaged; it is made again when the model is loaded" for path in packed]
    try:
        listed = digests.read(folder)
    except digests.DamagedError as error:
        return Verified(folder, (str(error), *damage), {})
    if listed is None:
        return Verified(folder, tuple(damage), None)
    with tqdm(
        total=sum(file.size for file in listed.files.values()),
        desc=folder.name,
        unit="B",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        found = [digests.damage(folder, name, expected, bar.update) for name, expected in listed.files.items()]
    return Verified(folder, (*(str(error) for error in found if error), *damage), listed.source)
