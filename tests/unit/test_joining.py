"""Merging overlapping pieces and rejoining cut sentences."""

import random
from dataclasses import replace

import pytest

from model.transcript import Segment, Word
from server.longform.joining import Joiner, merged

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
    """Words first … stop of the audio, half a second each, as one pass would transcribe them. wrong: misheard words."""
    placed = tuple(
        Word((wrong or {}).get(i, words[i]), i * 0.5 + 0.03 * (i % 3), i * 0.5 + 0.4, None, (i, 100), (-0.1 * i, -0.2))
        for i in range(first, stop)
    )
    text = " ".join(word.word for word in placed)
    tokens = tuple(token for word in placed for token in word.tokens)
    known = [p for word in placed for p in word.log_probs]
    return Segment(first * 0.5, stop * 0.5, text, tokens, placed if timed else (), sum(known) / len(known))


def words_of(sides: tuple[list[Segment], list[Segment]]) -> list[str]:
    return " ".join(segment.text for side in sides for segment in side).split()


@pytest.mark.parametrize("timed", [True, False])
def test_merging_keeps_every_word_once_wherever_the_cuts_are(timed):
    for first in range(4, 20):
        for overlap in range(4, 12):
            left, right = heard(TEXT, 0, first + overlap, timed), heard(TEXT, first, len(TEXT), timed)
            assert words_of(merged([left], [right], first * 0.5, (first + overlap) * 0.5)) == TEXT


def test_words_cut_at_an_edge_are_taken_from_the_piece_that_has_them_in_full():
    left = heard(TEXT, 0, 14, wrong={12: "stree", 13: "no"})
    right = heard(TEXT, 6, len(TEXT), wrong={6: "n", 7: "grass"})
    assert words_of(merged([left], [right], 3.0, 7.0)) == TEXT


def test_sides_without_common_words_are_joined_in_the_middle():
    left = heard(["a", "b", "c", "d", "e", "f"], 0, 6)
    right = heard(["-", "-", "-", "v", "w", "x", "y", "z"], 3, 8)
    left_segments, right_segments = merged([left], [right], 1.5, 3.0)
    assert [s.text for s in [*left_segments, *right_segments]] == ["a b c d e", "x y z"]


def test_words_missing_on_one_side_are_taken_from_the_other():
    whole_left, whole_right = heard(TEXT, 0, 16), heard(TEXT, 8, len(TEXT))
    for missing in (range(8, 16), range(9, 12), range(12, 15)):
        for left, right in (
            (_without(whole_left, missing), whole_right),
            (whole_left, _without(whole_right, missing)),
        ):
            assert words_of(merged([left], [right], 4.0, 8.0)) == TEXT, missing


def _without(segment: Segment, missing: range) -> Segment:
    words = tuple(word for word in segment.words if word.tokens[0] not in missing)
    return replace(segment, text=" ".join(word.word for word in words), words=words)


def placed(text: str, sure: float = 0.99) -> Segment:
    """A segment from words with times, "red@2.0-2.4", and optional probabilities, "rod@2.0-2.4:0.8" (default: sure)."""
    words = []
    for word, times in (part.split("@") for part in text.split()):
        span, _, probability = times.partition(":")
        start, end = map(float, span.split("-"))
        words.append(Word(word, start, end, float(probability or sure)))
    return Segment(words[0].start, words[-1].end, " ".join(w.word for w in words), (), tuple(words))


def text_of(left: str, right: str, start_s: float, end_s: float) -> str:
    """The merged text of two pieces. The right one begins at start_s, the left one ends at end_s."""
    return " ".join(words_of(merged([placed(left)], [placed(right)], start_s, end_s)))


def test_of_two_readings_the_much_more_probable_one_is_kept():
    for left_reading, right_reading, kept in (
        ("apples@2.2-2.8", "cars@2.2-2.8:0.7", "apples"),
        ("apples@2.2-2.8:0.7", "cars@2.2-2.8", "cars"),
        ("apples@2.2-2.8", "a@2.2-2.4:0.7 pill@2.4-2.8", "apples"),
        ("apples@2.2-2.8:0.5", "a@2.2-2.4:0.9 pill@2.4-2.8:0.9", "a pill"),
    ):
        for end in ("", " is@3.0-3.2"):
            left = f"nine@1.0-1.4 old@1.6-2.0 {left_reading}{end}"
            right = f"old@1.6-2.0 {right_reading} is@3.0-3.2 big@3.4-3.8"
            assert text_of(left, right, 1.2, 3.3 if end else 2.9) == f"nine old {kept} is big", (left, right)


def test_of_two_sides_without_common_words_the_more_probable_one_is_kept():
    left, right = "the@1.0-1.4 small@1.6-2.0 book@2.2-2.6{0}", "books@1.6-2.0{0} smaller@2.2-2.6 today@2.8-3.2"
    assert text_of(left.format(""), right.format(":0.6"), 1.1, 3.0) == "the small book today"
    assert text_of(left.format(":0.6"), right.format(""), 1.1, 3.0) == "the books smaller today"


def test_a_first_or_last_word_is_kept_if_its_piece_was_cut_well_away_from_it():
    missing = "Thomas@0.2-0.6 waits@0.7-1.1 {}is@2.4-2.6 the@2.8-3.0"
    after = "is@2.4-2.6 the@2.8-3.0 cat@3.2-3.6"
    assert text_of(missing.format(""), f"Where@1.8-2.2 {after}", 1.3, 3.1) == "Thomas waits Where is the cat"
    before = "Thomas@0.2-0.6 waits@0.7-1.1"
    assert text_of(f"{before} now@1.4-1.7", f"{before} She@3.0-3.4", 0.1, 2.3) == "Thomas waits now She"


def test_a_partial_word_at_a_cut_is_dropped_if_the_other_side_has_the_whole_word():
    left = "the@0.4-0.6 grand@0.8-1.2 is@2.2-2.4 white@2.5-2.8"
    right = "grands@0.87-1.2:0.93 cat@1.4-1.8 is@2.2-2.4 white@2.5-2.8 now@2.9-3.2"
    assert text_of(left, right, 0.8, 2.9) == "the grand cat is white now"
    left = "the@0.4-0.6 cat@0.8-1.2 is@1.4-1.6 whi@2.5-2.8:0.93"
    right = "the@0.4-0.6 cat@0.8-1.2 in@1.4-1.6:0.6 here@1.8-2.2 white@2.5-2.9 now@3.0-3.2"
    assert text_of(left, right, 0.2, 2.8) == "the cat is here white now"


def test_a_word_at_a_cut_is_kept_if_the_other_side_has_nothing_at_its_time():
    left = "wait@0.2-0.6 woman@2.4-2.8 waits@2.9-3.3"
    assert text_of(left, "The@2.08-2.3 woman@2.4-2.8 waits@2.9-3.3 now@3.5-3.8", 2.0, 3.4) == "wait The woman waits now"
    # The other side's word at that time may be a common one whose time is too long.
    left = "wait@0.2-0.6 woman@1.2-2.8 waits@2.9-3.3"
    assert text_of(left, "The@2.08-2.3 woman@2.4-2.8 waits@2.9-3.3 now@3.5-3.8", 2.0, 3.4) == "wait The woman waits now"


def test_of_a_repeated_word_the_one_closer_in_time_is_matched():
    left = "two@0.4-0.8 green@1.15-1.79 now@1.87-2.27"
    right = "now@1.49-1.65:0.54 where@1.65-1.81 now@1.89-2.29 where@2.6-2.9"
    assert text_of(left, right, 1.49, 2.6) == "two green now where"


def test_words_that_one_side_places_at_a_single_moment_are_still_matched():
    left, right = (
        "the@1.3-3.68 teacher@3.68-3.68 reads@3.68-3.68 in@3.68-3.68",
        "in@2.37-2.61 town@2.69-3.09 and@3.9-4.2",
    )
    assert text_of(left, right, 2.37, 3.68) == "the teacher reads in town and"


def test_a_word_that_extends_into_an_overlap_is_matched_there():
    left, right = "black@0.3-0.8 la@1.5-4.22 fille@4.3-4.7", "La@4.2-4.25 fille@4.3-4.7 dort@4.9-5.2"
    assert text_of(left, right, 3.9, 4.9) == "black la fille dort"


def test_a_piece_of_one_word_is_merged_like_any_other():
    assert text_of("ho@1.8-2.1:0.6", "houses@1.5-2.1 and@2.4-2.6", 0.5, 2.2) == "houses and"
    assert text_of("two@1.0-1.4 houses@1.5-2.1", "uses@1.8-2.1:0.6", 1.7, 2.2) == "two houses"
    assert text_of("a@1.0-1.4:0.9", "the@1.0-1.4:0.9", 0.9, 1.5) in ("a", "the")


def test_a_word_that_one_side_stretches_over_a_pause_is_still_matched():
    left, right = "houses@0.5-1.0 girl@4.4-7.5:0.67", "where@6.0-6.3 is@6.4-6.6 the@6.7-6.9 girl@7.0-7.5 and@8.0-8.2"
    assert text_of(left, right, 5.5, 7.5) == "houses where is the girl and"


def test_a_word_spoken_twice_is_kept_twice():
    words = ["no", "no", "yes"] * 4
    assert words_of(merged([heard(words, 0, 8)], [heard(words, 4, 12)], 2.0, 4.0)) == words


def test_merging_random_overlaps_loses_and_duplicates_nothing():
    rng = random.Random(0)
    for _ in range(200):
        words = rng.choices(TEXT, k=40)
        first, overlap = rng.randrange(5, 25), rng.randrange(4, 10)
        wrong = {first: "x", first + overlap - 1: "y"}
        sides = merged(
            [heard(words, 0, first + overlap, wrong={first + overlap - 1: "y"})],
            [heard(words, first, 40, wrong={first: "x"})],
            first * 0.5,
            (first + overlap) * 0.5,
        )
        assert words_of(sides) == words, wrong


def test_a_sentence_merged_from_two_pieces_has_the_tokens_and_probability_of_its_words():
    joiner = Joiner(overlap_s=1.0)
    joiner.add([heard(TEXT, 0, 5)], 0.0, 2.5, 0.0)
    joiner.add([heard(TEXT, 3, 6)], 1.5, 3.0, 1.0)
    (whole,) = joiner.finish()
    assert whole.text == "The man buys three red houses."
    assert whole.tokens == (0, 100, 1, 100, 2, 100, 3, 100, 4, 100, 5, 100)
    assert whole.avg_logprob == pytest.approx((-0.1 * (0 + 1 + 2 + 3 + 4 + 5) - 6 * 0.2) / 12)


def test_a_sentence_cut_in_two_is_rejoined_into_one_segment():
    joiner = Joiner(overlap_s=1.0)
    final = joiner.add([heard(TEXT, 0, 6), heard(TEXT, 6, 9)], 0.0, 4.5, 0.0)
    final += joiner.add([heard(TEXT, 9, 15), heard(TEXT, 15, 19)], 4.5, 9.5, 0.0)
    final += joiner.finish()
    assert [segment.text for segment in final] == [
        "The man buys three red houses.",
        "Anna sees four green books in the garden now.",
        "Where is the cat?",
    ]
    assert (final[1].start, final[1].end) == (3.0, 7.5)
    assert len(final[1].words) == 9


def test_segments_that_the_next_piece_may_change_are_held_back():
    joiner = Joiner(overlap_s=0.5)
    assert [s.text for s in joiner.add([heard(TEXT, 0, 6), heard(TEXT, 6, 14)], 0.0, 7.0, 0.0)] == [
        "The man buys three red houses."
    ]
    final = joiner.add([heard(TEXT, 10, 15), heard(TEXT, 15, 19)], 5.0, 9.5, 2.0)
    assert [s.text for s in final] == ["Anna sees four green books in the garden now."]
    assert [s.text for s in joiner.finish()] == ["Where is the cat?"]


def test_segments_of_an_overlap_longer_than_requested_are_still_held_back():
    joiner = Joiner(overlap_s=1.0)
    sentences = "Where@0.2-0.5 is@0.6-0.8 it?@0.9-1.3", "Every@3.0-3.4 day.@3.5-3.9", "My@4.0-4.3 book@4.4-4.9"
    final = joiner.add([placed(sentence) for sentence in sentences], 0.0, 5.0, 0.0)
    final += joiner.add([placed("day.@3.5-3.9 My@4.0-4.3 book@4.4-4.9")], 3.4, 9.0, 1.6)
    final += joiner.finish()
    assert " ".join(segment.text for segment in final) == "Where is it? Every day. My book"
