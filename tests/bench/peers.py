"""This project beside others that run Canary: the same weights, sounds, threads and counts of tokens, turn by turn.

    python tests/bench/peers.py --setup DIR                  # an environment for each peer, in DIR
    python tests/bench/peers.py --environments DIR --model canary-180m-flash.nemo --threads 1

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.hub import resolve
from model.config import read_config
from model.prompt import Task, prompt_tokens
from model.tokenizer import load_tokenizer
from server.bench.stages import TOKENS_PER_S, sound
from server.cli.bench import THREAD_VARIABLES

HERE = Path(__file__).parent
PEERS = ("nemo", "transformers", "mlx-audio", "onnxruntime")
STAGES = ("features", "encode", "decode")


@dataclass
class Side:
    """A running worker."""

    name: str
    process: "subprocess.Popen[str]"

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


def set_up(folder: Path) -> None:
    """An environment for each peer, of the versions that its requirements pin."""
    for peer in PEERS:
        environment = folder / peer
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        requirements = HERE / f"requirements-{peer}.txt"
        subprocess.run([environment / "bin" / "pip", "install", "-r", requirements], check=True)


def started(name: str, python: Path, archive: Path, environment: dict[str, str]) -> Side:
    script = HERE / f"peer_{name.replace('-', '_')}.py"
    command = [str(python), str(script), str(archive)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parents[1]
    )
    return Side(name, process)


def exported(environments: Path, archive: Path) -> Path:
    """The folder of what onnxruntime runs, exported by NeMo once."""
    folder = environments / "onnx" / f"{archive.stem}-{archive.stat().st_size}"
    if not (folder / "decoder.onnx").exists():
        command = [environments / "nemo" / "bin" / "python", HERE / "export_onnx.py", archive, folder]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def compared(sides: list[Side], archive: Path, audio_s: float, rows: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """Seconds by stage of each side, for `rows` audios of so many seconds decoded together."""
    folder = resolve(archive, dtype="float32")
    config = read_config(folder)
    tokenizer = load_tokenizer(folder, config.tokenizer)
    file = scratch / f"{audio_s:g}-{rows}.npy"
    np.save(file, np.stack([sound(audio_s, seed) for seed in range(rows)]))
    job = {
        "waveforms": str(file),
        "tokens": round(TOKENS_PER_S * audio_s),
        "prompt": prompt_tokens(Task("en"), config, tokenizer),
        "banned": [tokenizer.end_id, tokenizer.pad_id],
    }
    found: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for round_ in range(rounds + 1):
        for side in sides:
            answer = side.asked(job)
            if round_:  # the first is to warm up
                found[side.name].append(answer)
    first = found[sides[0].name][0]["tokens"]
    return {
        "audio_s": audio_s,
        "rows": rows,
        "tokens": job["tokens"],
        "sides": {name: _median(answers, first, audio_s * rows) for name, answers in found.items()},
    }


def _median(answers: list[dict[str, Any]], tokens: list[list[int]], audio_s: float) -> dict[str, float]:
    result = {stage: statistics.median(answer[stage] for answer in answers) for stage in STAGES}
    result["total"] = statistics.median(sum(answer[stage] for stage in STAGES) for answer in answers)
    result["rtfx"] = audio_s / result["total"]
    result["cpu"] = statistics.median(answer["cpu"] for answer in answers)
    pairs = [(ours, theirs) for a, b in zip(tokens, answers[0]["tokens"], strict=True) for ours, theirs in zip(a, b)]  # noqa: B905
    result["same_tokens"] = sum(ours == theirs for ours, theirs in pairs) / len(pairs)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; × is against the first side, by time."""
    lines = [
        "| audio, rows | | features s | encode s | decode s | RTFx | × | CPU s | same tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        name = f"{result['audio_s']:g} s × {result['rows']}, {result['tokens']} tokens"
        ours = next(iter(result["sides"].values()))
        for side, r in result["sides"].items():
            lines.append(
                f"| {name} | {side} | {r['features']:.3f} | {r['encode']:.2f} | {r['decode']:.2f} | {r['rtfx']:.1f} "
                f"| {r['rtfx'] / ours['rtfx']:.2f} | {r['cpu']:.2f} | {100 * r['same_tokens']:.0f} % |"
            )
            name = ""
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--setup", type=Path, metavar="DIR", help="make the peers' environments there, and no more")
    options.add_argument("--environments", type=Path, metavar="DIR", help="where they were made")
    options.add_argument("--model", type=Path, help="a .nemo archive")
    options.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)} (default %(default)s)")
    options.add_argument("--seconds", default="10,35", help="lengths of audio (default %(default)s)")
    options.add_argument("--rows", default="1", help="audios at once (default %(default)s)")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    if given.setup:
        set_up(given.setup)
        return
    if not given.environments or not given.model:
        options.error("--environments and --model are needed to compare")
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(given.threads)), "PYTHONPATH": "."}
    archive = given.model.resolve()
    resolve(archive, dtype="float32")
    sides = [started("ours", Path(sys.executable), archive, environment)]
    environments = given.environments.absolute()
    for peer in filter(None, given.peers.split(",")):
        weights = exported(environments, archive) if peer == "onnxruntime" else archive
        sides.append(started(peer, environments / peer / "bin" / "python", weights, environment))
    for side in sides:
        print(f"{side.name} loaded in {side.answer()['load_s']:.1f} s", file=sys.stderr)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for rows in map(int, given.rows.split(",")):
            for audio_s in map(float, given.seconds.split(",")):
                results.append(compared(sides, archive, audio_s, rows, given.rounds, Path(scratch)))
                print(table(results[-1:]), file=sys.stderr)
    print(table(results))
    if given.json:
        measured = {"threads": given.threads, "platform": platform.platform(), "results": results}
        given.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for side in sides:
        assert side.process.stdin
        side.process.stdin.close()
        side.process.wait()


if __name__ == "__main__":
    main()
