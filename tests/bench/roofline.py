"""What a device's bandwidth and arithmetic allow at best, on paper: no model is run.

    python -m tests.bench.roofline --gigabytes-per-s 546 --teraflops 16     # an M4 Max with 40 GPU cores
    OMP_NUM_THREADS=1 python -m tests.bench.roofline --measure --bytes 4    # one thread of this CPU, in float32

Counted are the products of the encoder and the decoder, and the bytes that a decode step has to read: the weights once,
each row's self-attention and cross-attention keys and values. Not counted is what launching kernels costs, which on a
GPU is most of a small model's decode step: real figures are below these, and the ratios between rows tell more.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from model.cpu import prepacked
from tests.bench.machine import cpu_name

TOKENS_PER_S = 4.0
STEPS_PER_S = 12.5
SUBSAMPLING_CHANNELS = 256
HEIGHTS = (64, 32, 16)  # of the map after each convolution of stride 2, from 128 mel bands


@dataclass(frozen=True)
class Shape:
    """encoder: layers and width; decoder: layers, its width being 1024; vocabulary: rows of the embedding."""

    encoder_layers: int
    encoder_width: int
    decoder_layers: int
    vocabulary: int
    decoder_width: int = 1024


SHAPES = {
    "canary-180m-flash": Shape(17, 512, 4, 5248),
    "canary-1b-flash": Shape(32, 1024, 4, 5248),
    "canary-1b": Shape(24, 1024, 24, 4128),
    "canary-1b-v2": Shape(32, 1024, 8, 16384),
}


def encode_flops(shape: Shape, audio_s: float) -> float:
    """Two for each multiplication of the encoder's products, and of the cross-attention's keys and values."""
    T, D, C = STEPS_PER_S * audio_s, shape.encoder_width, SUBSAMPLING_CHANNELS
    feed_forward, attention, convolution = 2 * 8 * D * D, 4 * D * D, 3 * D * D
    by_distance = 3 * D * T + D * (2 * T)  # q·k, weights·v, q·positions (2T - 1 of them)
    layers = shape.encoder_layers * T * (feed_forward + attention + convolution + by_distance)
    frames = 4 * T, 2 * T, T
    maps = sum(n * h * C * per for n, h, per in zip(frames, HEIGHTS, (9, 9 + C, 9 + C), strict=True))
    out = T * C * HEIGHTS[-1] * D
    cross = T * 2 * shape.decoder_layers * shape.decoder_width**2
    return 2 * (layers + maps + out + cross)


def step_weights(shape: Shape) -> float:
    """Numbers of the decoder that one step reads: both attentions, both dense layers, the head."""
    M = shape.decoder_width
    return shape.decoder_layers * (4 + 2 + 8) * M * M + shape.vocabulary * M


def step_memory(shape: Shape, audio_s: float) -> float:
    """Numbers that one step reads for one row: keys and values, of half the text and of all of the audio."""
    positions = TOKENS_PER_S * audio_s / 2 + STEPS_PER_S * audio_s
    return shape.decoder_layers * 2 * positions * shape.decoder_width


def seconds(
    shape: Shape, audio_s: float, rows: int, bytes_each: int, bandwidth: float, flops: float
) -> tuple[float, float]:
    """Encoding and decoding of `rows` audios side by side: what is slower of reading and computing."""
    encode_s = rows * encode_flops(shape, audio_s) / flops
    read = bytes_each * (step_weights(shape) + rows * step_memory(shape, audio_s)) / bandwidth
    computed = 2 * rows * (step_weights(shape) + step_memory(shape, audio_s)) / flops
    return encode_s, TOKENS_PER_S * audio_s * max(read, computed)


def measured_rates(seconds: float = 5.0) -> tuple[list[float], list[float]]:
    """Bytes that are read from memory in a second, and float32 operations, in each of many runs.

    Numbers are read by numpy's BLAS, and matrices multiplied by the faster of it and onnxruntime.
    """
    numbers, matrix = np.ones(1 << 26, np.float32), np.ones((2048, 2048), np.float32)
    product = prepacked.product(matrix)

    def rates(amount: float, compute: Callable[[], object]) -> list[float]:
        times = []
        while sum(times) < seconds:
            began = time.perf_counter()
            compute()
            times.append(time.perf_counter() - began)
        return [amount / each for each in times]

    operations = 2 * len(matrix) ** 3
    multiplied = max(rates(operations, lambda: matrix @ matrix), rates(operations, lambda: product(matrix)), key=max)
    return rates(numbers.nbytes, lambda: numbers @ numbers), multiplied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes-per-s", type=float, default=546.0)
    parser.add_argument("--teraflops", type=float, default=16.0)
    parser.add_argument("--measure", action="store_true", help="take both from this CPU: the best, and all of it")
    parser.add_argument("--bytes", type=int, default=2, help="of one weight: 4 float32, 2 bfloat16, 1 in 8 bits")
    parser.add_argument("--share", type=float, default=0.7, help="of both that is reached in practice")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 35.0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    bandwidth, flops = options.share * options.gigabytes_per_s * 1e9, options.share * options.teraflops * 1e12
    if options.measure:
        read, multiplied = measured_rates()
        bandwidth, flops = max(read), max(multiplied)
        print(
            f"{cpu_name()}: at best {bandwidth / 1e9:.1f} GB/s and {flops / 1e12:.3f} TFLOP/s; "
            f"median {median(read) / 1e9:.1f} GB/s and {median(multiplied) / 1e12:.3f} TFLOP/s\n"
        )
    print(
        "| model | audio | rows | encode, ms | decode, ms | a step, ms | × real time |\n|---|---|---|---|---|---|---|"
    )
    for name, shape in SHAPES.items():
        for audio_s in options.seconds:
            for rows in options.rows:
                encode_s, decode_s = seconds(shape, audio_s, rows, options.bytes, bandwidth, flops)
                step_ms = 1000 * decode_s / (TOKENS_PER_S * audio_s)
                speed = rows * audio_s / (encode_s + decode_s)
                print(
                    f"| {name} | {audio_s:g} s | {rows} | {1000 * encode_s:.1f} | {1000 * decode_s:.1f} "
                    f"| {step_ms:.2f} | {speed:,.0f} |"
                )


if __name__ == "__main__":
    main()
