"""The times of the words in a finished segment."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from model.transcript import Word
from server.live.policy import Token, words

# How long a word may last after the time that its last token attends to.
REACH_S = 0.24


def timed_words(tokens: Sequence[Token], reference: Sequence[Word], start_s: float, end_s: float) -> tuple[Word, ...]:
    """The words of `tokens` with times in seconds from the session's start, in order and within start_s … end_s.

    reference: timed words of another transcript of the same window, in seconds from the window's start. A word
    found there takes its times from there; any other word gets the time it attends to, kept between its neighbours.
    """
    spoken = words(tokens)
    texts = ["".join(token.text for token in word).strip() for word in spoken]
    known = _known_times(texts, reference)
    timed: list[Word] = []
    at = 0.0
    for i, (text, word) in enumerate(zip(texts, spoken, strict=True)):
        following = next((known[j][0] for j in range(i + 1, len(texts)) if j in known), end_s - start_s)
        looked_at = (min(token.at_s for token in word), max(token.at_s for token in word) + REACH_S)
        start, end = known.get(i) or looked_at
        start = min(max(start, at), max(at, following))
        end = max(min(end, max(following, start)), start)
        at = end
        if text:
            timed.append(Word(text, min(start_s + start, end_s), min(start_s + end, end_s)))
    return tuple(timed)


def _known_times(texts: list[str], reference: Sequence[Word]) -> dict[int, tuple[float, float]]:
    mine, theirs = [_plain(text) for text in texts], [_plain(word.word) for word in reference]
    blocks = SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks()
    return {b.a + k: (reference[b.b + k].start, reference[b.b + k].end) for b in blocks for k in range(b.size)}


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
