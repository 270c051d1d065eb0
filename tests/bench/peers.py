"""This project beside others that run the same models: the same weights, sounds, threads and counts, turn by turn.

    python -m tests.bench.peers --setup DIR                  # an environment for each peer, in DIR
    python -m tests.bench.peers --environments DIR --model canary-180m-flash --output RESULTS
    python -m tests.bench.peers --environments DIR --model parakeet-tdt_ctc-110m --output RESULTS

Every side is a process of its own that stays loaded. In a round each works at the same job in its turn, so that
whatever else the machine does falls on all of them. Run it with this project's own Python.
"""

import argparse
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from convert.hub import resolve
from model.canary.config import CanaryConfig
from model.canary.prompt import END, prompt_tokens
from model.config import read_config, read_values
from model.task import Task
from model.tokenizer import PAD, load_tokenizer
from tests.bench import machine
from tests.bench.rounds import ENOUGH_S, ROUNDS, Case, case_of, figures, measured
from tests.bench.sides import CANARY, OURS, PARAKEET, SHAPES, Peer, Side, random_archive, set_up, started, weights_for
from tests.bench.summary import details, plot, table

CASES = "10,35,16x10"


def compared(
    case: Case, sides: dict[str, Side], peers: dict[str, Peer], forced: dict[str, Any], rounds: int, enough_s: float
) -> dict[str, Any]:
    """Figures of each side for a case; of sides that cannot decode several audios together only for one.

    forced: what a Canary's job has besides the waveforms; a Parakeet ends its texts by itself.
    """
    wanted = case.tokens if forced else []
    asked = [side for name, side in sides.items() if peers[name].batches or len(case.lengths) == 1]
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, *case.waveforms())
        file.flush()
        job = {"waveforms": file.name, **forced, **({"tokens": wanted} if forced else {})}
        answers = measured(asked, job, rounds, enough_s)
    ours = answers[OURS][0]
    if "error" in ours:
        raise SystemExit(f"{OURS} failed: {ours['error']}")
    return {
        "case": case.name,
        "lengths": case.lengths,
        "tokens": [len(row) for row in ours["tokens"]],
        "sides": {name: figures(given, ours, sum(case.lengths), wanted) for name, given in answers.items()},
    }


def forced_text(folder: Path) -> dict[str, Any]:
    """The prompt of a converted Canary, and the tokens that would end a text."""
    config = read_config(folder, CanaryConfig)
    tokenizer = load_tokenizer(folder, config.tokenizer)
    return {
        "prompt": prompt_tokens(Task("en"), config, tokenizer),
        "banned": [tokenizer.special_id(token) for token in (END, PAD)],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--setup", type=Path, metavar="DIR", help="make the peers' environments there, and no more")
    options.add_argument("--environments", type=Path, metavar="DIR", help="where they were made")
    shapes = ", ".join(SHAPES)
    options.add_argument("--model", help=f"a .nemo archive, or a shape to build one with random weights of: {shapes}")
    options.add_argument("--peers", help="names, separated by commas; default: all that run the model")
    options.add_argument("--cases", default=CASES, help=f"{case_of.__doc__} Default: %(default)s")
    options.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    least = "that a side works on a case, in all rounds together; default: %(default)g"
    options.add_argument("--seconds", type=float, default=ENOUGH_S, help=least)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--output", type=Path, metavar="DIR", help="where NAME.json, NAME.md and NAME.svg go")
    options.add_argument("--name", default="peers", help="of these files; default: %(default)s")
    given = options.parse_args()
    if given.setup:
        set_up(given.setup, chosen(given.peers, CANARY | PARAKEET, options).values())
        return
    if not given.environments or not given.model:
        options.error("--environments and --model are needed to compare")
    if given.rounds < 1:
        options.error(f"--rounds {given.rounds} is not supported; must be at least 1")
    if given.output and find_spec("matplotlib") is None:
        options.error("--output has a plot, which needs matplotlib: pip install matplotlib")
    environments = given.environments.absolute()
    cases = [case_of(text) for text in given.cases.split(",")]
    archive = Path(given.model).absolute()
    if given.model in SHAPES:
        archive = random_archive(given.model, environments)
    folder = resolve(archive, dtype="float32")
    family = read_values(folder).get("family", "canary")
    every = CANARY if family == "canary" else PARAKEET
    peers = {OURS: every[OURS]} | chosen(given.peers, every, options)
    forced = forced_text(folder) if family == "canary" else {}
    weights = {name: weights_for(peer, environments, archive, family) for name, peer in peers.items()}
    sides = {name: started(name, peer, environments, weights[name], given.threads) for name, peer in peers.items()}
    for name, side in sides.items():
        print(f"{name} loaded in {side.answer()['load_s']:.1f} s", file=sys.stderr)
    ran_on = machine.description()
    found = {"model": archive.name, "threads": given.threads, "machine": ran_on, "results": []}
    for case in cases:
        found["results"].append(compared(case, sides, peers, forced, given.rounds, given.seconds))
        print(details(found["results"][-1:]), file=sys.stderr, flush=True)
        if given.output:
            write(found, given.output, given.name)
    for side in sides.values():
        side.end()
    print(told(found))


def told(found: dict[str, Any]) -> str:
    return f"{table(found)}\n\n{details(found['results'])}\n"


def write(found: dict[str, Any], folder: Path, name: str) -> None:
    """NAME.json, NAME.md and NAME.svg, after each case: the next one may take long, or fail."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(told(found), encoding="utf-8")
    plot(found, folder / f"{name}.svg")


def chosen(names: str | None, every: dict[str, Peer], options: argparse.ArgumentParser) -> dict[str, Peer]:
    """Those of `every` that `names` lists; all if it is None."""
    listed = list(every) if names is None else [name for name in names.split(",") if name]
    if unknown := [name for name in listed if name not in every]:
        options.error(f"peer {unknown[0]!r} is not supported; must be one of {', '.join(every)}")
    return {name: every[name] for name in listed}


if __name__ == "__main__":
    main()
