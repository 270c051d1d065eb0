"""Decode steps on MLX's arrays: primitives of a step and a layer; memory and time with look-ahead off and on.

    python -m tests.bench.steps                                  # both tables
    python -m tests.bench.steps --rows 4 --positions 64 1024     # part of the second

Primitives are counted in the graph, so on a CPU as on a GPU; see `server.cli.doctor.primitives`. Memory and time are
those of one layer's KV cache alone, in canary-1b-v2's shape: on a GPU a whole step is under way while the next one is
prepared, on MLX's CPU back end no more than a layer.
"""

import argparse
import time
from statistics import median

import mlx.core as mx

from tests import primitives
from tests.filled import filled_batch

LAYERS, HEADS, WIDTH = 1, 8, 128
STEPS = 15


def measured(rows: int, positions: int, look_ahead: bool) -> tuple[float, float, float]:
    """Megabytes of the cache, megabytes that a step takes beside it at its peak, CPU ms of a step."""
    mx.synchronize()
    batch = filled_batch(LAYERS, HEADS, WIDTH, rows, positions, look_ahead)
    batch.step()
    mx.synchronize()
    cache, kept = sum(buffer.nbytes for buffer in batch._text._buffers), mx.get_active_memory()
    mx.reset_peak_memory()
    cpu = []
    for _ in range(STEPS):
        began = time.process_time()
        batch.step()
        cpu.append(time.process_time() - began)
    return cache / 1e6, (mx.get_peak_memory() - kept) / 1e6, 1000 * median(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--positions", type=int, nargs="+", default=[64, 512, 1024])
    options = parser.parse_args()

    print("| | primitives |\n|---|---|")
    steps = {layers: primitives.of_step(layers).total() for layers in (4, 5, 8)}
    print(f"| a decoder layer in a step | {steps[5] - steps[4]} |")
    print(f"| a step, 4 decoder layers | {steps[4]} |")
    print(f"| a step, 8 decoder layers | {steps[8]} |")
    print(f"| an encoder layer | {primitives.of_encoder_layer(padded=False).total()} |")
    print(f"| an encoder layer, audios padded | {primitives.of_encoder_layer(padded=True).total()} |")

    mx.set_cache_limit(0)
    print("\n| rows | positions | look-ahead | KV cache, MB | peak beside it, MB | CPU ms a step |")
    print("|---|---|---|---|---|---|")
    for rows in options.rows:
        for positions in options.positions:
            for look_ahead in (False, True):
                cache, beside, cpu = measured(rows, positions, look_ahead)
                ahead = "on" if look_ahead else "off"
                print(f"| {rows} | {positions} | {ahead} | {cache:.0f} | {beside:.1f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
