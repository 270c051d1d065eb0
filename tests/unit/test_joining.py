"""Overlapping pieces merged, cut sentences joined."""

import random
from dataclasses import replace

import pytest

from model.transcript import Segment, Word
from server.joining import Joiner, merged

SENTENCES = (
    "The man buys three red houses.",
    "Anna sees four green books in the garden now.",
    "Where is the cat?",
    "The boy reads every day.",
    "My sister finds nine black cars on the street today.",
    "Thomas waits at school.",
)
TEXT = " ".join(SENTENCES).split()


def heard(words: list[str], first: int, stop: int, timed: bool = True, wrong: dict[int, str] | None = None) -> Segment:
    """Words first … stop of the audio, half a second each, as one pass writes them."""
    placed = tuple(
        Word((wrong or {}).get(i, words[i]), i * 0.5 + 0.03 * (i % 3), i * 0.5 + 0.4, None, (i, 100), (-0.1 * i, -0.2))
        for i in range(first, stop)
    )
    text = " ".join(word.word for word in placed)
    tokens = tuple(token for word in placed for token in word.tokens)
    known = [p for word in placed for p in word.log_probs]
    return Segment(first * 0.5, stop * 0.5, text, tokens, placed if timed else (), sum(known) / len(known))


@pytest.mark.parametrize("timed", [True, False])
def test_an_overlap_is_said_once_wherever_the_cuts_fall(timed):
    for first in range(4, 20):
        for overlap in range(4, 12):
            left, right = heard(TEXT, 0, first + overlap, timed), heard(TEXT, first, len(TEXT), timed)
            ours, theirs = merged([left], [right], first * 0.5, (first + overlap) * 0.5)
            assert " ".join(s.text for s in [*ours, *theirs]).split() == TEXT


def test_words_that_the_edges_cut_are_taken_from_the_side_that_heard_them_whole():
    left = heard(TEXT, 0, 14, wrong={12: "stree", 13: "no"})
    right = heard(TEXT, 6, len(TEXT), wrong={6: "n", 7: "grass"})
    ours, theirs = merged([left], [right], 3.0, 7.0)
    assert " ".join(s.text for s in [*ours, *theirs]).split() == TEXT


def test_sides_that_agree_on_nothing_meet_in_the_middle():
    left = heard(["a", "b", "c", "d", "e", "f"], 0, 6)
    right = heard(["-", "-", "-", "v", "w", "x", "y", "z"], 3, 8)
    ours, theirs = merged([left], [right], 1.5, 3.0)
    assert [s.text for s in [*ours, *theirs]] == ["a b c d e", "x y z"]


def test_what_one_side_alone_passed_over_is_taken_from_the_other():
    whole_left, whole_right = heard(TEXT, 0, 16), heard(TEXT, 8, len(TEXT))
    for lost in (range(8, 16), range(9, 12), range(12, 15)):
        for left, right in (
            (_without(whole_left, lost), whole_right),
            (whole_left, _without(whole_right, lost)),
        ):
            ours, theirs = merged([left], [right], 4.0, 8.0)
            assert " ".join(s.text for s in [*ours, *theirs]).split() == TEXT, lost


def _without(segment: Segment, lost: range) -> Segment:
    words = tuple(word for word in segment.words if word.tokens[0] not in lost)
    return replace(segment, text=" ".join(word.word for word in words), words=words)


def test_the_same_word_said_twice_is_not_taken_for_one():
    words = ["no", "no", "yes"] * 4
    ours, theirs = merged([heard(words, 0, 8)], [heard(words, 4, 12)], 2.0, 4.0)
    assert " ".join(s.text for s in [*ours, *theirs]).split() == words


def test_random_overlaps_lose_and_double_nothing():
    rng = random.Random(0)
    for _ in range(200):
        words = rng.choices(TEXT, k=40)
        first, overlap = rng.randrange(5, 25), rng.randrange(4, 10)
        wrong = {first: "x", first + overlap - 1: "y"}
        ours, theirs = merged(
            [heard(words, 0, first + overlap, wrong={first + overlap - 1: "y"})],
            [heard(words, first, 40, wrong={first: "x"})],
            first * 0.5,
            (first + overlap) * 0.5,
        )
        assert " ".join(s.text for s in [*ours, *theirs]).split() == words, wrong


def test_a_sentence_merged_from_two_sides_has_the_tokens_and_the_probability_of_its_words():
    joiner = Joiner(overlap_s=1.0)
    joiner.add([heard(TEXT, 0, 5)], 0.0, 2.5, 0.0)
    joiner.add([heard(TEXT, 3, 6)], 1.5, 3.0, 1.0)
    (whole,) = joiner.finish()
    assert whole.text == "The man buys three red houses."
    assert whole.tokens == (0, 100, 1, 100, 2, 100, 3, 100, 4, 100, 5, 100)
    assert whole.avg_logprob == pytest.approx((-0.1 * (0 + 1 + 2 + 3 + 4 + 5) - 6 * 0.2) / 12)


def test_a_sentence_that_a_cut_went_through_is_one_segment_again():
    joiner = Joiner(overlap_s=1.0)
    given = joiner.add([heard(TEXT, 0, 6), heard(TEXT, 6, 9)], 0.0, 4.5, 0.0)
    given += joiner.add([heard(TEXT, 9, 15), heard(TEXT, 15, 19)], 4.5, 9.5, 0.0)
    given += joiner.finish()
    assert [segment.text for segment in given] == [
        "The man buys three red houses.",
        "Anna sees four green books in the garden now.",
        "Where is the cat?",
    ]
    assert (given[1].start, given[1].end) == (3.0, 7.5)
    assert len(given[1].words) == 9


def test_what_the_next_piece_may_change_is_held_back():
    joiner = Joiner(overlap_s=2.0)
    assert [s.text for s in joiner.add([heard(TEXT, 0, 6), heard(TEXT, 6, 14)], 0.0, 7.0, 0.0)] == [
        "The man buys three red houses."
    ]
    final = joiner.add([heard(TEXT, 10, 15), heard(TEXT, 15, 19)], 5.0, 9.5, 2.0)
    assert [s.text for s in final] == ["Anna sees four green books in the garden now."]
    assert [s.text for s in joiner.finish()] == ["Where is the cat?"]
