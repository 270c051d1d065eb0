"""What causes a wrong word near a seam, tested with the alphabet in two pieces, two letters per second."""

import numpy as np
import pytest

from tests.long.seams import Faults, PieceText, at_seams
from tests.long.talk import Talk, aligned

SPOKEN = list("abcdefghijklmnopqrst")
TALK = Talk("en", np.zeros(0, np.float32), [(word, i / 2, i / 2 + 0.4) for i, word in enumerate(SPOKEN)], [])


def piece(text: str, start_s: float, end_s: float) -> PieceText:
    return PieceText(start_s, end_s, list(text), [SPOKEN.index(word) / 2 for word in text])


@pytest.mark.parametrize(
    ("left", "right", "text", "fault"),
    [
        ("abcdefghijklm", "ijklmnopqrst", "abcdefghijklmnopqrst", Faults()),
        # A piece has the word, but the merge dropped it.
        ("abcdefghijklm", "ijklmnopqrst", "abcdefghijlmnopqrst", Faults(lost=1)),
        # No piece has it, although one has the audio a second before and after it.
        ("abcdefghijlm", "ijlmnopqrst", "abcdefghijlmnopqrst", Faults(by_model=1)),
        # Both have it, and the merge kept it twice.
        ("abcdefghijklm", "ijklmnopqrst", "abcdefghijkklmnopqrst", Faults(doubled=1)),
        # A single piece has it twice, more than a second from its ends.
        ("abcdefghiijk", "ijklmnopqrst", "abcdefghiijklmnopqrst", Faults(by_model=1)),
        # Too far from the seam.
        ("acdefghijklm", "ijklmnopqrst", "acdefghijklmnopqrst", Faults()),
    ],
)
def test_a_seam_is_at_fault_for_dropped_and_for_doubled_words(left, right, text, fault):
    pieces = [piece(left, 0.0, 6.5), piece(right, 4.0, 10.0)]
    assert at_seams(TALK, list(text), aligned(SPOKEN, list(text)), pieces) == fault


def test_a_seam_is_at_fault_for_a_word_that_no_piece_has_in_full():
    pieces = [piece("abcdefghik", 0.0, 5.5), piece("kmnopqrst", 4.5, 10.0)]
    text = list("abcdefghikmnopqrst")
    # j is 0.6 s from one piece's end and at the other's start; l is only in the right piece, a second from its start.
    assert at_seams(TALK, text, aligned(SPOKEN, text), pieces) == Faults(lost=1, by_model=1)


def test_a_seam_in_a_pause_is_not_at_fault_for_a_word_if_a_piece_has_some_of_the_pause():
    spoken = [(word, at + (at > 4.5), end + (at > 4.5)) for word, at, end in TALK.spoken]
    talk = Talk("en", TALK.waveform, spoken, [])
    text = list("abcdefghiklmnopqrst")
    for end_s, fault in ((5.3, Faults(by_model=1)), (5.0, Faults(lost=1))):
        pieces = [piece("abcdefghi", 0.0, end_s), piece("klmnopqrst", end_s, 11.0)]
        assert at_seams(talk, text, aligned(SPOKEN, text), pieces) == fault
