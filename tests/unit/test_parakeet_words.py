"""The text and the words of a Parakeet's tokens, and their times in frames."""

import unicodedata
from itertools import pairwise

import pytest

from model.parakeet.decoding import TimedTokens
from model.parakeet.times import token_spans, word_spans
from model.parakeet.words import Spelling, opens, punctuation

SPECIAL = "<|en|>"


class Vocabulary:
    """Pieces by id, as a SentencePiece model with byte fallback has them."""

    def __init__(self, *pieces: str):
        self.pieces = list(pieces)
        self.vocab_size = len(pieces)

    def piece(self, token: int) -> str:
        return self.pieces[token]

    def is_special(self, token: int) -> bool:
        return self.pieces[token].startswith("<|")

    def decode(self, ids: list[int]) -> str:
        pieces = [self.pieces[i] for i in ids]
        bytes_ = "".join(f"\\x{p[3:5]}" if p.startswith("<0x") else p for p in pieces)
        text = bytes_.encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")
        return text.replace("▁", " ").removeprefix(" ")


class Written:
    """Tokens that spell `text`, pieces separated by spaces."""

    def __init__(self, text: str, *others: str, marks: frozenset[str] | None = None):
        pieces = text.split()
        vocabulary = Vocabulary(*dict.fromkeys([*pieces, *others]))
        self.tokens = [vocabulary.pieces.index(piece) for piece in pieces]
        self.spelling = Spelling(vocabulary, marks)  # type: ignore[arg-type]
        self.text = self.spelling.text(self.tokens)
        self.words = self.spelling.words(self.tokens)

    @property
    def spoken(self) -> list[str]:
        return [word.text for word in self.words]


def test_punctuation_is_what_stands_in_pieces_that_are_neither_tags_nor_parts_of_words():
    pieces = ["a", "'s", "▁(", "[x]", "<|en|>", "##-", ",", "¿", "▁", "。", " ", "."]
    assert punctuation(pieces) == {"'", ",", "¿", "。", "."}


@pytest.mark.parametrize("mark", ["¿", "¡", "(", "[", "{", "«", "“", "‘", "„"])
def test_marks_that_open_something_belong_to_the_word_after_them(mark):
    assert opens(mark)
    written = Written(f"▁hola ▁{mark} qué ▁hay", mark)
    assert written.text == f"hola {mark}qué hay"
    assert written.spoken == ["hola", f"{mark}qué", "hay"]


@pytest.mark.parametrize("mark", [c for c in ".,?!;:)]}»”'-" if unicodedata.category(c).startswith("P")])
def test_other_marks_join_the_word_before_them_even_after_a_space(mark):
    written = Written(f"▁one ▁{mark} ▁two {mark}", mark)
    assert written.text == f"one{mark} two{mark}"
    assert written.spoken == [f"one{mark}", f"two{mark}"]


def test_straight_quotation_marks_open_and_close_by_turns():
    written = Written('▁he ▁said ▁" hi ▁you ▁" , ▁and ▁" bye "', '"', ",")
    assert written.text == 'he said "hi you", and "bye"'
    assert written.spoken == ["he", "said", '"hi', 'you",', "and", '"bye"']


def test_nemos_own_marks_join_the_word_before_them_whether_they_open_or_close():
    written = Written("▁hola ▁¿ qué", "¿", marks=frozenset("¿"))
    assert written.text == "hola¿qué"


def test_words_begin_at_their_first_token_and_end_at_their_last():
    written = Written("▁th e ▁ca ts ' s ▁tail .", "'")
    assert [(word.text, word.tokens) for word in written.words] == [
        ("the", range(2)),
        ("cats's", range(2, 6)),
        ("tail.", range(6, 8)),
    ]


def test_special_tokens_are_no_text_and_begin_no_word():
    written = Written(f"▁one {SPECIAL} ▁two {SPECIAL}")
    assert written.text == "one two"
    assert written.spoken == ["one", "two"]


def test_a_space_alone_is_no_word_and_the_rest_of_its_word_may_follow():
    written = Written("▁one ▁ two ▁")
    assert written.text == "one two"
    assert [(word.text, word.tokens) for word in written.words] == [("one", range(1)), ("two", range(1, 3))]


def test_the_bytes_of_a_character_stay_in_one_word():
    written = Written("▁na <0xC3> <0xAF> ve ▁art")
    assert written.spoken == ["naïve", "art"]


@pytest.mark.parametrize(
    "text",
    [
        "▁one ▁. ▁two ▁ ! ▁",
        '▁he ▁said ▁" hi ▁" .',
        "▁hola ▁¿ qué ▁? ▁",
        "▁ ▁ a ▁ , b",
        f"▁one {SPECIAL} ▁ . {SPECIAL} ▁two",
    ],
)
def test_the_beginnings_of_a_text_are_spelled_as_the_whole_and_only_grow(text):
    written = Written(text, ".", ",", "!", "?", "¿", '"')
    beginnings = [written.spelling.beginning(written.tokens[:n]) for n in range(len(written.tokens) + 1)]
    assert beginnings[-1].strip() == written.text
    for shorter, longer in pairwise(beginnings):
        assert longer.startswith(shorter)


def test_no_tokens_are_no_words():
    written = Written("▁one")
    assert written.spelling.words([]) == []
    assert written.spelling.text([]) == ""


def spans(text: str, frames: list[int], durations: list[int]) -> list[tuple[int, int]]:
    written = Written(text, ".", ",", "¿", '"')
    found = TimedTokens(0, written.tokens, [], frames=frames, durations=durations)
    return word_spans(written.words, token_spans(found, written.spelling))


def test_a_word_lasts_from_its_first_tokens_frame_to_its_last_tokens_end():
    assert spans("▁th e ▁cat", [3, 5, 9], [2, 1, 4]) == [(3, 6), (9, 13)]


def test_a_mark_written_after_a_pause_ends_with_the_token_before_it():
    assert spans("▁cat . ▁So", [3, 40, 44], [2, 3, 2]) == [(3, 5), (44, 46)]


def test_a_token_without_a_duration_ends_after_its_frame_and_so_does_a_mark():
    assert spans("▁cat . ▁So", [3, 40, 44], []) == [(3, 41), (44, 45)]


def test_a_mark_that_opens_a_word_has_its_own_time():
    assert spans("▁hola ▁¿ qué", [3, 10, 11], [2, 1, 3]) == [(3, 5), (10, 14)]


def test_an_opening_straight_quotation_mark_has_its_own_time_and_a_closing_one_has_none():
    assert spans('▁he ▁" hi "', [3, 10, 11, 40], [2, 1, 3, 2]) == [(3, 5), (10, 14)]


def test_a_mark_at_the_very_beginning_has_its_own_time():
    assert spans(". ▁So", [2, 5], [1, 2]) == [(2, 3), (5, 7)]
