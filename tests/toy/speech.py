"""Toy speech: espeak-ng speaks words one by one, which are joined with short gaps, so that each word's time is known.

    waveform, times = speak(["The", "dog", "is", "big."], "en", "en-us+f2", random.Random(0))

Needs the program espeak-ng. Each (word, voice, rate, pitch) is spoken once and cached.
"""

import json
import random
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000
_ESPEAK_RATE = 22_050

_VARIANTS = ("", "+m1", "+m3", "+m4", "+f1", "+f2", "+f4")
VOICES = {
    "en": (*(f"en-us{v}" for v in _VARIANTS), "en-gb", "en-gb+f2"),
    "de": tuple(f"de{v}" for v in _VARIANTS),
    "es": (*(f"es{v}" for v in _VARIANTS), "es-419", "es-419+f2"),
    "fr": tuple(f"fr-fr{v}" for v in _VARIANTS),
}
"""The voices of the training speech by language."""
UNSEEN_VOICES = {
    "en": ("en-us+f3", "en-us+m7"),
    "de": ("de+f3", "de+m7"),
    "es": ("es+f3", "es+m7"),
    "fr": ("fr-fr+f3", "fr-fr+m7"),
}
"""Voices that the toy model was not trained on."""
STYLES = ((145, 40), (160, 55), (180, 45))
"""Words per minute and pitch (0 to 99), in espeak-ng's terms."""

WordTime = tuple[str, float, float]
_spoken: dict[tuple[str, str, int, int], np.ndarray] = {}


def speak(
    words: list[str],
    language: str,
    voice: str | None = None,
    rng: random.Random | None = None,
    *,
    lead_s: float | None = None,
    tail_s: float | None = None,
    pause_s: float | None = None,
    noise: float | None = None,
) -> tuple[np.ndarray, list[WordTime]]:
    """One voice speaking `words`, with a longer pause (`pause_s`) after a word that ends in . ? or !

    voice: an espeak-ng voice, or None for one of VOICES[language]. Arguments that are None are chosen by `rng`: silence
    of 0-0.6 s before and after, pauses of 0.3-0.9 s, noise with a standard deviation of 0-0.01 (speech peaks near 0.5).
    Returns the waveform (N,) float32 at 16 kHz and (word, start_s, end_s) for each word.
    """
    rng = rng or random.Random(0)
    voice = voice or rng.choice(VOICES[language])
    rate, pitch = rng.choice(STYLES)
    parts = [silence(rng.uniform(0, 0.6) if lead_s is None else lead_s)]
    at, times = len(parts[0]), []
    for i, word in enumerate(words):
        sound = spoken_word(word, voice, rate, pitch)
        times.append((word, at / SAMPLE_RATE, (at + len(sound)) / SAMPLE_RATE))
        if i == len(words) - 1:
            gap_s = rng.uniform(0, 0.6) if tail_s is None else tail_s
        elif word[-1] in ".?!":
            gap_s = rng.uniform(0.3, 0.9) if pause_s is None else pause_s
        else:
            gap_s = rng.uniform(0.02, 0.14)
        parts += [sound, silence(gap_s)]
        at += len(sound) + len(parts[-1])
    waveform = np.concatenate(parts)
    level = rng.choice((0.0, rng.uniform(0, 0.01))) if noise is None else noise
    if level:
        waveform = waveform + hiss(len(waveform), level, rng)
    return waveform.astype(np.float32), times


def silence(duration_s: float) -> np.ndarray:
    """Digital silence, float32 at 16 kHz."""
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def hiss(length: int, level: float, rng: random.Random) -> np.ndarray:
    """White noise of `length` samples with a standard deviation of `level`."""
    return np.random.default_rng(rng.getrandbits(32)).standard_normal(length, np.float32) * np.float32(level)


def spoken_word(word: str, voice: str, rate: int, pitch: int) -> np.ndarray:
    """A single word without silence around it, with a peak of 0.5, float32 at 16 kHz."""
    key = (bare(word), voice, rate, pitch)
    if key not in _spoken:
        _spoken[key] = _espeak(*key)
    return _spoken[key].astype(np.float32) / 32767


@cache
def bare(word: str) -> str:
    """The word in lower case and without punctuation, as it is pronounced."""
    return word.lower().strip(".,?!¿¡")


def load_spoken(path: Path) -> None:
    """Load the words that `save_spoken` wrote to an .npz file, if there is one."""
    if path.exists():
        stored = np.load(path)
        ends = np.cumsum(stored["lengths"])
        for key, sound in zip(json.loads(str(stored["keys"])), np.split(stored["samples"], ends[:-1]), strict=True):
            _spoken[tuple(key)] = sound


def save_spoken(path: Path) -> None:
    """Save all words spoken so far to an .npz file."""
    sounds = list(_spoken.values())
    np.savez(path, keys=json.dumps(list(_spoken)), lengths=[len(s) for s in sounds], samples=np.concatenate(sounds))


def _espeak(word: str, voice: str, rate: int, pitch: int) -> np.ndarray:
    """The word as spoken by espeak-ng, without the silence around it: int16 samples at 16 kHz."""
    command = ["espeak-ng", "-v", voice, "-s", str(rate), "-p", str(pitch), "--stdout", word]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    samples = np.frombuffer(wav[44:], np.int16).astype(np.float32)  # a streamed WAV's header has no valid length
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    sound = _resampled(samples[loud[0] : loud[-1] + 1])
    return np.round(sound / np.abs(sound).max() * 0.5 * 32767).astype(np.int16)


def _resampled(samples: np.ndarray) -> np.ndarray:
    """Resample 22050 Hz to 16 kHz by truncating the spectrum: 441 samples become 320."""
    blocks = -(-len(samples) // 441) + 1
    spectrum = np.fft.rfft(np.pad(samples, (0, blocks * 441 - len(samples))))
    whole = np.fft.irfft(spectrum[: blocks * 160 + 1], blocks * 320) * (SAMPLE_RATE / _ESPEAK_RATE)
    return whole[: round(len(samples) * SAMPLE_RATE / _ESPEAK_RATE)]
