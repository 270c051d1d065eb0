"""Long toy speech with known words and times, and how far a transcript is from them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.toy.grammar import sentence
from tests.toy.speech import SAMPLE_RATE, VOICES, WordTime, silence, speak

# Around a sentence that is given to the model by itself: no cut ever falls on the first sample of a word.
AROUND = silence(0.3)
# Between sentences, in seconds: none (as between words), short, as trained, long and very long.
PAUSES_S = (0.08, 0.15, 0.3, 0.6, 0.9, 2.0, 5.0)

Pairs = list[tuple[int | None, int | None]]
"""An alignment: places in the reference and in the hypothesis, None for a word that the other side lacks."""


@dataclass(frozen=True, eq=False)
class Talk:
    """sentences: each one's waveform, silence around it, and words."""

    language: str
    waveform: np.ndarray
    spoken: list[WordTime]
    sentences: list[tuple[np.ndarray, list[str]]]

    @property
    def words(self) -> list[str]:
        return [word for word, _, _ in self.spoken]


def talk(language: str, seconds: float, seed: int = 7, pauses_s: tuple[float, ...] = PAUSES_S) -> Talk:
    """Unseen sentences one after the other, by one voice a minute or so."""
    rng = random.Random(seed)
    parts, spoken, sentences, samples = [], [], [], 0
    voice = rng.choice(VOICES[language])
    while samples < seconds * SAMPLE_RATE:
        if rng.random() < 0.05:
            voice = rng.choice(VOICES[language])
        said = sentence(rng, "test").words(language)
        waveform, times = speak(said, language, voice, rng, lead_s=0, tail_s=0, noise=0.001)
        at = samples / SAMPLE_RATE
        spoken += [(word, start + at, end + at) for word, start, end in times]
        sentences.append((np.concatenate([AROUND, waveform, AROUND]), said))
        parts += [waveform, silence(rng.choice(pauses_s))]
        samples += len(waveform) + len(parts[-1])
    return Talk(language, np.concatenate(parts), spoken, sentences)


def normal(words: list[str]) -> list[str]:
    """Without capitals and marks, which a cut between sentences without a pause cannot tell."""
    return [word.casefold().strip(".,?!¿¡") for word in words]


def pairs(reference: list[str], hypothesis: list[str]) -> Pairs:
    """The alignment of least edits: (place, place), None for a word that the other side lacks."""
    known = {word: number for number, word in enumerate({*reference, *hypothesis})}
    ours, theirs = (np.array([known[word] for word in words], np.int32) for words in (reference, hypothesis))
    cost = np.zeros((len(ours) + 1, len(theirs) + 1), np.int32)
    offset = np.arange(len(theirs) + 1, dtype=np.int32)
    cost[0] = offset
    for i in range(1, len(cost)):
        cost[i, 0] = i
        cost[i, 1:] = np.minimum(cost[i - 1, :-1] + (theirs != ours[i - 1]), cost[i - 1, 1:] + 1)
        # An insertion costs one more than what is to its left: a running minimum.
        cost[i] = np.minimum.accumulate(cost[i] - offset) + offset
    return list(reversed(list(_back(cost, ours, theirs))))


def _back(cost: np.ndarray, reference: np.ndarray, hypothesis: np.ndarray) -> Iterator[tuple[int | None, int | None]]:
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
    edits = sum(i is None or j is None or reference[i] != hypothesis[j] for i, j in pairs(reference, hypothesis))
    return edits / len(reference)
