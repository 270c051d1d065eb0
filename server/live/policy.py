"""What of a hypothesis is certain enough to stay. Knows tokens and where in the sound they came from, no audio.

AlignAtt (Papi et al., 2023): a token may stay if the sound that it was written from lies far enough before the end of
what has been heard. LocalAgreement-2 (Polák et al., 2022): it may stay if two hypotheses in a row agree on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Policy = Literal["alignatt", "agreement"]

# How often tokens, pairs and triples of them may come in a row: what is written more often is a loop.
MAX_REPEATS = {1: 4, 2: 4, 3: 3}


@dataclass(frozen=True)
class Token:
    """A token, its part of the text (a word's first begins with a space), and the seconds into the window that the
    decoder looked at for it."""

    id: int
    text: str
    at_s: float


TokenGroup = tuple[Token, ...]


def words(tokens: Sequence[Token]) -> list[TokenGroup]:
    """Tokens by the word that they write."""
    grouped: list[list[Token]] = []
    for token in tokens:
        if not grouped or token.text.startswith(" "):
            grouped.append([])
        grouped[-1].append(token)
    return [tuple(word) for word in grouped]


def aligned(tail: Sequence[Token], heard_s: float, margin_s: float) -> list[Token]:
    """AlignAtt: the words of `tail` before the first that was written from the last `margin_s` of what was heard."""
    certain: list[Token] = []
    for word in words(tail):
        if max(token.at_s for token in word) > heard_s - margin_s:
            break
        certain += word
    return without_open_mark(certain, tail)


def agreed(tail: Sequence[Token], former: Sequence[Token]) -> list[Token]:
    """LocalAgreement-2: the words that two hypotheses for what follows the certain text begin with."""
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
    """`certain` without the full stop at the end of all that was heard: the sentence may go on."""
    if len(certain) == len(tail):
        while certain and is_mark(certain[-1]):
            certain = certain[:-1]
    return certain


def is_mark(token: Token) -> bool:
    """Whether it is punctuation alone."""
    return not any(character.isalnum() for character in token.text)


def without_loop(tokens: Sequence[Token], before: Sequence[Token] = ()) -> list[Token]:
    """`tokens` up to where they, going on from `before`, start to say the same again and again."""
    ids = [token.id for token in before] + [token.id for token in tokens]
    for end in range(len(before) + 1, len(ids) + 1):
        for size, most in MAX_REPEATS.items():
            length = size * (most + 1)
            if length <= end and ids[end - length : end] == ids[end - size : end] * (most + 1):
                return list(tokens[: max(0, end - len(before) - size * most)])
    return list(tokens)
