"""Which part of a hypothesis is stable. Knows tokens and the times they attend to, but no audio.

AlignAtt (Papi et al., 2023): a token is stable if the audio that it attends to is far enough from the end of the
window. LocalAgreement-2 (Polák et al., 2022): it is stable if two consecutive hypotheses agree on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Policy = Literal["alignatt", "agreement"]

# How often a token, a pair or a triple may repeat; more than that is a loop.
MAX_REPEATS = {1: 4, 2: 4, 3: 3}


@dataclass(frozen=True)
class Token:
    """A token and its part of the text (a space begins a word). at_s: seconds into the window that it attends to."""

    id: int
    text: str
    at_s: float


TokenGroup = tuple[Token, ...]


def words(tokens: Sequence[Token]) -> list[TokenGroup]:
    """The tokens grouped by word."""
    grouped: list[list[Token]] = []
    for token in tokens:
        if not grouped or token.text.startswith(" "):
            grouped.append([])
        grouped[-1].append(token)
    return [tuple(word) for word in grouped]


def aligned(tail: Sequence[Token], heard_s: float, margin_s: float) -> list[Token]:
    """AlignAtt: the words of `tail` before the first one that attends to the last `margin_s` of the window."""
    certain: list[Token] = []
    for word in words(tail):
        if max(token.at_s for token in word) > heard_s - margin_s:
            break
        certain += word
    return without_open_mark(certain, tail)


def agreed(tail: Sequence[Token], former: Sequence[Token]) -> list[Token]:
    """LocalAgreement-2: the words that both hypotheses for the text after the stable part begin with."""
    certain: list[Token] = []
    for word, former_word in zip(words(tail), words(former), strict=False):
        mine, theirs = ([token.id for token in w if not is_mark(token)] for w in (word, former_word))
        if mine != theirs:
            break
        same = [token.id for token in word] == [token.id for token in former_word]
        certain += word if same else [token for token in word if not is_mark(token)]
        if not same:
            break
    return without_open_mark(certain, tail)


def without_open_mark(certain: list[Token], tail: Sequence[Token]) -> list[Token]:
    """`certain` without a mark at the very end of the hypothesis: the sentence may continue."""
    if len(certain) == len(tail):
        while certain and is_mark(certain[-1]):
            certain = certain[:-1]
    return certain


def is_mark(token: Token) -> bool:
    """Whether the token is only punctuation."""
    return not any(character.isalnum() for character in token.text)


def without_loop(tokens: Sequence[Token], before: Sequence[Token] = ()) -> list[Token]:
    """`tokens`, which continue `before`, up to where they start to repeat."""
    ids = [token.id for token in before] + [token.id for token in tokens]
    for end in range(len(before) + 1, len(ids) + 1):
        for size, most in MAX_REPEATS.items():
            length = size * (most + 1)
            if length <= end and ids[end - length : end] == ids[end - size : end] * (most + 1):
                return list(tokens[: max(0, end - len(before) - size * most)])
    return list(tokens)
