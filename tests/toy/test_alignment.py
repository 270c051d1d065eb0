"""Where the pieces of spoken words are, and what a transducer learns to do at each frame."""

import random

import pytest

from tests.toy.alignment import LATE_FRAMES, Placed, Target, placed_pieces, transducer_targets
from tests.toy.examples import FRAME_S
from tests.toy.grammar import LANGUAGES, sentence
from tests.toy.speech import speak

BLANK, LONGEST = 1000, 4


class Letters:
    """A tokenizer with pieces of two letters, and a piece for each mark."""

    def __init__(self):
        self.pieces: list[str] = []

    def text_to_ids(self, text: str) -> list[int]:
        opening, letters, mark = text[: text[0] == "¿"], text.lstrip("¿").rstrip(".?"), text[len(text.rstrip(".?")) :]
        parts = [opening, *(letters[i : i + 2] for i in range(0, len(letters), 2)), mark]
        parts = [part for part in parts if part]
        parts[0] = "▁" + parts[0]
        self.pieces += [part for part in parts if part not in self.pieces]
        return [self.pieces.index(part) for part in parts]

    def ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]


@pytest.fixture
def letters() -> Letters:
    return Letters()


def seconds(*words: tuple[str, int, int]) -> list[tuple[str, float, float]]:
    return [(word, first * FRAME_S, stop * FRAME_S) for word, first, stop in words]


def spans(placed: list[Placed], letters: Letters) -> list[tuple[str, int, int, int]]:
    return [(letters.pieces[p.piece], p.first, p.stop, p.due) for p in placed]


def test_a_words_pieces_divide_its_time_and_a_mark_follows_it(letters: Letters):
    placed = placed_pieces(seconds(("Anna", 2, 6), ("sings.", 7, 13)), 16, letters)
    assert spans(placed, letters) == [
        ("▁An", 2, 4, 2),
        ("na", 4, 6, 4),
        ("▁si", 7, 9, 7),
        ("ng", 9, 11, 9),
        ("s", 11, 13, 11),
        (".", 13, 14, 13),
    ]
    assert [p.ends_word for p in placed] == [False, True, False, False, True, False]


def test_an_opening_mark_has_the_frame_before_its_word_and_is_due_with_it(letters: Letters):
    assert spans(placed_pieces(seconds(("¿Va?", 3, 6)), 8, letters), letters) == [
        ("▁¿", 2, 3, 3),
        ("Va", 3, 6, 3),
        ("?", 6, 7, 6),
    ]


def test_a_mark_takes_a_frame_of_its_word_where_none_is_free(letters: Letters):
    assert spans(placed_pieces(seconds(("¿Va?", 0, 4)), 4, letters), letters) == [
        ("▁¿", 0, 1, 1),
        ("Va", 1, 3, 1),
        ("?", 3, 4, 3),
    ]


def test_durations_lead_to_the_end_of_a_word_and_blanks_to_the_next(letters: Letters):
    placed = placed_pieces(seconds(("An", 1, 3), ("of", 9, 16)), 18, letters)
    path = follow(transducer_targets(placed, 18, BLANK, LONGEST), 18)
    an, of = letters.text_to_ids("An") + letters.text_to_ids("of")
    assert path == [
        Target(0, 0, BLANK, 1),
        Target(1, 0, an, 2),
        Target(3, 1, BLANK, 4),
        Target(7, 1, BLANK, 2),
        Target(9, 1, of, 4),  # until 13: no duration is longer
        Target(13, 2, BLANK, 4),
        Target(17, 2, BLANK, 4),
    ]


def test_two_pieces_due_at_one_frame_are_both_written_there(letters: Letters):
    placed = placed_pieces(seconds(("¿Va?", 3, 6)), 8, letters)
    path = follow(transducer_targets(placed, 8, BLANK, LONGEST), 8)
    assert [(t.frame, letters.pieces[t.label], t.duration) for t in path if t.label != BLANK] == [
        (3, "▁¿", 0),
        (3, "Va", 3),
        (6, "?", 4),
    ]


def test_a_piece_that_a_jump_has_passed_is_written_late_with_a_shorter_duration(letters: Letters):
    placed = placed_pieces(seconds(("An", 2, 5)), 9, letters)
    targets = {(t.frame, t.emitted): t for t in transducer_targets(placed, 9, BLANK, LONGEST)}
    assert [targets[t, 0].duration for t in range(2, 3 + LATE_FRAMES)] == [3, 2, 1, 0, 0]
    assert (3 + LATE_FRAMES, 0) not in targets


def test_without_words_every_frame_is_blank():
    assert transducer_targets([], 3, BLANK, LONGEST) == [Target(t, 0, BLANK, LONGEST) for t in range(3)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_following_the_targets_writes_the_text_at_the_times_of_its_words(letters: Letters, language: str):
    rng = random.Random(1)
    for _ in range(20):
        words = [word for _ in range(2) for word in sentence(rng).words(language)]
        waveform, times = speak(words, language, rng=rng)
        frames = len(waveform) // 1280 + 1
        placed = placed_pieces(times, frames, letters)
        written = [t for t in follow(transducer_targets(placed, frames, BLANK, LONGEST), frames) if t.label != BLANK]
        assert [t.label for t in written] == [i for word in words for i in letters.text_to_ids(word)]
        assert [t.frame for t in written] == [p.due for p in placed]
        ends = [t.frame + t.duration for t, p in zip(written, placed, strict=True) if p.ends_word]
        for (word, _, end), reached, last in zip(times, ends, (p for p in placed if p.ends_word), strict=True):
            if last.stop - last.due <= LONGEST:
                assert reached * FRAME_S == pytest.approx(end, abs=0.13), word


def follow(targets: list[Target], frames: int) -> list[Target]:
    """The path of greedy decoding that does in each state what its target says."""
    by_state = {(t.frame, t.emitted): t for t in targets}
    frame = emitted = 0
    path = []
    while frame < frames:
        path.append(by_state[frame, emitted])
        emitted += path[-1].label != BLANK
        frame += path[-1].duration
    return path
