"""Detects text that repeats itself over and over, as a decoder does on audio that it cannot make out."""

import re
from collections.abc import Sequence

# {words in a phrase: how often in a row make it a loop}. Nobody speaks like that.
_REPEATS = {1: 6, 2: 4, 3: 4, 4: 3, 5: 3, 6: 3, 7: 3, 8: 3, 9: 3, 10: 3}
# One to eight letters, eight times or more in a row: "tatatatatatatata".
_WITHIN_WORD = re.compile(r"(\w{1,8}?)\1{7,}")


def is_loop(text: str) -> bool:
    """Whether a phrase, a word or part of a word is repeated over and over: "a a a a a a", "abababab…"."""
    words = text.casefold().split()
    return bool(_WITHIN_WORD.search(text)) or any(
        _longest_run(words, length) >= times for length, times in _REPEATS.items()
    )


def _longest_run(words: Sequence[str], length: int) -> int:
    """How often in a row, at most, a phrase of `length` words occurs."""
    longest = same = 0
    for i in range(length, len(words)):
        same = same + 1 if words[i] == words[i - length] else 0
        longest = max(longest, same)
    return longest // length + 1 if words else 0
