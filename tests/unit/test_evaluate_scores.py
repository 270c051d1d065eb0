"""Error rates, their intervals, and comparisons of `canary evaluate`."""

from dataclasses import replace
from pathlib import Path

import jiwer
import pytest
import sacrebleu

from server.cli.evaluate.comparing import compared
from server.cli.evaluate.predictions import Prediction
from server.cli.evaluate.report import alignment, conclusion, screen
from server.cli.evaluate.result import Evaluation, evaluated
from server.cli.evaluate.scoring import (
    Errors,
    difference_interval_percent,
    interval_percent,
    normalized,
    scored,
    total,
    translation_score,
    word_errors,
)
from tests.transcripts import SENTENCE, misheard, prediction, predictions, spoken


def evaluation(*made: Prediction) -> Evaluation:
    return evaluated("test.jsonl", made, None, {}, {})


# ---- scores ----


def test_the_corpus_error_rate_and_its_parts_are_jiwers():
    references = spoken(60)
    texts = misheard(references, 0.2, seed=1)
    expected = jiwer.process_words(references, texts)
    found = total(scored(each).words for each in predictions(references, texts))
    assert (found.substitutions, found.deletions, found.insertions, found.hits) == (
        expected.substitutions,
        expected.deletions,
        expected.insertions,
        expected.hits,
    )
    assert found.percent == pytest.approx(100 * expected.wer)
    characters = total(scored(each).characters for each in predictions(references, texts))
    assert characters.percent == pytest.approx(100 * jiwer.process_characters(references, texts).cer)
    # Not the mean of the utterances' rates, which is another number.
    rates = [word_errors(reference, text).percent or 0.0 for reference, text in zip(references, texts, strict=True)]
    assert found.percent != pytest.approx(sum(rates) / len(rates))


def test_texts_that_were_exchanged_have_all_words_wrong():
    references = ["one two three", "four five six", "seven eight nine"]
    exchanged = references[1:] + references[:1]
    found = total(word_errors(reference, text) for reference, text in zip(references, exchanged, strict=True))
    assert found == Errors(hits=0, substitutions=9, deletions=0, insertions=0)
    assert found.percent == 100


def test_whatever_is_written_for_an_empty_reference_is_inserted():
    assert word_errors("", "thank you") == Errors(0, 0, 0, 2)
    assert word_errors("", "") == Errors()
    found = evaluation(prediction("thank you", ""), prediction("a b c", "a b c", "b.wav"))
    assert found.wer_percent == pytest.approx(200 / 3)
    assert evaluation(prediction("thank you", "")).wer_percent is None
    assert "–" in screen(evaluation(prediction("thank you", "")))


def test_failed_and_empty_utterances_count_with_all_their_words():
    found = evaluation(
        prediction("", "one two", error="The file is empty (0 bytes)."),
        prediction("", "three four five", "b.wav"),
        prediction("", "", "c.wav"),
        prediction("six", "six", "d.wav"),
    )
    assert found.rates["all"].words == Errors(hits=1, deletions=5)
    assert [each.utterance.name for each in found.failures] == ["a.wav"]
    assert [each.utterance.name for each in found.empty] == ["b.wav"]
    assert "4 utterances, 1 failed, 1 empty" in screen(found)


def test_normalized_text_has_no_punctuation_and_english_has_one_spelling():
    assert normalized("Mr. Smith's colour, isn't it?", "en") == normalized("mister smith's color is not it", "en")
    assert normalized("¿Dónde está la casa?", "es") == "dónde está la casa"
    english = scored(prediction("twenty one", "21!", language="en"))
    assert (english.words.count, english.raw_words.count) == (0, 2)


def test_rates_are_given_by_language_and_in_all():
    found = evaluation(
        prediction("one two", "one two", language="en"),
        prediction("eins zwei", "eins drei", "b.wav", "de"),
        prediction("vier", "vier fünf", "c.wav", "de"),
    )
    assert {language: rates.words.percent for language, rates in found.rates.items()} == {
        "de": 50.0,
        "en": 0.0,
        "all": 40.0,
    }


def test_the_ten_utterances_with_most_errors_are_shown_worst_first():
    made = [prediction("", " ".join(["word"] * n), f"{n}.wav") for n in range(1, 13)]
    made.append(prediction("right", "right", "right.wav"))
    assert [len(score.reference.split()) for score in evaluation(*made).worst] == [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]


def test_translations_get_sacrebleus_scores_and_no_word_error_rate():
    references, texts = spoken(20), misheard(spoken(20), 0.1, seed=3)
    made = [
        replace(each, utterance=replace(each.utterance, target_language="de"))
        for each in predictions(references, texts)
    ]
    found = evaluation(*made)
    assert (found.wer_percent, list(found.translations)) == (None, ["nl-de"])
    score = found.translations["nl-de"]
    assert score.bleu == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert score.chrf == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    assert 0 < score.bleu_margin < 20
    assert "tok:13a" in score.signatures["BLEU"]
    assert translation_score(made[:1]).bleu_margin == 0


# ---- intervals ----


def test_the_interval_of_a_rate_is_as_wide_as_statistics_say():
    half_right = [Errors(hits=1), Errors(substitutions=1)] * 200
    found = interval_percent(half_right)
    assert found
    # A binomial share of one half: 1.96 · √(¼ / 400) = 4.9 points to each side.
    assert (found.low, found.high) == (pytest.approx(45.1, abs=0.7), pytest.approx(54.9, abs=0.7))
    assert interval_percent(half_right) == found
    assert interval_percent([Errors(insertions=1)]) is None


def test_a_paired_interval_is_narrower_than_two_separate_ones():
    references = spoken(300)
    first = misheard(references, 0.2, seed=1)
    # The same errors, and one more in every tenth sentence.
    second = [f"{text} more" if place % 10 == 0 else text for place, text in enumerate(first)]
    ours, theirs = ([word_errors(r, t) for r, t in zip(references, texts, strict=True)] for texts in (first, second))
    difference = difference_interval_percent(ours, theirs)
    alone = interval_percent(ours)
    assert difference
    assert alone
    assert difference.high < 0
    assert difference.high - difference.low < (alone.high - alone.low) / 2


# ---- comparisons ----


def test_a_planted_difference_is_found_and_its_direction_is_told():
    references = spoken(300)
    good, bad = misheard(references, 0.05, seed=1), misheard(references, 0.10, seed=2)
    better = compared(predictions(references, good), predictions(references, bad), Path("other.jsonl"))
    assert {each.name: each.verdict for each in better.differences} == dict.fromkeys(
        ("WER", "CER", "raw WER"), "better"
    )
    assert better.fewer_here > better.fewer_there
    assert conclusion(better.differences).startswith("There is a difference: WER is better here")
    worse = compared(predictions(references, bad), predictions(references, good), Path("other.jsonl"))
    assert {each.verdict for each in worse.differences} == {"worse"}


def test_where_systems_err_equally_often_no_difference_is_shown():
    references = spoken(300)
    first, second = (predictions(references, misheard(references, 0.1, seed)) for seed in (1, 2))
    found = compared(first, second, Path("other.jsonl"))
    assert {each.verdict for each in found.differences} == {"none shown"}
    assert conclusion(found.differences).startswith("No difference can be shown")
    assert found.same_text < 300


def test_a_run_compared_with_itself_is_the_same():
    made = predictions(spoken(30), misheard(spoken(30), 0.1, seed=1))
    found = compared(made, made, Path("other.jsonl"))
    assert {each.verdict for each in found.differences} == {"same"}
    assert (found.same_text, conclusion(found.differences)) == (30, "There is no difference.")


def test_translations_are_compared_by_bleu_and_chrf():
    references = spoken(100)

    def translated(rate: float, seed: int) -> list[Prediction]:
        made = predictions(references, misheard(references, rate, seed))
        return [replace(each, utterance=replace(each.utterance, target_language="de")) for each in made]

    planted = compared(translated(0.05, 1), translated(0.3, 2), Path("other.jsonl"))
    assert [(each.name, each.verdict) for each in planted.differences] == [
        ("nl-de BLEU", "better"),
        ("nl-de chrF2", "better"),
    ]
    alike = compared(translated(0.1, 1), translated(0.1, 3), Path("other.jsonl"))
    assert {each.verdict for each in alike.differences} == {"none shown"}
    same = compared(translated(0.1, 1), translated(0.1, 1), Path("other.jsonl"))
    assert {each.verdict for each in same.differences} == {"same"}


# ---- the screen ----


def test_an_alignment_shows_errors_in_capitals_and_leaves_out_what_is_right():
    assert alignment("the woman sees ten new houses", "the man sees new houses again") == [
        "  REF the WOMAN sees TEN new houses ***",
        "  HYP the MAN   sees *** new houses AGAIN",
    ]
    assert alignment(f"{SENTENCE} end", f"{SENTENCE} and") == ["  REF … old red car END", "  HYP … old red car AND"]
    many = alignment(" ".join(["word"] * 300), "")
    assert len(many) == 7
    assert all(len(line) <= 100 for line in many)
    assert many[-1] == f"  … and {300 - many[0].count('WORD') * 3} more errors"
