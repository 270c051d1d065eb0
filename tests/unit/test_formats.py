"""A transcript rendered as json, text, srt and vtt."""

import json

import pytest

from model.decoding import detection_from
from model.transcript import Segment, Transcript, Word
from server.settings import Settings
from server.text.formats import to_dict, to_srt, to_text, to_vtt
from server.text.subtitles import SubtitleRules

RULES = SubtitleRules.from_settings(Settings(_env_file=None))


def transcript(*segments: Segment) -> Transcript:
    return Transcript(" ".join(s.text for s in segments), "de", "en", 5.0, segments)


TWO = transcript(
    Segment(0.08, 1.2, "One, two.", (7, 8, 9), (Word("One,", 0.08, 0.4), Word("two.", 0.4800000001, 1.2))),
    Segment(1.2, 6.5, "Three & <four>", (10,)),
)


def test_json_has_every_value_with_times_rounded_to_milliseconds():
    assert to_dict(TWO, "request") == {
        "text": "One, two. Three & <four>",
        "language": "de",
        "language_source": "request",
        "target_language": "en",
        "duration": 5.0,
        "segments": [
            {
                "start": 0.08,
                "end": 1.2,
                "text": "One, two.",
                "tokens": [7, 8, 9],
                "words": [{"word": "One,", "start": 0.08, "end": 0.4}, {"word": "two.", "start": 0.48, "end": 1.2}],
            },
            {"start": 1.2, "end": 6.5, "text": "Three & <four>", "tokens": [10], "words": []},
        ],
    }
    assert json.loads(json.dumps(to_dict(TWO, "request"))) == to_dict(TWO, "request")


def test_the_words_of_a_segment_add_up_to_its_text():
    for segment in to_dict(TWO, "request")["segments"]:
        if segment["words"]:
            assert " ".join(word["word"] for word in segment["words"]) == segment["text"]


def test_text_is_the_text_and_a_newline():
    assert to_text(TWO) == "One, two. Three & <four>\n"


def test_srt_numbers_its_cues_and_separates_them_with_a_blank_line():
    assert to_srt(TWO, RULES) == (
        "1\n00:00:00,080 --> 00:00:01,200\nOne, two.\n\n2\n00:00:01,200 --> 00:00:06,500\nThree & <four>\n"
    )


def test_vtt_has_a_header_and_escapes_markup():
    assert to_vtt(TWO, RULES) == (
        "WEBVTT\n\n00:00:00.080 --> 00:00:01.200\nOne, two.\n"
        "\n00:00:01.200 --> 00:00:06.500\nThree &amp; &lt;four&gt;\n"
    )


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [(0.0, "00:00:00.000"), (59.9996, "00:01:00.000"), (3599.9999, "01:00:00.000"), (360000.001, "100:00:00.001")],
)
def test_a_time_is_rounded_before_it_is_split_so_that_seconds_never_reach_60(seconds, clock):
    assert f"{clock} --> " in to_vtt(transcript(Segment(seconds, seconds + 1, "a", ())), RULES)


def test_a_cue_ends_after_it_starts_even_if_the_next_one_starts_at_the_same_time():
    assert "00:00:01.000 --> 00:00:02.000" in to_vtt(transcript(Segment(1.0, 1.0, "a", ())), RULES)
    long = "a" * 40
    crowded = to_vtt(transcript(Segment(1.0, 1.0, f"{long} {long}", ()), Segment(1.0, 2.0, long, ())), RULES)
    assert "00:00:01.000 --> 00:00:01.001" in crowded


def test_json_has_the_models_probabilities_if_they_are_known():
    word = Word("Ja.", 0.0, 0.5, probability=0.91234, confidence=0.45678)
    segment = Segment(0.0, 0.5, "Ja.", (1,), (word,), avg_logprob=-0.12345, no_speech_prob=0.00004, language="de")
    body = to_dict(
        Transcript("Ja.", "de", "de", 1.0, (segment,), "aligner"),
        "detected",
        detection_from({"de": 0.9, "nl": 0.1}),
        ((0.7, 1.0),),
    )
    assert (body["language_probability"], body["language_runner_up"]) == (0.9, "nl")
    assert (body["timestamps_source"], body["uncovered"]) == ("aligner", [[0.7, 1.0]])
    (segment,) = body["segments"]
    assert (segment["avg_logprob"], segment["no_speech_prob"], segment["language"]) == (-0.1235, 0.0, "de")
    assert segment["words"] == [{"word": "Ja.", "start": 0.0, "end": 0.5, "probability": 0.9123, "confidence": 0.4568}]


def test_a_blank_line_in_the_text_does_not_end_the_cue():
    srt = to_srt(transcript(Segment(0, 1, "a\n\nb --> c", ())), RULES)
    assert srt == "1\n00:00:00,000 --> 00:00:01,000\na b --> c\n"


def test_silence_gives_an_empty_file_in_each_format():
    silence = transcript(Segment(0, 1, "", ()))
    assert (to_text(silence), to_srt(silence, RULES), to_vtt(silence, RULES)) == ("\n", "", "WEBVTT\n")
