"""The model by itself: features, encoding and decoding, timed stage by stage.

Everything runs in the calling thread, with a fixed number of tokens: a random or unsuited model writes texts of any
length, which could not be compared.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from model.canary.generate import RunningBatch
from model.canary.model import CanaryModel
from model.canary.rows import Utterance
from model.config import SAMPLE_RATE
from model.decoding import Encoded

TOKENS_PER_S = 4.0
NO_TOKEN = -1
# As long as a canary2 prompt. Which tokens they are does not affect the time.
PROMPT = [5] * 10
STEPS_TIMED = 16


@dataclass(frozen=True)
class Single:
    """One stream: seconds of each stage, the median of the repetitions; cpu_s is the process's time for all three."""

    audio_s: float
    tokens: int
    features_s: float
    encode_s: float
    decode_s: float
    cpu_s: float

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second."""
        return self.audio_s / (self.features_s + self.encode_s + self.decode_s)


@dataclass(frozen=True)
class DecodeCost:
    """A decode step with `rows` rows in the batch, each with `audio_s` of audio."""

    rows: int
    audio_s: float
    step_ms: float
    row_ms: float


@dataclass(frozen=True)
class EncodeCost:
    """Encoding, features included, of one audio."""

    audio_s: float
    encode_s: float
    per_audio_s_ms: float


class EndlessBatch(RunningBatch):
    """A batch in which no token ends a row; only the limit does."""

    def __init__(self, canary: CanaryModel, look_ahead: bool | None = None):
        super().__init__(canary.decoder, canary.head, NO_TOKEN, NO_TOKEN, look_ahead=look_ahead)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise of varying loudness, (N,) float32 at 16 kHz."""
    random = np.random.default_rng(seed)
    n = int(seconds * SAMPLE_RATE)
    swell = np.interp(np.arange(n), np.linspace(0, n, 16), random.uniform(0.01, 0.3, 16))
    return (random.standard_normal(n) * swell).astype(np.float32)


def single_stream(canary: CanaryModel, audio_s: float, repeats: int) -> Single:
    """One audio from waveform to tokens, after one run that does not count."""
    tokens, waveform = round(TOKENS_PER_S * audio_s), sound(audio_s)
    runs = []
    for repeat in range(repeats + 1):
        began = time.process_time()
        encoded = canary.encodings([waveform])[0]
        decode_s = _timed(lambda encoded=encoded: _written(canary, encoded, tokens))
        if repeat:
            runs.append((encoded.features_s, encoded.encode_s, decode_s, time.process_time() - began))
    return Single(audio_s, tokens, *(statistics.median(column) for column in zip(*runs, strict=True)))


def decode_costs(canary: CanaryModel, counts: list[int], audio_s: float) -> list[DecodeCost]:
    """The cost of a step at each number of rows, in the middle of a text of the audio's length."""
    encoded = canary.encodings([sound(audio_s)])[0]
    middle = [5] * (len(PROMPT) + round(TOKENS_PER_S * audio_s / 2))
    costs = []
    for rows in counts:
        batch = EndlessBatch(canary)
        batch.join([Utterance(key, encoded.vectors, middle, 10**6) for key in range(rows)])
        batch.step()
        step_ms = statistics.median(_timed(batch.step) for _ in range(STEPS_TIMED)) * 1000
        costs.append(DecodeCost(rows, audio_s, step_ms, step_ms / rows))
    return costs


def encode_costs(canary: CanaryModel, lengths: list[float], repeats: int) -> list[EncodeCost]:
    """The cost of encoding at each length."""
    costs = []
    for audio_s in lengths:
        waveform = sound(audio_s)
        canary.encodings([waveform])
        seconds = statistics.median(
            _timed(lambda waveform=waveform: canary.encodings([waveform])) for _ in range(repeats)
        )
        costs.append(EncodeCost(audio_s, seconds, seconds / audio_s * 1000))
    return costs


def _written(canary: CanaryModel, encoded: Encoded, tokens: int) -> None:
    batch = EndlessBatch(canary)
    batch.join([Utterance(0, encoded.vectors, PROMPT, tokens)])
    while batch.rows:
        batch.step()


def _timed(work: Callable[[], object]) -> float:
    mx.synchronize()
    began = time.monotonic()
    work()
    mx.synchronize()
    return time.monotonic() - began
