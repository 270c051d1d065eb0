"""Damage converted folders at random, and see what is written with them.

    python -m tests.fault.damage --count 200

Each folder of the toy is damaged in one of its files: a bit flipped, 64 KiB of zeros, cut off, swapped for another
file, or removed. It is then loaded twice: as a folder that a user names, which must be refused by the damaged file's
name, and from the cache, where it must be converted again and write the right text. Exits with 1 at a wrong text.
"""

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from convert.download import MODELS
from convert.errors import ConversionError
from convert.hub import resolve
from model.digests import DamagedError
from model.task import Task
from server.audio.decode import decode
from server.engine.registry import load_model
from server.settings import Settings

TOY = Path(MODELS["toy"].path or "")
ZEROS = 64 << 10


def flip_a_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def write_zeros(path: Path, rng: random.Random) -> None:
    """Over 64 KiB, or over the last half of a smaller file."""
    content = bytearray(path.read_bytes())
    count = min(ZEROS, len(content) // 2)
    begin = rng.randint(0, len(content) - count)
    content[begin : begin + count] = bytes(count)
    path.write_bytes(content)


def cut_off(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def swap(path: Path, rng: random.Random) -> None:
    """For another file of the folder."""
    others = sorted(other for other in path.parent.iterdir() if other != path)
    path.write_bytes(rng.choice(others).read_bytes())


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (flip_a_bit, write_zeros, cut_off, swap, remove)


@cache
def _sample() -> np.ndarray:
    return decode(TOY.parent / "samples" / "en.flac")


def text_of(source: Path, quantize: int | None, folder: Path) -> str:
    """What the model, an archive or a converted folder, writes for a sample. folder: of its cache."""
    settings = Settings(model=(str(source),), dtype="float32", quantize=quantize, cache=folder, _env_file=None)  # type: ignore[call-arg, arg-type]
    model: Any = load_model(settings)
    return model.transcribe([_sample()], Task("en"))[0].text


def outcome(damaged: Path, file: str, quantize: int | None, expected: str) -> str:
    """What became of a damaged conversion of the toy, which is in the cache."""
    cache_dir = damaged.parents[1]
    with tempfile.TemporaryDirectory(dir=cache_dir.parent) as scratch:
        given = Path(scratch) / "given"
        shutil.copytree(damaged, given)
        try:
            as_given = "right" if text_of(given, quantize, cache_dir) == expected else "WRONG"
        except DamagedError as error:
            as_given = "refused" if f"{given / file} " in str(error) else f"refused: {error}"
        except ConversionError:
            # Without its configuration or its weights it is no converted folder.
            as_given = "not a model"
    as_cached = "right" if text_of(TOY, quantize, cache_dir) == expected else "WRONG"
    return f"given: {as_given}; cached: {as_cached}"


def damage_at_random(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """How often each outcome was seen, after damage to `count` conversions below `folder`."""
    whole: dict[int | None, tuple[Path, str]] = {}
    for quantize in (None, 8):
        cache_dir = folder / f"whole-{quantize}"
        text = text_of(TOY, quantize, cache_dir)
        whole[quantize] = resolve(TOY, dtype="float32", quantize=quantize, cache_dir=cache_dir), text
    seen: Counter[str] = Counter()
    for number in tqdm(range(count), disable=None):
        quantize = rng.choice((None, 8))
        source, expected = whole[quantize]
        damaged = folder / f"{number}" / source.parent.name / source.name
        shutil.copytree(source, damaged)
        file = rng.choice(sorted(path.name for path in damaged.iterdir()))
        way = rng.choice(WAYS)
        way(damaged / file, rng)
        seen[f"{file}, {way.__name__}: {outcome(damaged, file, quantize, expected)}"] += 1
        shutil.rmtree(folder / f"{number}")
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="damaged folders")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as scratch:
        seen = damage_at_random(Path(scratch), options.count, random.Random(options.seed))
    for what, count in sorted(seen.items()):
        print(f"{count:4} {what}")
    wrong = sum(count for what, count in seen.items() if "WRONG" in what)
    print(f"{sum(seen.values())} damaged folders, {wrong} wrong texts")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
