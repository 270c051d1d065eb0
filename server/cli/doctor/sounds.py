"""Speech-like sounds that come out the same on every machine, so that none has to be stored.

Phases are 32-bit integers and the result is rounded to 16 bits: what is left of a libm's last bit is lost in rounding.
"""

from functools import cache

import numpy as np

SAMPLE_RATE = 16000

# Samples by name: exact and odd lengths, one that transcribe() pads, and one too long for some archive's decoder.
LENGTHS = {"0.35s": 5600, "1s": 16000, "2.37s": 37927, "5.5s": 88001, "12s": 192000}

_TURN = 1 << 32


@cache
def sound(name: str) -> np.ndarray:
    """One of LENGTHS: (samples,) float32 in [-1, 1) at 16 kHz. All callers share the array: do not write to it."""
    length = LENGTHS[name]
    rng = np.random.default_rng(list(LENGTHS).index(name))
    waveform = np.zeros(length)
    start = 0
    while start < length:
        n = min(int(rng.integers(1200, 4800)), length - start)
        kind = rng.random()
        if kind < 0.7:
            waveform[start : start + n] = _vowel(n, rng)
        elif kind < 0.9:
            waveform[start : start + n] = _hiss(n, rng)
        start += n
    waveform += 0.006 * rng.standard_normal(length)
    return (np.round(waveform * 32767).clip(-32768, 32767) / 32768).astype(np.float32)


def checksum(waveform: np.ndarray) -> int:
    """Of the 16-bit samples: a platform whose arithmetic changes one would compare with another sound."""
    samples = (waveform.astype(np.float64) * 32768).astype(np.int64)
    return int(samples @ (np.arange(len(samples)) % 251 + 1))


def _vowel(n: int, rng: np.random.Generator) -> np.ndarray:
    """Harmonics of a gliding pitch under two formants, rising and falling."""
    first_hz, last_hz = rng.uniform(90, 240, 2)
    formants_hz = np.array([rng.uniform(280, 900), rng.uniform(900, 2600)])
    steps = np.linspace(first_hz, last_hz, n) * _TURN / SAMPLE_RATE
    phase = np.cumsum(steps.astype(np.int64))
    voiced = np.zeros(n)
    for harmonic in range(1, 24):
        distance = (harmonic * (first_hz + last_hz) / 2 - formants_hz) / 150
        loudness = (1 / (1 + distance**2)).sum()
        voiced += loudness * np.sin((harmonic * phase % _TURN) * (2 * np.pi / _TURN))
    return 0.12 * rng.uniform(0.3, 1) * voiced * np.sin(np.linspace(0, np.pi, n))


def _hiss(n: int, rng: np.random.Generator) -> np.ndarray:
    """A fricative: noise without its low end."""
    noise = rng.standard_normal(n + 1)
    return 0.05 * rng.uniform(0.3, 1) * np.diff(noise) * np.sin(np.linspace(0, np.pi, n))
