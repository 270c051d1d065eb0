"""Tokens of a Parakeet → text and words, by NeMo's rules but for opening marks.

NeMo joins every punctuation mark of the vocabulary to the word before it: `hola ¿qué` becomes `hola¿qué`. Here marks
that open something stay with the word after them.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from sentencepiece import SentencePieceProcessor

from model.timestamps import WordTokens
from model.tokenizer import SingleTokenizer, Tokenizer

# Pieces whose characters NeMo does not count as punctuation: [tags], <tags>, parts of words, spaces.
_NOT_PUNCTUATION = re.compile(r"\[.*\]|<.*>|##.*|▁.*|\s*", re.DOTALL)
# One byte of a character that the vocabulary lacks.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORD_START = "▁"
_SPACES = re.compile(r"\s+")


def punctuation(pieces: Iterable[str]) -> frozenset[str]:
    """NeMo's `extract_punctuation_from_vocab`: the punctuation marks of a vocabulary."""
    plain = (piece for piece in pieces if not _NOT_PUNCTUATION.fullmatch(piece))
    return frozenset(c for piece in plain for c in piece if unicodedata.category(c).startswith("P"))


def opens(mark: str) -> bool:
    """Whether a mark belongs to the word after it: ¿ ¡ ( [ { and opening quotation marks."""
    return mark in "¿¡" or unicodedata.category(mark) in ("Ps", "Pi")


class Spelling:
    """How the tokens of a vocabulary are written. marks: those that join the word before them."""

    def __init__(self, tokenizer: Tokenizer, marks: frozenset[str] | None = None):
        self._tokenizer = tokenizer
        self._pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
        self._texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        if marks is None:
            marks = frozenset(mark for mark in punctuation(self._pieces) if not opens(mark))
        self.marks = marks
        self._space_before_mark = re.compile(rf"\s([{re.escape(''.join(sorted(marks)))}])") if marks else None

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones, words separated by one space."""
        return " ".join(self._word(tokens, 0).split())

    def beginning(self, tokens: Sequence[int]) -> str:
        """The text of the first tokens of a text, which further tokens only make longer.

        A space at its end is left out: a mark may follow, which joins the word before it.
        """
        text = self._tokenizer.decode([t for t in tokens if not self._tokenizer.is_special(t)])
        return _SPACES.sub(" ", self.without_spaces_before_marks(text)).rstrip()

    def words(self, tokens: Sequence[int]) -> list[WordTokens]:
        """NeMo's `get_words_offsets`: the words of tokens, those without text left out."""
        joins, quotes = self.joins(tokens), self._quotes(tokens)
        starts = [i for i, token in enumerate(tokens) if i and not joins[i] and self._starts(token)]
        words = []
        for begin, end in pairwise([0, *starts, len(tokens)]):
            # A ▁ right before a mark is no space.
            spelling = [i for i in range(begin, end) if not (self._is_space(tokens[i]) and any(joins[i + 1 : i + 2]))]
            if text := self._word([tokens[i] for i in spelling], quotes[begin]):
                words.append(WordTokens(text, range(begin, end)))
        return words

    def joins(self, tokens: Sequence[int]) -> list[bool]:
        """Whether each token is one mark, and joins the word before it."""
        texts = (self._texts[token] for token in tokens)
        quotes = self._quotes(tokens)
        return [text in self.marks and _closes(text, before) for text, before in zip(texts, quotes, strict=False)]

    def _quotes(self, tokens: Sequence[int]) -> list[int]:
        """How many straight quotation marks come before each token, and before the end."""
        return list(accumulate((self._texts[token].count('"') for token in tokens), initial=0))

    def _starts(self, token: int) -> bool:
        """Whether a token that is no mark starts a word: its text is another than its piece, by a ▁."""
        piece = self._pieces[token]
        return piece != self._texts[token] and not self._tokenizer.is_special(token) and not _BYTE.fullmatch(piece)

    def _is_space(self, token: int) -> bool:
        return self._pieces[token] == _WORD_START

    def _word(self, tokens: Sequence[int], quotes: int) -> str:
        """The text of a word, which `quotes` straight quotation marks come before."""
        text = self._tokenizer.decode([t for t in tokens if not self._tokenizer.is_special(t)])
        return self.without_spaces_before_marks(text, quotes).strip()

    def without_spaces_before_marks(self, text: str, quotes: int = 0) -> str:
        """Without one space before each mark that joins the word before it."""

        def joined(found: re.Match[str]) -> str:
            return found[1] if _closes(found[1], quotes + text[: found.start()].count('"')) else found[0]

        return self._space_before_mark.sub(joined, text) if self._space_before_mark else text


class ParakeetTokenizer(SingleTokenizer):
    """A Parakeet's tokenizer, whose text is spelled as a transcript's."""

    def __init__(self, model: SentencePieceProcessor):
        super().__init__(model)
        self._spelling = Spelling(self)

    def text(self, ids: list[int]) -> str:
        return self._spelling.beginning(ids)


def _closes(mark: str, quotes: int) -> bool:
    """Whether a mark ends something. Straight quotation marks, `quotes` of which come before it, open and close."""
    return mark != '"' or quotes % 2 == 1
