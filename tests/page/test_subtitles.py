"""The files that the page saves: written by the page, read back here."""

from collections.abc import Callable
from itertools import pairwise

import pytest

LINES = [
    {"start": 0.5, "end": 2.0, "text": "Fish & <chips> --> now", "translation": {"text": "Fisch"}},
    {"start": 2.5, "end": 3.0, "text": "  Two\n\nrows  ", "translation": None},
    {"start": 3661.5, "end": 3661.5, "text": "No time at all", "translation": {"text": "Keine Zeit"}},
]

LIMITS = {"max_characters": 84, "max_s": 7}


@pytest.fixture
def write(page) -> Callable[..., str]:
    def run(format: str, lines: list[dict], which: str = "text") -> str:
        script = "async (given) => (await import('/static/subtitles.js')).write(...given)"
        return page.evaluate(script, [format, lines, which, LIMITS])

    return run


def test_subrip_has_every_line_at_its_time(write, read_cues):
    cues = read_cues("srt", write("srt", LINES))
    assert [cue.text for cue in cues] == ["Fish & <chips> → now", "Two rows", "No time at all"]
    assert [(cue.start, cue.end) for cue in cues] == [(0.5, 2.0), (2.5, 3.0), (3661.5, 3661.501)]


def test_webvtt_is_escaped(write, read_cues):
    cues = read_cues("vtt", write("vtt", LINES))
    assert [cue.text for cue in cues] == ["Fish &amp; &lt;chips&gt; → now", "Two rows", "No time at all"]


def test_the_translation_can_be_saved_alone_or_below_the_text(write, read_cues):
    assert [cue.text for cue in read_cues("srt", write("srt", LINES, "translation"))] == ["Fisch", "Keine Zeit"]
    assert [cue.text for cue in read_cues("vtt", write("vtt", LINES, "both"))][2] == "No time at all\nKeine Zeit"
    assert write("txt", LINES, "both").split("\n\n")[0] == "Fish & <chips> → now\nFisch"
    assert write("txt", LINES) == "Fish & <chips> → now\nTwo rows\nNo time at all\n"


def test_a_long_line_becomes_cues_that_can_be_read_at_the_times_of_its_words(write, read_cues):
    spoken = [f"word{i:02}" for i in range(40)]
    # said slowly at first, then fast
    times = [i if i < 20 else 20 + (i - 20) / 10 for i in range(41)]
    timed = [{"word": word, "start": times[i], "end": times[i + 1]} for i, word in enumerate(spoken)]
    line = {"start": 0, "end": times[-1], "text": " ".join(spoken), "words": timed, "translation": None}
    cues = read_cues("srt", write("srt", [line]))
    assert " ".join(cue.text for cue in cues) == line["text"]
    assert max(len(cue.text) for cue in cues) <= 84
    said_at = {word["word"]: word["start"] for word in timed}
    for cue in cues:
        assert cue.start == pytest.approx(said_at[cue.text.split()[0]], abs=0.001)


def test_a_long_line_said_fast_becomes_several_cues_too(write, read_cues):
    text = " ".join(["a", "sesquipedalian"] * 20 + ["x" * 100])
    cues = read_cues("srt", write("srt", [{"start": 1, "end": 4, "text": text, "translation": None}]))
    assert " ".join(cue.text for cue in cues) == text
    assert sorted(len(cue.text) > 84 for cue in cues)[-2:] == [False, True]
    assert (cues[0].start, cues[-1].end) == (1, 4)


def test_cues_do_not_overlap(write, read_cues):
    lines = [{"start": i, "end": i + 1.5, "text": f"line {i}", "translation": None} for i in range(5)]
    cues = read_cues("vtt", write("vtt", lines))
    assert all(a.end <= b.start for a, b in pairwise(cues))


def test_no_speech_gives_an_empty_file(write):
    assert write("vtt", []) == "WEBVTT\n"
    assert write("srt", []) == ""
