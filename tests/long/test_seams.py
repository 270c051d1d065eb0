"""Whose fault it is when a word near a seam is wrong: the alphabet, two letters a second, in two pieces."""

import numpy as np
import pytest

from tests.long.seams import Faults, Written, at_seams
from tests.long.talk import Talk, pairs

SAID = list("abcdefghijklmnopqrst")
TALK = Talk("en", np.zeros(0, np.float32), [(word, i / 2, i / 2 + 0.4) for i, word in enumerate(SAID)], [])


def piece(text: str, start_s: float, end_s: float) -> Written:
    return Written(start_s, end_s, list(text), [SAID.index(word) / 2 for word in text])


@pytest.mark.parametrize(
    ("left", "right", "found", "fault"),
    [
        ("abcdefghijklm", "ijklmnopqrst", "abcdefghijklmnopqrst", Faults()),
        # One piece has the word, and the merge has not.
        ("abcdefghijklm", "ijklmnopqrst", "abcdefghijlmnopqrst", Faults(lost=1)),
        # Neither has it, though one heard a second before and after it.
        ("abcdefghijlm", "ijlmnopqrst", "abcdefghijlmnopqrst", Faults(by_model=1)),
        # Both have it, and it is there twice.
        ("abcdefghijklm", "ijklmnopqrst", "abcdefghijkklmnopqrst", Faults(doubled=1)),
        # One has it twice by itself, more than a second from its ends.
        ("abcdefghiijk", "ijklmnopqrst", "abcdefghiijklmnopqrst", Faults(by_model=1)),
        # Too far from the seam.
        ("acdefghijklm", "ijklmnopqrst", "acdefghijklmnopqrst", Faults()),
    ],
)
def test_a_seam_is_at_fault_for_what_a_piece_wrote_and_for_what_is_there_twice(left, right, found, fault):
    pieces = [piece(left, 0.0, 6.5), piece(right, 4.0, 10.0)]
    assert at_seams(TALK, list(found), pairs(SAID, list(found)), pieces) == fault


def test_a_seam_is_at_fault_for_a_word_that_no_piece_heard_a_second_around():
    pieces = [piece("abcdefghik", 0.0, 5.5), piece("kmnopqrst", 4.5, 10.0)]
    found = list("abcdefghikmnopqrst")
    # j is 0.6 s from the one end and at the other; l is only in the right piece, a second from its start.
    assert at_seams(TALK, found, pairs(SAID, found), pieces) == Faults(lost=1, by_model=1)


def test_a_seam_in_a_pause_is_not_at_fault_for_a_word_that_was_heard_with_some_of_the_pause():
    spoken = [(word, at + (at > 4.5), end + (at > 4.5)) for word, at, end in TALK.spoken]
    talk = Talk("en", TALK.waveform, spoken, [])
    found = list("abcdefghiklmnopqrst")
    for end_s, fault in ((5.3, Faults(by_model=1)), (5.0, Faults(lost=1))):
        pieces = [piece("abcdefghi", 0.0, end_s), piece("klmnopqrst", end_s, 11.0)]
        assert at_seams(talk, found, pairs(SAID, found), pieces) == fault
