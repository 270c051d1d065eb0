"""At which frames each piece of a text is spoken, and what a transducer should do at each of them.

The toy's speech has exact word times (speech.py), so that the heads can learn from frames instead of from whole texts.
"""

from typing import NamedTuple, Protocol

import numpy as np

from .examples import FRAME_S
from .speech import WordTime

CLOSING, OPENING = (".", "?"), ("▁¿",)  # pieces without a sound
LATE_FRAMES = 4  # a piece may be written so much later than its first frame


class Tokenizer(Protocol):
    """What is used of NeMo's tokenizer."""

    def text_to_ids(self, text: str) -> list[int]: ...

    def ids_to_tokens(self, ids: list[int]) -> list[str]: ...


class Placed(NamedTuple):
    """A piece at the frames first … stop - 1.

    due: the frame at which a transducer writes it; ends_word: it is the last one of its word that has a sound.
    """

    piece: int
    first: int
    stop: int
    due: int
    ends_word: bool


class Target(NamedTuple):
    """After `emitted` pieces, at `frame`: write `label`, a piece or the blank, and go on by `duration` frames."""

    frame: int
    emitted: int
    label: int
    duration: int


def placed_pieces(words: list[WordTime], frames: int, tokenizer: Tokenizer) -> list[Placed]:
    """The pieces of `words` in order, placed within `frames` frames. A word's pieces divide its time evenly.

    A mark has no sound. It gets the frame before or after its word, or one of the word's own if that is taken. An
    opening mark is due together with the word, so that both have the same time.
    """
    placed = []
    for i, (word, start, end) in enumerate(words):
        pieces = tokenizer.text_to_ids(word)
        texts = tokenizer.ids_to_tokens(pieces)
        first = min(round(start / FRAME_S), frames - 1)
        stop = min(max(round(end / FRAME_S), first + 1), frames)
        opening = pieces[:1] if texts[0] in OPENING else []
        closing = pieces[-1:] if texts[-1] in CLOSING else []
        sounding = pieces[len(opening) : len(pieces) - len(closing)]
        previous = placed[-1].stop if placed else 0
        following = round(words[i + 1][1] / FRAME_S) if i + 1 < len(words) else frames
        if opening and first <= previous and stop - first > len(sounding):
            first += 1
        if closing and stop >= min(following, frames) and stop - first > len(sounding):
            stop -= 1
        placed += [Placed(mark, max(first - 1, previous), first, first, False) for mark in opening]
        edges = np.linspace(first, stop, len(sounding) + 1).round().astype(int).tolist()
        for n, piece in enumerate(sounding):
            placed.append(Placed(piece, edges[n], edges[n + 1], min(edges[n], frames - 1), n == len(sounding) - 1))
        after = max(stop, min(stop + 1, following, frames))
        placed += [Placed(mark, stop, after, min(stop, frames - 1), False) for mark in closing]
    return placed


def transducer_targets(placed: list[Placed], frames: int, blank: int, longest: int) -> list[Target]:
    """The best action in each state on the right path and near it. Durations are 0 … `longest`.

    A piece lasts until the next one is due or its word ends. Until a piece is due the blank is right, with the duration
    that leads there. A piece may also be late, because a jump may have been too long.
    """
    targets, begin = [], 0
    for emitted, (piece, following) in enumerate(zip(placed, [*placed[1:], None], strict=False)):
        targets += [Target(t, emitted, blank, min(longest, piece.due - t)) for t in range(begin, piece.due)]
        goal = following.due if following else frames + longest
        if piece.ends_word:
            goal = min(goal, piece.stop)
        for t in range(piece.due, min(piece.due + LATE_FRAMES + 1, frames)):
            targets.append(Target(t, emitted, piece.piece, min(longest, max(0, goal - t))))
        begin = piece.due
    return targets + [Target(t, len(placed), blank, longest) for t in range(begin, frames)]
