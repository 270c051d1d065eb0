"""Subtitles: short lines, shown long enough, with all of the text."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from model.transcript import Segment, Word
from server.settings import Settings
from server.text.subtitles import SubtitleRules, cues

RULES = SubtitleRules.from_settings(Settings(_env_file=None))
WORDS = st.lists(st.text("abcdefgh,.", min_size=1, max_size=20), min_size=1, max_size=40)


def timed(words: list[str], gaps: list[float], start: float = 0.0) -> Segment:
    placed, at = [], start
    for word, gap in zip(words, gaps, strict=True):
        placed.append(Word(word, at, at + 0.3))
        at += 0.3 + gap
    return Segment(placed[0].start, placed[-1].end, " ".join(words), (), tuple(placed))


@given(st.lists(st.tuples(WORDS, st.booleans()), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(deadline=None, derandomize=True)
def test_cues_keep_to_the_limits_and_contain_every_word(parts, random):
    segments, at = [], 0.0
    for words, with_words in parts:
        segment = timed(words, [random.choice((0.0, 0.1, 2.0)) for _ in words], at)
        at = segment.end + random.choice((0.0, 0.3, 3.0))
        segments.append(segment if with_words else Segment(segment.start, segment.end, segment.text, ()))
    shown = cues(tuple(segments), RULES)
    assert " ".join(cue.text for cue in shown).split() == " ".join(s.text for s in segments).split()
    for cue, following in zip(shown, [*shown[1:], None], strict=True):
        lines = cue.text.split("\n")
        assert len(lines) <= 2
        assert max(map(len, lines)) <= 42
        assert cue.end - cue.start <= 7.0 + 1e-9
        assert following is None or cue.end <= following.start + 1e-9


def test_a_cue_is_shown_long_enough_to_be_read_if_no_other_follows():
    short, long = timed(["Yes."], [0.0]), timed([*["sentence"] * 7, "ends."], [0.0] * 8, start=20.0)
    first, second = cues((short, long), RULES)
    assert (first.start, first.end) == (0.0, 1.0)
    assert second.end - second.start == max(2.4, len(second.text) / 17)


def test_lines_are_broken_evenly_and_cues_preferably_at_a_comma():
    text = "the quick brown fox jumps over the lazy dogs, while all of the others look on and wonder what it means"
    words = text.split()
    assert [cue.text for cue in cues((timed(words, [0.0] * len(words)),), RULES)] == [
        "the quick brown fox jumps\nover the lazy dogs,",
        "while all of the others look\non and wonder what it means",
    ]


def test_limits_can_be_set():
    words = ["one", "two", "three", "four", "five", "six"]
    shown = cues((timed(words, [0.5] * 6),), replace(RULES, line_length=9, max_lines=1, max_s=2.0, min_s=0.5))
    assert all(len(cue.text) <= 9 and "\n" not in cue.text for cue in shown)


def test_short_segments_in_a_row_share_one_cue():
    (cue,) = cues((timed(["No."], [0.0]), timed(["Yes."], [0.0], start=0.4)), RULES)
    assert cue.text.split() == ["No.", "Yes."]
