"""What one look at a growing window costs, by part: with everything computed anew, and going on from the last look.

    OPENBLAS_NUM_THREADS=1 python -m tests.live.looks --shape canary-180m-flash --windows 2 5 10 20
    OPENBLAS_NUM_THREADS=1 python -m tests.live.looks --errors

Random weights in a published shape, CPU seconds, the median of pairs that take turns in one process. A speaker is
assumed to have said 4 tokens a second: all but those of the last 1.5 s are certain, the others are the tail, and 2 are
new. The last look was 0.4 s earlier.
"""

import argparse
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from model import listening
from model.arrays import as_on_gpu
from model.canary.config import DecoderConfig
from model.canary.decoder import TextMemory
from model.canary.generate import RunningBatch
from model.canary.model import CanaryModel
from model.canary.rows import Utterance
from model.cpu.layout import lay_out
from model.decoding import DecodingOptions, Encoded, Generated
from tests.configs import canary_config, encoder_config

SAMPLE_RATE = 16_000
TOKENS_PER_S, TAIL, NEW = 4, 6, 2
STEP_S = 0.4
PROMPT = list(range(4, 13))
NEVER = -1  # a token that is never written
PARTS = ("encoding", "prefill", "steps", "attention")


@dataclass(frozen=True)
class Shape:
    """Layers and widths of a published model."""

    layers: int
    width: int
    decoder_layers: int
    vocabulary: int
    decoder_width: int = 1024


SHAPES = {
    "canary-180m-flash": Shape(17, 512, 4, 5248),
    "canary-1b-flash": Shape(32, 1024, 4, 5248),
    "canary-1b-v2": Shape(32, 1024, 8, 16384),
}


def random_model(shape: Shape) -> CanaryModel:
    """A Canary of this shape, without a tokenizer."""
    encoder = encoder_config(
        feat_in=128, n_layers=shape.layers, d_model=shape.width, n_heads=8, subsampling_conv_channels=256
    )
    config = canary_config("random")
    config = replace(
        config,
        vocab_size=shape.vocabulary,
        preprocessor=replace(config.preprocessor, features=128),
        encoder=encoder,
        decoder=DecoderConfig(shape.decoder_width, 4 * shape.decoder_width, shape.decoder_layers, 8, 1024),
    )
    model = CanaryModel(config, tokenizer=None)  # type: ignore[arg-type]
    random = np.random.default_rng(0)

    def drawn(path: str, like: mx.array) -> mx.array:
        values = random.standard_normal(like.shape, np.float32)
        if path == "preprocessor.fb":
            return mx.array(np.abs(values))
        if "norm" in path and path.endswith("weight"):
            return mx.array(1 + 0.1 * values)
        return mx.array(values * (max(1, like.shape[-1]) ** -0.5 if like.ndim > 1 else 0.1))

    model.update(tree_map_with_path(drawn, model.parameters()))
    mx.eval(model.parameters())
    if not as_on_gpu():
        lay_out(model)
    return model


class Costs:
    """CPU seconds by part. average: of those that were measured."""

    def __init__(self, average: Callable[[list[float]], float] = statistics.median) -> None:
        self._average = average
        self._taken: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        mx.synchronize()
        began = time.process_time()
        yield
        mx.synchronize()
        self._taken[part].append(time.process_time() - began)

    def __getitem__(self, part: str) -> float:
        return self._average(self._taken[part] or [0.0])

    @property
    def total(self) -> float:
        return sum(self[part] for part in PARTS)


def sound(seconds: float) -> np.ndarray:
    """Noise whose loudness wanders."""
    random = np.random.default_rng(1)
    n = int(seconds * SAMPLE_RATE)
    swell = np.interp(np.arange(n), np.linspace(0, n, 40), random.uniform(0.01, 0.3, 40))
    return (random.standard_normal(n) * swell).astype(np.float32)


def decoded(model: CanaryModel, utterance: Utterance, costs: Costs) -> Generated:
    """Its text, and what its prefill and its steps cost."""
    batch = RunningBatch(model.decoder, model.head, NEVER, NEVER)
    with costs.of("prefill"):
        finished = batch.join([utterance])
    with costs.of("steps"):
        while batch.rows:
            finished += batch.step()
    return finished[0]


def growing(model: CanaryModel, window: np.ndarray, before: Encoded | None = None) -> Encoded:
    (encoded,) = model.growing_encodings([window], [before])
    return encoded


def utterance(model: CanaryModel, encoded: Encoded, prompt: list[int], new: int) -> Utterance:
    """A text that ends after `new` tokens, and is remembered if its audio is."""
    prompted = model.prompted(0, encoded, prompt, DecodingOptions(beam_size=1, max_new_tokens=new))
    return replace(prompted, memory=encoded.memory, attention=True, remember=encoded.memory is not None)


def compared(
    model: CanaryModel, window: np.ndarray, before: Encoded | None, rounds: int, anew: Costs, further: Costs
) -> Encoded:
    """Adds what a look costs anew, and going on from `before`; returns what the next look goes on from."""
    said_s = max(0.0, len(window) / SAMPLE_RATE - 1.5)
    prompt = PROMPT + np.random.default_rng(2).integers(4, 1000, int(TOKENS_PER_S * said_s)).tolist()
    grown = growing(model, window, before)
    # What the last look wrote: keys and values of its own, and the tail that this one will find again.
    former = decoded(model, utterance(model, before or grown, prompt, TAIL), Costs()).memory
    now = decoded(model, utterance(model, grown, prompt, TAIL), Costs())
    memory = TextMemory(prompt + now.tokens, former.layers)
    for _ in range(rounds):
        with anew.of("encoding"):
            (encoded,) = model.encodings([window])
        generated = decoded(model, replace(utterance(model, encoded, prompt, TAIL + NEW), attention=False), anew)
        with anew.of("attention"):
            model.cross_attention(encoded, prompt, generated.tokens)
        with further.of("encoding"):
            encoded = growing(model, window, before)
        decoded(model, replace(utterance(model, encoded, prompt, TAIL + NEW), before=memory), further)
    return grown


def at(model: CanaryModel, window_s: float, rounds: int) -> tuple[Costs, Costs]:
    """Median costs of a look at a window of this length, which the last look saw all but the end of."""
    anew, further, window = Costs(), Costs(), sound(window_s)
    compared(model, window, growing(model, window[: -int(STEP_S * SAMPLE_RATE)]), rounds, anew, further)
    return anew, further


def throughout(model: CanaryModel, longest_s: float) -> tuple[Costs, Costs]:
    """Mean costs of all looks at a window that grows to this length, those that encode it whole again among them."""
    anew, further, window = Costs(statistics.mean), Costs(statistics.mean), sound(longest_s)
    before = None
    for end in np.arange(STEP_S, longest_s + 0.01, STEP_S):
        # Shorter audio is padded, and encoded whole.
        before = compared(model, window[: round(end * SAMPLE_RATE)], before if end > 1 else None, 1, anew, further)
    return anew, further


def errors(model: CanaryModel, waveforms: list[np.ndarray], settled_s: float, growth: float) -> tuple[float, ...]:
    """How far encoder vectors of growing audio are from those of a whole window, and steps computed a look.

    Means over looks after 4 s of the vectors' relative errors: of steps that were kept, and of later ones.
    """
    model._steps_to_settle, listening.GROWTH = round(settled_s / model.config.step_s), growth
    found, computed = [], []
    for waveform in waveforms:
        encoded = None
        for end in np.arange(1.2, len(waveform) / SAMPLE_RATE + 0.01, STEP_S):
            window = waveform[: round(end * SAMPLE_RATE)]
            encoded = growing(model, window, encoded)
            computed.append(len(encoded.vectors) - encoded.reused)
            if end > 4 and encoded.reused:
                whole = model.xp.to_numpy(model.encodings([window])[0].vectors)
                off = np.linalg.norm(model.xp.to_numpy(encoded.vectors) - whole, axis=1) / np.linalg.norm(whole, axis=1)
                found.append((off[: encoded.reused].mean(), off[encoded.reused :].mean()))
    return (*np.mean(found, axis=0), float(np.mean(computed)))


def show_errors(model: CanaryModel, waveforms: list[np.ndarray]) -> None:
    """A table over how long steps settle, and how far a window grows until it is encoded whole again."""
    print("| settled after | whole again at | error of kept steps | of later ones | steps computed a look |")
    print("|---|---|---|---|---|")
    for settled_s in (1.0, 2.0):
        for growth in (1.5, 2.0, math.inf):
            kept, later, steps = errors(model, waveforms, settled_s, growth)
            print(f"| {settled_s:g} s | × {growth:g} | {kept:.1%} | {later:.1%} | {steps:.0f} |", flush=True)


def toy_speech() -> tuple[CanaryModel, list[np.ndarray]]:
    """The toy, and speech that it never met, 20 s at a time."""
    from convert.hub import resolve
    from model import loading
    from tests.live.speaking import speech

    toy = loading.load(resolve("toy", dtype="float32"), "float32")
    assert isinstance(toy, CanaryModel)
    said = [speech(language, 40, seed=3).waveform for language in ("en", "de")]
    return toy, [each[at : at + 20 * SAMPLE_RATE] for each in said for at in (0, 8 * SAMPLE_RATE)]


def show_costs(shape: str, windows: list[float], growing_to: float | None, rounds: int) -> None:
    """A table of what looks at windows of these lengths cost, and of the mean while one grows."""
    model = random_model(SHAPES[shape])
    print(f"{shape}, float32, CPU ms of a look")
    print(
        "| window | | encoding | prefill | steps | attention | whole look | share |\n|---|---|---|---|---|---|---|---|"
    )
    for window_s in windows:
        show(f"{window_s:g} s", *at(model, window_s, rounds))
    if growing_to:
        show(f"0 to {growing_to:g} s", *throughout(model, growing_to))


def show(window: str, anew: Costs, further: Costs) -> None:
    """Two rows of the table."""
    for name, costs in (("anew", anew), ("further", further)):
        parts = " | ".join(f"{1000 * costs[part]:.0f}" for part in PARTS)
        row = f"| {window} | {name} | {parts} | {1000 * costs.total:.0f} | {costs.total / anew.total:.2f} |"
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--errors", action="store_true", help="instead: how far off the vectors are, of toy and shape")
    parser.add_argument("--shape", choices=SHAPES, default="canary-180m-flash")
    parser.add_argument("--windows", type=float, nargs="*", default=[2, 5, 10, 20], help="in seconds")
    parser.add_argument(
        "--growing-to", type=float, help="also the mean of all looks at a window that grows to so many s"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.errors:
        print("the toy, on speech that it never met")
        show_errors(*toy_speech())
        print(f"{options.shape} with random weights, on noise")
        show_errors(random_model(SHAPES[options.shape]), [sound(20.0)])
    else:
        show_costs(options.shape, options.windows, options.growing_to, options.rounds)


if __name__ == "__main__":
    main()
