"""Made-up references, and what a recognizer might write for them, with a known share of errors."""

import random
from pathlib import Path
from typing import Any

from server.cli.evaluate.manifests import Utterance
from server.cli.evaluate.predictions import Prediction

SENTENCE = "the woman sees ten new houses at school every day and a man sleeps near his old red car"
WORDS = SENTENCE.split()


def prediction(text: str, reference: str, name: str = "a.wav", language: str = "nl", **fields: Any) -> Prediction:
    """In Dutch, for which the normalizer does not read number words."""
    utterance = Utterance(name, Path(name), reference, language, fields.pop("target", None))
    return Prediction(utterance, text, language, **fields)


def spoken(count: int, seed: int = 0) -> list[str]:
    """Sentences of three to twelve words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(count)]


def misheard(references: list[str], rate: float, seed: int) -> list[str]:
    """The sentences with this share of words replaced, left out or doubled."""
    draw = random.Random(seed)
    change = {0: lambda word: ["wrong"], 1: lambda word: [], 2: lambda word: [word, word]}
    return [
        " ".join(
            written
            for word in sentence.split()
            for written in (change[draw.randrange(3)](word) if draw.random() < rate else [word])
        )
        for sentence in references
    ]


def predictions(references: list[str], texts: list[str]) -> list[Prediction]:
    return [
        prediction(text, reference, f"{place}.wav")
        for place, (reference, text) in enumerate(zip(references, texts, strict=True))
    ]
