"""What packing weights costs and saves: the toy's scores, and the distance to float32 at canary-180m-flash's shape.

    python -m tests.bench.quantization --large canary-180m-flash.nemo

Prints the tables of convert/README.md. The numbers are those that `canary convert --quantize` would store. The toy's
layers are 80 and 112 wide, which no group size divides: here, unlike there, each row's last group is a shorter one, so
that all its layers are packed.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from convert.hub import resolve
from convert.quantize import is_large
from model.canary.model import CanaryModel
from model.config import WEIGHTS_FILE
from model.cpu.layout import is_read_for_each_token, lay_out
from model.task import Task
from server.cli.bench.stages import sound
from tests.packing import computing_in_8_bits
from tests.toy.grammar import LANGUAGES
from tests.toy.score import PAIRS, Heard, exact, recordings

Change = Callable[[str, mx.array], mx.array]
TOKENS = 40
# What --quantize leaves alone although it is a matrix.
KEPT = {
    "projection of positions": "self_attn.linear_pos.weight",
    "subsampling": "encoder.subsampling.",
    "between encoder and decoder": "encoder_decoder_proj.weight",
    "embedding and head": "decoder.token_embedding.weight",
}


@dataclass(frozen=True)
class Way:
    """How weights are stored: `bits` in groups, or all of them as bfloat16, or as they are.

    computed_in_8_bits: as on a CPU that is fast at it.
    """

    name: str
    bits: int | None = None
    group_size: int = 64
    computed_in_8_bits: bool = False

    def stored(self, name: str, weight: mx.array) -> mx.array:
        """What a weight is after it was stored and read."""
        if name.startswith("preprocessor.") or self.name == "float32":
            return weight
        if self.bits is None or not is_large(name):
            return weight.astype(mx.bfloat16).astype(mx.float32)
        return repacked(weight.astype(mx.bfloat16), self.bits, self.group_size).astype(mx.float32)

    def size(self, name: str, weight: mx.array) -> float:
        """Bytes that it takes."""
        if name.startswith("preprocessor.") or self.name == "float32":
            return weight.size * 4
        if self.bits is None or not is_large(name):
            return weight.size * 2
        # A scale and an offset of 16 bits for each group.
        return weight.size * (self.bits / 8 + 4 / self.group_size)


WAYS = [
    Way("float32"),
    Way("bfloat16"),
    *(Way(f"{bits} bits, groups of {group}", bits, group) for bits in (8, 4) for group in (32, 64, 128)),
    *(Way(f"{bits} bits, groups of 64, computed in 8 bits", bits, computed_in_8_bits=True) for bits in (8, 4)),
]


def repacked(weight: mx.array, bits: int, group_size: int) -> mx.array:
    """A matrix after it was packed and unpacked; a row's last group may be a shorter one."""
    missing = -weight.shape[1] % group_size
    # Filled up with the last number of each row: it moves neither the least nor the most of a group.
    filled = mx.pad(weight, [(0, 0), (0, missing)], mode="edge")
    return mx.dequantize(*mx.quantize(filled, group_size, bits), group_size, bits)[:, : weight.shape[1]]


def loaded(folder: Path, change: Change | None = None, in_8_bits: bool = False) -> CanaryModel:
    """The model in `folder` with its weights changed, and computing in 8 bits as a CPU does that is fast at it."""

    def laid_out(canary: CanaryModel) -> None:
        if change:
            weights = tree_flatten(canary.parameters())
            canary.update(tree_unflatten([(name, change(name, weight)) for name, weight in weights]))
            mx.eval(canary.parameters())
        lay_out(computing_in_8_bits(canary, is_in_8_bits) if in_8_bits else canary)

    with patch("model.cpu.layout.lay_out", laid_out):
        return CanaryModel.load(folder, "float32")


def is_in_8_bits(name: str, layer: nn.Module) -> bool:
    """Whether a CPU that is fast at 8 bits computes it in them."""
    return is_large(f"{name}.weight") or is_read_for_each_token(name, layer)


def exact_shares(canary: CanaryModel, count: int) -> dict[str, float]:
    """Shares of sentences never met that are written, and translated, with not one letter wrong."""
    items = {language: recordings(language, count) for language in LANGUAGES}

    def share(pairs: Iterable[tuple[str, str]]) -> float:
        shares = []
        for source, target in pairs:
            waveforms = [item.waveform for item in items[source]]
            transcripts = canary.transcribe(waveforms, Task(source, target))
            shares.append(exact(items[source], [Heard(t.text, []) for t in transcripts], target))
        return float(np.mean(shares))

    return {"written": share([(language, language) for language in LANGUAGES]), "translated": share(PAIRS)}


def log_probs(canary: CanaryModel) -> np.ndarray:
    """(sounds · tokens, V), teacher-forced over tokens and sounds that are the same for every model."""
    rows = []
    for seed in range(2):
        tokens = np.random.default_rng(seed).integers(0, canary.config.vocab_size, TOKENS).tolist()
        vectors = canary.encodings([sound(10, seed)])[0].vectors[None]
        rows.append(np.array(canary.forced_log_probs([tokens], vectors, [vectors.shape[1]])[0]))
    return np.concatenate(rows).astype(np.float64)


def distance(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """How far log-probabilities are off, as a share of their own spread; how often the best token is another."""
    spread = (true - true.mean(-1, keepdims=True)).std()
    return float(np.sqrt(((found - true) ** 2).mean()) / spread), float((found.argmax(-1) != true.argmax(-1)).mean())


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--large", type=Path, required=True, help="an archive of the 180m shape")
    options.add_argument("--toy", default="toy")
    options.add_argument("--count", type=int, default=50, help="recordings for each language (default %(default)s)")
    given = options.parse_args()
    toy, large = (resolve(name, dtype="float32") for name in (given.toy, given.large))
    of_large = mx.load(str(large / WEIGHTS_FILE))
    assert isinstance(of_large, dict)
    true = log_probs(loaded(large))

    print("| weights | 180m shape, MB | off by | another best token | toy: exact sentences | toy: exact translations |")
    print("|---|---|---|---|---|---|")
    for way in WAYS:
        shares = exact_shares(loaded(toy, way.stored, way.computed_in_8_bits), given.count)
        off, other = distance(log_probs(loaded(large, way.stored, way.computed_in_8_bits)), true)
        size = sum(way.size(name, weight) for name, weight in of_large.items()) / 1e6
        scores = f"{100 * shares['written']:.1f} % | {100 * shares['translated']:.1f} %"
        print(f"| {way.name} | {size:.0f} | {100 * off:.2f} % | {100 * other:.1f} % | {scores} |", flush=True)

    print("\n| packed besides, 4 bits in groups of 64 | saves, MB | off by, alone |")
    print("|---|---|---|")
    for kind, part in [("the large layers themselves", ""), *KEPT.items()]:

        def chosen(name: str, weight: mx.array, part: str = part) -> bool:
            return is_large(name) if not part else part in name and weight.ndim == 2

        def change(name: str, weight: mx.array, chosen: Callable[[str, mx.array], bool] = chosen) -> mx.array:
            return repacked(weight, 4, 64) if chosen(name, weight) else weight

        size = sum(w.size * (2 - 0.5 - 4 / 64) for name, w in of_large.items() if chosen(name, w)) / 1e6
        off, _ = distance(log_probs(loaded(large, change)), true)
        print(f"| {kind} | {size:.1f} | {100 * off:.2f} % |", flush=True)


if __name__ == "__main__":
    main()
