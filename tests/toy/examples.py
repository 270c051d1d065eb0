"""Training examples: toy speech with the expected output for each task."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .grammar import LANGUAGES, Sentence, sentence, vocabulary
from .speech import SAMPLE_RATE, VOICES, WordTime, hiss, speak

FRAME_S = 0.08  # one encoder frame
LONGEST_S = 20.0
SHORT_PAUSE_S = (0.02, 0.3)  # between sentences spoken without a break; other pauses are chosen by `speak`
SINGLE_WORDS = {language: vocabulary(language) for language in LANGUAGES}


@dataclass
class Answer:
    """One decoder run over an utterance: its prompt slots and expected words, with times if the prompt has them."""

    source: str
    target: str
    pnc: bool
    words: list[str]
    times: list[tuple[float, float]] | None = None
    context: list[str] = field(default_factory=list)  # the preceding text, in the target language


@dataclass
class Utterance:
    """waveform: (N,) float32 at 16 kHz; spoken: its words with times, empty if there is no speech."""

    waveform: np.ndarray
    language: str
    spoken: list[WordTime] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


def utterance(rng: random.Random, progress: float) -> Utterance:
    """One utterance with its answers. Early in training (`progress` 0..1) most have one sentence, later up to five."""
    language = rng.choices(LANGUAGES, weights=(1.5, 1, 1, 1))[0]  # English is translated into three languages
    kind = rng.random()
    if kind < 0.05:
        return _without_speech(rng, language)
    if kind < 0.13:
        return _single_words(rng, language)
    if kind < 0.13 + 0.35 * progress:
        return _excerpt(rng, language)
    longer = min(1.0, progress / 0.25)
    counts = (1, 2, 3, 4, 5)
    n = rng.choices(counts, weights=(10, 5 * longer, 4 * longer, longer, 0.5 * longer))[0]
    return _sentences(rng, language, [sentence(rng, "train") for _ in range(n)])


def _sentences(rng: random.Random, language: str, parts: list[Sentence]) -> Utterance:
    """Consecutive sentences. Sometimes the first lacks its start or the last its end."""
    if rng.random() < 0.12:
        parts[0] = parts[0].after(rng.randrange(1, len(parts[0].phrases)))
    if rng.random() < 0.12:
        parts[-1] = parts[-1].first(rng.randrange(1, len(parts[-1].phrases) + 1))
    count = None
    if rng.random() < 0.1:  # cut off after any word; such an utterance is not translated
        count = rng.randrange(1, len(parts[-1].words(language)) + 1)

    counts = [None] * (len(parts) - 1) + [count]
    written = [part.words(language, True, c) for part, c in zip(parts, counts, strict=True)]
    unfinished = parts[-1].words(language)[count : count + 1] if count and rng.random() < 0.5 else []
    all_words = [word for words in [*written, unfinished] for word in words]
    pause_s = None if rng.random() < 0.6 else rng.uniform(*SHORT_PAUSE_S)
    waveform, spoken = speak(all_words, language, rng=rng, pause_s=pause_s, noise=0.0)
    if unfinished:  # the audio ends in the middle of a word, too early to recognize it
        _, start, end = spoken.pop()
        waveform = waveform[: round((start + rng.uniform(0.05, 0.4) * (end - start)) * SAMPLE_RATE)]
    waveform, spoken = _disturbed(waveform, spoken, rng)
    result = Utterance(waveform, language, spoken)
    if result.duration_s > LONGEST_S:
        return _sentences(rng, language, parts[:1])

    times = [(start, end) for _, start, end in spoken]
    for with_times, chance in ((True, 1.0), (False, 0.5)):
        if rng.random() < chance:
            pnc = rng.random() < 0.7
            words = [w for part, c in zip(parts, counts, strict=True) for w in part.words(language, pnc, c)]
            result.answers.append(Answer(language, language, pnc, words, times if with_times else None))
    if count is None:  # English is translated into two of the other three languages, chosen at random
        for target in rng.sample(LANGUAGES[1:], 2) if language == "en" else ["en"]:
            pnc = rng.random() < 0.7
            words = [word for part in parts for word in part.words(target, pnc)]
            with_times = _spread(parts, language, target, times) if rng.random() < 0.3 else None
            result.answers.append(Answer(language, target, pnc, words, with_times))
    for answer in result.answers:
        if rng.random() < 0.1:
            answer.context = sentence(rng, "train").words(answer.target, answer.pnc)
    return result


def _excerpt(rng: random.Random, language: str) -> Utterance:
    """A stretch of continuous speech, as cut from a long recording: it begins and ends anywhere, with any pauses."""
    length_s, voice = rng.uniform(5, LONGEST_S - 2), rng.choice(VOICES[language])
    parts: list[Sentence] = []
    sounds, spoken, samples = [], [], 0
    while samples < (length_s + 5) * SAMPLE_RATE:
        pause_s = rng.uniform(*SHORT_PAUSE_S) if rng.random() < 0.5 else rng.choice((0.6, 0.9, 1.5, 2.5))
        parts.append(sentence(rng, "train"))
        sound, times = speak(parts[-1].words(language), language, voice, rng, lead_s=0, tail_s=pause_s, noise=0.0)
        at = samples / SAMPLE_RATE
        spoken += [(word, start + at, end + at) for word, start, end in times]
        sounds.append(sound)
        samples += len(sound)
    begin_s = 0.0 if rng.random() < 0.2 else rng.uniform(0, 5)
    begin_s, end_s = (_outside_words(at, spoken) for at in (begin_s, begin_s + length_s))
    inside = [start >= begin_s and end <= end_s for _, start, end in spoken]
    waveform = np.concatenate(sounds)[round(begin_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
    kept = [(w, start - begin_s, end - begin_s) for (w, start, end), i in zip(spoken, inside, strict=True) if i]
    waveform, kept = _disturbed(waveform, kept, rng)
    result = Utterance(waveform, language, kept)
    for with_times, chance in ((True, 1.0), (False, 0.5)):
        if rng.random() < chance:
            pnc, words, at = rng.random() < 0.7, [], 0
            for part in parts:
                marks = inside[at : at + len(part.words(language))]
                at += len(marks)
                if any(marks):
                    stop = len(marks) - marks[::-1].index(True)
                    words += part.words(language, pnc, stop)[marks.index(True) :]
            times = [(start, end) for _, start, end in kept] if with_times else None
            result.answers.append(Answer(language, language, pnc, words, times))
    return result


def _outside_words(at_s: float, spoken: list[WordTime]) -> float:
    """`at_s`, or the nearer edge of a word that it would cut near the middle. Cuts near a word's edges are allowed."""
    for _, start, end in spoken:
        if start + 0.35 * (end - start) < at_s < end - 0.35 * (end - start):
            return start if at_s - start < end - at_s else end
    return at_s


def _spread(parts: list[Sentence], source: str, target: str, times: list) -> list[tuple[float, float]]:
    """Times for translated words: the words of a phrase divide its time in the audio evenly."""
    target_times, at = [], 0
    for phrase in (phrase for part in parts for phrase in part.phrases):
        start, end = times[at][0], times[at + len(phrase.words[source]) - 1][1]
        at += len(phrase.words[source])
        edges = np.linspace(start, end, len(phrase.words[target]) + 1)
        target_times += list(pairwise(edges))
    return target_times


def _single_words(rng: random.Random, language: str) -> Utterance:
    """One or two words of the vocabulary outside a sentence, written as in a dictionary."""
    words = rng.choices(SINGLE_WORDS[language], k=rng.choice((1, 1, 1, 2)))
    waveform, spoken = _disturbed(*speak(words, language, rng=rng, noise=0.0), rng)
    times = [(start, end) for _, start, end in spoken]
    answers = []
    for with_times in (True, False):
        pnc = rng.random() < 0.5
        written = words if pnc else [word.lower() for word in words]
        answers.append(Answer(language, language, pnc, written, times if with_times else None))
    return Utterance(waveform, language, spoken, answers)


def _without_speech(rng: random.Random, language: str) -> Utterance:
    """0.5-8 s of silence, hiss, rumble or a tone."""
    length = round(rng.uniform(0.5, 8) * SAMPLE_RATE)
    kind = rng.choice(("silence", "hiss", "rumble", "tone"))
    waveform = np.zeros(length, np.float32)
    if kind in ("hiss", "tone"):
        waveform += hiss(length, 10 ** rng.uniform(-4, -1), rng)
    if kind == "rumble":
        waveform += _rumble(length, 10 ** rng.uniform(-3, -1), rng)
    if kind == "tone":
        hertz = rng.uniform(50, 3000)
        waveform += 10 ** rng.uniform(-2, -0.5) * np.sin(2 * np.pi * hertz * np.arange(length) / SAMPLE_RATE)
    if rng.random() < 0.3:  # because audio shorter than a second is padded
        waveform = np.pad(waveform, rng.randrange(SAMPLE_RATE // 2))
    target = rng.choice(LANGUAGES) if language == "en" else rng.choice((language, "en"))
    times = [] if rng.random() < 0.5 else None
    answer = Answer(language, target, rng.random() < 0.7, [], times)
    return Utterance(waveform.astype(np.float32), language, [], [answer])


def _disturbed(waveform: np.ndarray, spoken: list[WordTime], rng: random.Random) -> tuple[np.ndarray, list[WordTime]]:
    """The utterance with another speed and pitch, 0.1 to 1.8 times as loud, and usually with some noise."""
    if rng.random() < 0.5:
        speed = rng.uniform(0.92, 1.09)
        waveform = np.interp(np.arange(0, len(waveform) - 1, speed), np.arange(len(waveform)), waveform)
        spoken = [(word, start / speed, end / speed) for word, start, end in spoken]
    if rng.random() < 0.15:
        wait_s = rng.uniform(0.3, 1.5)
        waveform = np.concatenate([np.zeros(round(wait_s * SAMPLE_RATE)), waveform])
        spoken = [(word, start + wait_s, end + wait_s) for word, start, end in spoken]
    if rng.random() < 0.7:
        waveform = waveform + hiss(len(waveform), 10 ** rng.uniform(-4, -1.7), rng)
    if rng.random() < 0.2:
        waveform = waveform + _rumble(len(waveform), 10 ** rng.uniform(-3, -1.7), rng)
    return (waveform * 10 ** rng.uniform(-1, 0.25)).astype(np.float32), spoken


def _rumble(length: int, level: float, rng: random.Random) -> np.ndarray:
    """Noise that falls off towards high frequencies."""
    spectrum = np.fft.rfft(hiss(length, 1.0, rng))
    spectrum /= np.sqrt(np.arange(1, len(spectrum) + 1))
    noise = np.fft.irfft(spectrum, length)
    return level * noise / (noise.std() + 1e-9)
