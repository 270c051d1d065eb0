"""Kill a download, a conversion or a quantization at a random instant, again and again.

    python -m tests.fault.kills --count 200

After each SIGKILL nothing may look finished that is not, and the next run must end with the files that an undisturbed
run writes. Exits with 1 at the first kill after which that does not hold, and says which.
"""

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

from convert.convert import ConversionConfig, convert_once
from convert.download import MODELS, nemo_file
from model import digests
from model.cpu import int8, packed_file
from tests import archives
from tests.hub_server import Hub, serving

REPO, FILE = "nvidia/canary-180m-flash", "canary-180m-flash.nemo"
TOY = Path(MODELS["toy"].path or "")
# Four of the pieces in which the Hub's client writes to disk.
PADDING = 40 << 20
END_S = 120.0


class Broken(Exception):
    """What does not hold after a kill."""


def _download(folder: Path) -> None:
    # The Hub's cache is the folder that HF_HOME names.
    nemo_file("canary-180m-flash")


def _conversion(folder: Path) -> None:
    convert_once(ConversionConfig(source=TOY, output=folder / "toy"), folder / "cache")


def _quantization(folder: Path) -> None:
    from model.loading import load

    convert_once(ConversionConfig(source=TOY, output=folder / "toy", quantize=8), folder / "cache")
    if int8.is_fast():
        # The first load writes the weights that are packed for this CPU.
        load(folder / "toy", "float32")


WORK: dict[str, Callable[[Path], None]] = {
    "download": _download,
    "conversion": _conversion,
    "quantization": _quantization,
}


def _run(kind: str, folder: Path, started: Connection) -> None:
    logging.getLogger().addHandler(logging.NullHandler())
    # tqdm's own lock is shared by processes, and would be left behind.
    tqdm.set_lock(threading.RLock())
    started.send(None)
    WORK[kind](folder)


def _process(kind: str, folder: Path) -> multiprocessing.process.BaseProcess:
    """A process that has just begun its work."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_run, args=(kind, folder, sending), daemon=True)
    process.start()
    sending.close()
    receiving.recv()
    return process


def _to_its_end(kind: str, folder: Path) -> float:
    """Do the work in a process that nobody kills; the seconds it took."""
    process = _process(kind, folder)
    began = time.monotonic()
    process.join(END_S)
    took_s = time.monotonic() - began
    if process.exitcode != 0:
        process.kill()
        raise Broken(f"the next run ended with {process.exitcode} after {took_s:.1f} s")
    return took_s


def _written(kind: str, folder: Path) -> dict[str, digests.FileDigest] | None:
    """The files of finished work; None if nothing looks finished. Raises Broken if it looks so and is not."""
    if kind == "download":
        # The Hub's client gives a file its name when it is complete.
        found = list(folder.glob(f"hub/models--*/snapshots/*/{FILE}"))
        return {FILE: digests.digest_of(found[0])} if found else None
    toy = folder / "toy"
    if not toy.exists():
        return None
    if not digests.is_intact(toy):
        raise Broken(f"{toy} looks finished, and is not")
    packed = toy / f"model.safetensors{packed_file.SUFFIX}"
    if packed.exists() and packed_file.is_damaged(packed):
        raise Broken(f"{packed} is half written")
    listed = digests.read(toy)
    assert listed
    return listed.files


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def kill_at_random(kind: str, folder: Path, count: int, random_instant: random.Random) -> tuple[int, float]:
    """Kill the work `count` times in `folder`; how many kills came before its end, and how long it takes in seconds.

    Raises Broken.
    """
    durations = []
    for _ in range(3):
        _emptied(folder)
        durations.append(_to_its_end(kind, folder))
    expected, duration_s = _written(kind, folder), statistics.median(durations)
    in_time = 0
    for number in tqdm(range(count), desc=kind, disable=None):
        _emptied(folder)
        process = _process(kind, folder)
        delay_s = random_instant.uniform(0, duration_s)
        time.sleep(delay_s)
        in_time += process.is_alive()
        process.kill()
        process.join()
        try:
            if _written(kind, folder) not in (None, expected):
                raise Broken("a killed run left other files than a whole one")
            _to_its_end(kind, folder)
            if _written(kind, folder) != expected:
                raise Broken("the next run wrote other files than an undisturbed one")
            if left := list(folder.glob(".*partial*")):
                raise Broken(f"the next run left {left[0].name}")
        except Broken as broken:
            raise Broken(f"{kind}, kill {number + 1} after {delay_s:.3f} s: {broken}") from None
    return in_time, duration_s


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="kills of each kind")
    parser.add_argument("--kinds", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "work"
        files = archives.members("180m-flash") | {"padding": bytes(PADDING)}
        archive = archives.write_archive(Path(scratch) / FILE, files)
        with serving(Hub(REPO, {FILE: archive})) as hub:
            os.environ |= {
                "HF_HOME": str(folder),
                "HF_ENDPOINT": hub.url,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "NO_PROXY": "127.0.0.1",
            }
            # Processes are forked from one that has imported everything: so kills hit the work, not its imports.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["huggingface_hub.file_download", "model.loading", "tests.archives"])
            for kind in options.kinds:
                try:
                    in_time, duration_s = kill_at_random(kind, folder, options.count, random.Random(options.seed))
                except Broken as broken:
                    print(f"BROKEN {broken}", flush=True)
                    return 1
                print(f"ok {kind}: {options.count} kills, {in_time} before its end ({duration_s:.2f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
