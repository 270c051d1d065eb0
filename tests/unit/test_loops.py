"""Which texts count as loops."""

import pytest

from server.longform.pieces import is_loop


@pytest.mark.parametrize(
    "text",
    [
        "what what what what what what what",
        "So the man the man the man the man sleeps",
        "in the garden in the garden in the garden in the garden",
        "and then he said no and then he said no and then he said no",
        "tatatatatatatatatata",
        "A a A a A a",
    ],
)
def test_repetitions_are_loops(text):
    assert is_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No, no, no.",
        "Thomas waits. Thomas waits. Thomas waits.",
        "1000000 people",
        "very very big and very very old",
    ],
)
def test_repetitions_in_normal_speech_are_not_loops(text):
    assert not is_loop(text)
