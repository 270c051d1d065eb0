"""Long toy speech with known words and times, and the alignment of a transcript with it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.toy.grammar import sentence
from tests.toy.speech import SAMPLE_RATE, VOICES, WordTime, silence, speak

# Silence around a sentence that is transcribed alone, since long audio is never cut at the first sample of a word.
AROUND = silence(0.3)
# Pauses between sentences in seconds: as between words, short, as in training, long and very long.
PAUSES_S = (0.08, 0.15, 0.3, 0.6, 0.9, 2.0, 5.0)

Pairs = list[tuple[int | None, int | None]]
"""An alignment: pairs of indices into the reference and the hypothesis, None for a missing or an added word."""


@dataclass(frozen=True, eq=False)
class Talk:
    """waveform: the whole audio; spoken: its words with times; sentences: each one's waveform, alone, and its words."""

    language: str
    waveform: np.ndarray
    spoken: list[WordTime]
    sentences: list[tuple[np.ndarray, list[str]]]

    @property
    def words(self) -> list[str]:
        return [word for word, _, _ in self.spoken]


def talk(language: str, seconds: float, seed: int = 7, pauses_s: tuple[float, ...] = PAUSES_S) -> Talk:
    """Consecutive held-out sentences. The voice changes after every 20 sentences on average."""
    rng = random.Random(seed)
    parts, spoken, sentences, samples = [], [], [], 0
    voice = rng.choice(VOICES[language])
    while samples < seconds * SAMPLE_RATE:
        if rng.random() < 0.05:
            voice = rng.choice(VOICES[language])
        words = sentence(rng, "test").words(language)
        waveform, times = speak(words, language, voice, rng, lead_s=0, tail_s=0, noise=0.001)
        at = samples / SAMPLE_RATE
        spoken += [(word, start + at, end + at) for word, start, end in times]
        sentences.append((np.concatenate([AROUND, waveform, AROUND]), words))
        parts += [waveform, silence(rng.choice(pauses_s))]
        samples += len(waveform) + len(parts[-1])
    return Talk(language, np.concatenate(parts), spoken, sentences)


def normalized(words: list[str]) -> list[str]:
    """The words without capitals and punctuation, which cannot be known where sentences have no pause between them."""
    return [word.casefold().strip(".,?!¿¡") for word in words]


def aligned(reference: list[str], hypothesis: list[str]) -> Pairs:
    """The alignment with the fewest edits."""
    numbers = {word: number for number, word in enumerate({*reference, *hypothesis})}
    left, right = (np.array([numbers[word] for word in words], np.int32) for words in (reference, hypothesis))
    cost = np.zeros((len(left) + 1, len(right) + 1), np.int32)
    offset = np.arange(len(right) + 1, dtype=np.int32)
    cost[0] = offset
    for i in range(1, len(cost)):
        cost[i, 0] = i
        cost[i, 1:] = np.minimum(cost[i - 1, :-1] + (right != left[i - 1]), cost[i - 1, 1:] + 1)
        # An insertion costs one more than the cell to the left, which makes this a running minimum.
        cost[i] = np.minimum.accumulate(cost[i] - offset) + offset
    return list(reversed(list(_backtrack(cost, left, right))))


def _backtrack(
    cost: np.ndarray, reference: np.ndarray, hypothesis: np.ndarray
) -> Iterator[tuple[int | None, int | None]]:
    i, j = len(reference), len(hypothesis)
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (reference[i - 1] != hypothesis[j - 1]):
            i, j = i - 1, j - 1
            yield i, j
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            yield i, None
        else:
            j -= 1
            yield None, j


def word_error_rate(reference: list[str], hypothesis: list[str]) -> float:
    edits = sum(i is None or j is None or reference[i] != hypothesis[j] for i, j in aligned(reference, hypothesis))
    return edits / len(reference)
