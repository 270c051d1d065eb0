"""Text that says the same again and again: what a decoder falls into on sound it cannot make out."""

import re
from collections.abc import Sequence

# Times in a row that so many words may come: nobody speaks like that.
_REPEATS = {1: 6, 2: 4, 3: 4, 4: 3, 5: 3, 6: 3, 7: 3, 8: 3, 9: 3, 10: 3}
# The same within one word, letters counted: "tatatatatatatata".
_WITHIN_WORD = re.compile(r"(\w{1,8}?)\1{7,}")


def is_loop(text: str) -> bool:
    """Whether a word, or a few, are repeated without end: a a a a a a, abababab, abcabcabcabc."""
    words = text.casefold().split()
    return bool(_WITHIN_WORD.search(text)) or any(
        _longest_run(words, length) >= times for length, times in _REPEATS.items()
    )


def _longest_run(words: Sequence[str], length: int) -> int:
    """How often in a row some `length` words come, at most."""
    most = same = 0
    for i in range(length, len(words)):
        same = same + 1 if words[i] == words[i - length] else 0
        most = max(most, same)
    return most // length + 1 if words else 0
