"""This project beside others that run Canary: the same weights, sounds, threads and counts of tokens, turn by turn.

    python -m tests.bench.peers --setup DIR                  # an environment for each peer, in DIR
    python -m tests.bench.peers --environments DIR --model canary-180m-flash.nemo --output RESULTS

Every side is a process of its own that stays loaded; a round gives each the same job in turn, so that whatever else the
machine does falls on all of them. The median of the rounds counts. Run it with this project's own Python.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from convert.hub import resolve
from model.canary.config import CanaryConfig
from model.canary.prompt import END, prompt_tokens
from model.config import read_config
from model.task import Task
from model.tokenizer import PAD, load_tokenizer
from server.cli.bench.command import THREAD_VARIABLES
from server.cli.bench.load import MIXED_LENGTHS
from server.cli.bench.stages import TOKENS_PER_S, sound
from tests.bench.summary import details, plot, table

HERE = Path(__file__).parent
STAGES = ("features", "encode", "decode")
OURS = "canary-server"
CASES = "10,35,16x10,4xmixed"
WARM_UP_TOKENS = 4
# A side that has worked so long on a case has been measured well enough.
ENOUGH_S = 20.0


@dataclass(frozen=True)
class Peer:
    """script: what runs in `environment`, None being this one; batches: whether it decodes several audios together;
    preload: a library that goes before what it would load itself."""

    environment: str | None
    script: str
    batches: bool = True
    weights: str = "nemo"
    preload: str = ""


PEERS = {
    "canary-server-int8": Peer(None, "peer_ours.py", weights="packed"),
    "nemo": Peer("nemo", "peer_nemo.py"),
    "transformers": Peer("transformers", "peer_transformers.py"),
    "onnxruntime": Peer("onnxruntime", "peer_onnxruntime.py", weights="onnx"),
    "onnxruntime-int8": Peer("onnxruntime", "peer_onnxruntime.py", weights="onnx-int8"),
    "mlx-audio": Peer("mlx-audio", "peer_mlx_audio.py", batches=False),
    "mlx-audio-openblas": Peer("mlx-audio", "peer_mlx_audio.py", batches=False, preload="libopenblas.so.0"),
    "canary-mlx": Peer("canary-mlx", "peer_canary_mlx.py", batches=False),
    "transcribe.cpp": Peer("transcribe-cpp", "peer_transcribe_cpp.py", weights="F32.gguf"),
    "transcribe.cpp-q8": Peer("transcribe-cpp", "peer_transcribe_cpp.py", weights="Q8_0.gguf"),
}


@dataclass(frozen=True)
class Case:
    """Audios that are given together, by their seconds."""

    name: str
    lengths: tuple[float, ...]

    @property
    def tokens(self) -> list[int]:
        """How many are written for each."""
        return [round(TOKENS_PER_S * seconds) for seconds in self.lengths]


@dataclass
class Side:
    """A running worker. `spent` and `answers` are of the case that is being measured."""

    name: str
    process: "subprocess.Popen[str]"
    batches: bool = True
    answers: list[dict[str, Any]] = field(default_factory=list)
    spent: float = 0.0

    def asked(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}; what it said is above")
        return json.loads(line)

    def measure(self, job: dict[str, Any]) -> None:
        """Do the job once more, if it has not been done long enough already."""
        if self.spent < ENOUGH_S and not any("error" in answer for answer in self.answers):
            began = time.monotonic()
            self.answers.append(self.asked(job))
            self.spent += time.monotonic() - began

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def set_up(folder: Path, peers: Iterable[Peer]) -> None:
    """An environment for each of `peers`, of the versions that their requirements pin."""
    for name in dict.fromkeys(peer.environment for peer in peers if peer.environment):
        environment = folder / name
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        requirements = HERE / f"requirements-{name}.txt"
        subprocess.run([environment / "bin" / "pip", "install", "-r", requirements], check=True)


def started(name: str, peer: Peer, environments: Path, weights: Path, threads: int) -> Side:
    own = {"PYTHONPATH": ".", "LD_PRELOAD": peer.preload}
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **own}
    python = environments / peer.environment / "bin" / "python" if peer.environment else sys.executable
    command = [python, HERE / peer.script, weights]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parents[1]
    )
    return Side(name, process, peer.batches)


def weights_for(peer: Peer, environments: Path, archive: Path) -> Path:
    """What a peer loads: the archive itself, or what is made of it once."""
    if peer.weights == "nemo":
        return archive
    if peer.weights == "packed":
        return resolve(archive, dtype="float32", quantize=8)
    made = environments / "weights" / f"{archive.stem}-{archive.stat().st_size}-{peer.weights}"
    made.parent.mkdir(exist_ok=True)
    if made.exists():
        return made
    partial = made.with_name(f"{made.name}.partial")
    if peer.weights == "onnx":
        _run(environments / "nemo", "export_onnx.py", archive, partial)
    elif peer.weights == "onnx-int8":
        exported = weights_for(PEERS["onnxruntime"], environments, archive)
        _run(environments / "onnxruntime", "quantize_onnx.py", exported, partial)
    else:
        kind = peer.weights.removesuffix(".gguf")
        _run(environments / "transcribe-cpp", "export_gguf.py", archive, partial, kind)
    return partial.rename(made)


def _run(environment: Path, script: str, *arguments: Path | str) -> None:
    subprocess.run([environment / "bin" / "python", HERE / script, *arguments], check=True, stdout=sys.stderr)


def case_of(text: str) -> Case:
    """`10`: one audio of 10 s; `16x10`: sixteen of them; `4xmixed`: four of mixed lengths."""
    rows, _, seconds = text.partition("x") if "x" in text else ("", "", text)
    count = int(rows or 1)
    if seconds == "mixed":
        lengths = tuple(MIXED_LENGTHS[i % len(MIXED_LENGTHS)] for i in range(count))
        return Case(f"{count} of {min(lengths):g} to {max(lengths):g} s", lengths)
    name = f"{count} of {float(seconds):g} s" if rows else f"{float(seconds):g} s"
    return Case(name, (float(seconds),) * count)


def compared(case: Case, sides: list[Side], archive: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """Seconds by stage of each side for a case; of sides that cannot decode several audios together only for one."""
    folder = resolve(archive, dtype="float32")
    config = read_config(folder, CanaryConfig)
    tokenizer = load_tokenizer(folder, config.tokenizer)
    file, one = scratch / "all.npz", scratch / "one.npz"
    sounds = [sound(seconds, seed) for seed, seconds in enumerate(case.lengths)]
    np.savez(file, *sounds)
    np.savez(one, sounds[0])
    job = {
        "waveforms": str(file),
        "tokens": case.tokens,
        "prompt": prompt_tokens(Task("en"), config, tokenizer),
        "banned": [tokenizer.special_id(token) for token in (END, PAD)],
    }
    asked = [side for side in sides if side.batches or len(case.lengths) == 1]
    for side in asked:
        side.answers, side.spent = [], 0.0
        side.asked({**job, "waveforms": str(one), "tokens": [WARM_UP_TOKENS]})
    for _ in range(rounds):
        for side in asked:
            side.measure(job)
    audio_s = sum(case.lengths)
    return {
        "case": case.name,
        "lengths": case.lengths,
        "tokens": case.tokens,
        "sides": {side.name: _median(side.answers, asked[0].answers[0], audio_s) for side in asked},
    }


def _median(answers: list[dict[str, Any]], ours: dict[str, Any], audio_s: float) -> dict[str, Any]:
    if error := next((answer["error"] for answer in answers if "error" in answer), None):
        return {"error": error}
    result = {stage: statistics.median(answer[stage] for answer in answers) for stage in STAGES}
    result["total"] = statistics.median(sum(answer[stage] for stage in STAGES) for answer in answers)
    result["rtfx"] = audio_s / result["total"]
    result["cpu"] = statistics.median(answer["cpu"] for answer in answers)
    rows = zip(ours["tokens"], answers[0]["tokens"], strict=True)
    # A row that was written on to the longest one's end is compared as far as ours goes.
    pairs = [pair for a, b in rows for pair in zip(a, b)]  # noqa: B905
    # Some give texts alone.
    result["same_tokens"] = sum(a == b for a, b in pairs) / len(pairs) if pairs else None
    result["rounds"] = len(answers)
    return result


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--setup", type=Path, metavar="DIR", help="make the peers' environments there, and no more")
    options.add_argument("--environments", type=Path, metavar="DIR", help="where they were made")
    options.add_argument("--model", type=Path, help="a .nemo archive")
    options.add_argument("--peers", default=",".join(PEERS), help="default: %(default)s")
    options.add_argument("--cases", default=CASES, help=f"{case_of.__doc__} Default: %(default)s")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--output", type=Path, metavar="DIR", help="where peers.json, peers.md and peers.svg go")
    given = options.parse_args()
    names = [name for name in given.peers.split(",") if name]
    if unknown := [name for name in names if name not in PEERS]:
        options.error(f"{unknown[0]!r} is none of {', '.join(PEERS)}")
    if given.setup:
        set_up(given.setup, [PEERS[name] for name in names])
        return
    if not given.environments or not given.model:
        options.error("--environments and --model are needed to compare")
    if given.output and find_spec("matplotlib") is None:
        options.error("--output has a plot, which needs matplotlib: pip install matplotlib")
    archive, environments = given.model.absolute(), given.environments.absolute()
    cases = [case_of(text) for text in given.cases.split(",")]
    resolve(archive, dtype="float32")
    made = {name: weights_for(PEERS[name], environments, archive) for name in names}
    sides = [started(OURS, Peer(None, "peer_ours.py"), environments, archive, given.threads)]
    sides += [started(name, PEERS[name], environments, made[name], given.threads) for name in names]
    for side in sides:
        print(f"{side.name} loaded in {side.answer()['load_s']:.1f} s", file=sys.stderr)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            results.append(compared(case, sides, archive, given.rounds, Path(scratch)))
            print(details(results[-1:]), file=sys.stderr, flush=True)
    for side in sides:
        side.end()
    system = {"machine": platform.machine(), "cores": os.cpu_count()}
    measured = {"model": archive.name, "threads": given.threads, "system": system, "results": results}
    print(f"{table(results)}\n\n{details(results)}")
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "peers.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        (given.output / "peers.md").write_text(f"{table(results)}\n\n{details(results)}\n", encoding="utf-8")
        plot(measured, given.output / "peers.svg")


if __name__ == "__main__":
    main()
