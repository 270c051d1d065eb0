"""How an archive fares on a Ray cluster of two workers on this machine, beside one process.

    python -m tests.scale.ray --files 500

Transcribes the same small files with the toy: by `canary transcribe` alone; on two workers, on two of which one is
killed in the middle, and on two machines of which one goes. Then counts the files in the results. Prints a table.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import soundfile

from convert.hub import resolve
from tests.environments import ROOT, python_with

SAMPLES = ROOT / "convert" / "toy" / "samples"


def last_sentences() -> list[tuple[np.ndarray, int]]:
    """Of the toy's samples, one to three seconds long."""
    sounds = []
    for name, sample in json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8")).items():
        waveform, rate = soundfile.read(SAMPLES / name, dtype="float32")
        ends = [word["end"] for word in sample["words"][:-1] if word["word"].endswith(".")]
        sounds.append((waveform[int(ends[-1] * rate) :], rate))
    return sounds


def write_archive(folder: Path, files: int, seed: int = 0) -> float:
    """That many files in folders of a hundred, each with another loudness and silence; returns the seconds of audio."""
    draw = random.Random(seed)
    sounds = last_sentences()
    total_s = 0.0
    for number in range(files):
        waveform, rate = sounds[number % len(sounds)]
        silence = np.zeros(int(draw.uniform(0.1, 0.5) * rate), np.float32)
        place = folder / f"{number // 100:03}" / f"{number:05}.flac"
        place.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(place, np.concatenate([waveform * draw.uniform(0.7, 1.0), silence]), rate)
        total_s += (len(waveform) + len(silence)) / rate
    return total_s


def records(results: Path) -> list[dict]:
    files = sorted(results.glob("part-*.jsonl")) or sorted(results.glob("*/*.json"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def workers(parent: int | None = None) -> list[psutil.Process]:
    """The processes of Ray below a process, by default this one, that have a model or are loading one."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def when_half_done(results: Path, files: int, stopped: threading.Event, act: Callable[[], None]) -> None:
    while not stopped.wait(0.1):
        # On Ray, each record is a part of its own here.
        if len(list(results.glob("part-*.jsonl"))) >= files // 2:
            act()
            return


def kill_one() -> None:
    workers()[0].send_signal(signal.SIGKILL)


def transcribe(
    python: Path | str, archive: Path, results: Path, options: list[str], files: int, act: Callable[[], None] | None
) -> float:
    """Run `canary transcribe` to its end; returns the seconds. act: called when half of the files are done."""
    module = "tests.process.cluster.canary" if "--ray" in options else "server"
    command = [python, "-m", module, "transcribe", archive, "--output-dir", results, *options]
    stopped, began = threading.Event(), time.monotonic()
    watcher = threading.Thread(target=when_half_done, args=(results, files, stopped, act)) if act else None
    if watcher:
        watcher.start()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=False)
    took_s = time.monotonic() - began
    stopped.set()
    if watcher:
        watcher.join()
    if done.returncode:
        sys.exit(done.stderr)
    return took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--runs", default="one,two,killed,lost", help="which of these, in this order")
    given = parser.parse_args()
    files = given.files
    requirements = ROOT / "tests" / "process" / "cluster" / "requirements.txt"
    python = python_with(requirements, "ray", and_ours=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"CANARY_CACHE": str(folder / "cache"), "HOME": name, "RAY_USAGE_STATS_ENABLED": "0"}
        resolve("toy", dtype="float32", cache_dir=folder / "cache")
        audio_s = write_archive(folder / "archive", files)
        print(f"{files} files, {audio_s:.0f} s of audio, {os.cpu_count()} cores\n", flush=True)
        print("| | s | files in | records | files in them | differing texts |\n|---|---|---|---|---|---|", flush=True)
        expected: dict[str, str] = {}

        def row(what: str, python: Path | str, options: list[str], act: Callable[[], None] | None = None) -> None:
            results = folder / "results"
            took_s = transcribe(python, folder / "archive", results, options, files, act)
            found = records(results)
            texts = {record["file"]: record["text"] for record in found}
            expected.update({} if expected else texts)
            differing = sum(texts.get(file) != text for file, text in expected.items())
            print(f"| {what} | {took_s:.0f} | {files} | {len(found)} | {len(texts)} | {differing} |", flush=True)
            assert max(Counter(record["file"] for record in found).values()) == 1
            shutil.rmtree(results)

        on_two = ["--ray", "--workers", "2"]

        def on_machines() -> None:
            machines = [python, "-m", "tests.process.cluster.machines"]
            with subprocess.Popen(
                machines, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            ) as cluster:
                assert cluster.stdin
                assert cluster.stdout
                stdin = cluster.stdin

                def take_one_away() -> None:
                    stdin.write("\n")
                    stdin.flush()

                address = cluster.stdout.readline().strip()
                row("two machines, one lost in the middle", python, ["--ray", "--address", address], take_one_away)

        runs = {
            "one": lambda: row("one process", sys.executable, ["--format", "json"]),
            "two": lambda: row("two workers", python, on_two),
            "killed": lambda: row("two workers, one killed in the middle", python, on_two, kill_one),
            "lost": on_machines,
        }
        for name in given.runs.split(","):
            runs[name]()


if __name__ == "__main__":
    main()
