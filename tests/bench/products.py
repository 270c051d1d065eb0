"""One product of a linear layer on one thread of this CPU, in float32, 16 and 8 bits: how fast, and how far off.

    OMP_NUM_THREADS=1 python -m tests.bench.products

numpy packs a weight in each product; onnxruntime has packed it; torch's bfloat16 converts rows from float32 and back.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import mlx.core as mx
import numpy as np
import torch

from model.arrays import numpy as numpy_arrays
from model.cpu import int8, prepacked
from model.process import prepare_process
from tests.bench.machine import cpu_name

# Outputs and inputs of layers in canary-180m-flash: of an encoder's feed-forward, and of a decoder's.
SHAPES = (2048, 512), (512, 2048), (4096, 1024), (1024, 4096)
ROWS = (1, 4, 16, 125)


def ways(weight: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Each takes rows (R, I) and gives (R, O), for a weight (O, I)."""
    as_numpy_reads = np.ascontiguousarray(weight.T).T
    in_16_bits = torch.from_numpy(weight).bfloat16()
    in_8_bits = int8.product(*int8.quantized(mx.array(weight)))

    def bfloat16(x: np.ndarray) -> np.ndarray:
        return torch.nn.functional.linear(torch.from_numpy(x).bfloat16(), in_16_bits).float().numpy()

    return {
        "float32, numpy": lambda x: numpy_arrays.linear(x, as_numpy_reads, None),
        "float32, onnxruntime": prepacked.product(weight),
        "bfloat16, torch": bfloat16,
        "8 bits, onnxruntime": in_8_bits,
    }


def speed(side: Callable[[np.ndarray], np.ndarray], x: np.ndarray, seconds: float) -> float:
    """GFLOP/s of the median run, of as many as take so long."""
    outputs = side(x).shape[-1]
    times = []
    while sum(times) < seconds:
        began = time.perf_counter()
        side(x)
        times.append(time.perf_counter() - began)
    return 2e-9 * x.size * outputs / median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2, help="in each round")
    options = parser.parse_args()
    prepare_process()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print(f"GFLOP/s, least–median–most of {options.rounds} rounds, on one thread of {cpu_name()}\n")
    for outputs, inputs in SHAPES:
        weight = rng.standard_normal((outputs, inputs), np.float32)
        sides = ways(weight)
        print(f"| {outputs} × {inputs} | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}")
        x = rng.standard_normal((max(ROWS), inputs), np.float32)
        for count in ROWS:
            rounds = [
                [speed(side, x[:count], options.seconds) for side in sides.values()] for _ in range(options.rounds)
            ]
            told = (f"{min(each):.0f}–{median(each):.0f}–{max(each):.0f}" for each in zip(*rounds, strict=True))
            print(f"| {count} row{'s' * (count > 1)} | {' | '.join(told)} |", flush=True)
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)
        off = (100 * np.abs(side(x) - exact).mean() / np.abs(exact).mean() for side in sides.values())
        print("| off by | " + " | ".join(f"{each:.2g} %" for each in off) + " |\n")


if __name__ == "__main__":
    main()
