"""The language of a recording that nobody named: the model's only one, or guessed from the text."""

from dataclasses import replace

import pytest

from model.decoding import DecodingOptions
from model.parakeet.config import ParakeetConfig
from model.task import AUTO, CanaryOnlyError, Task, TaskError
from server.longform.spoken import assumed, guessed, settled
from server.text.guessing import guessed_language
from tests.configs import canary_config, encoder_config

CANARY = canary_config(languages=("en",))
SENTENCES = {
    "bg": "Вчера отидохме на пазара и купихме пресни домати.",
    "cs": "Včera jsme šli na trh a koupili čerstvá rajčata.",
    "de": "Gestern gingen wir auf den Markt und kauften frische Tomaten.",
    "el": "Χθες πήγαμε στην αγορά και αγοράσαμε φρέσκες ντομάτες.",
    "en": "Yesterday we went to the market and bought fresh tomatoes.",
    "fi": "Eilen kävimme torilla ja ostimme tuoreita tomaatteja.",
    "fr": "Hier nous sommes allés au marché et avons acheté des tomates fraîches.",
    "hu": "Tegnap elmentünk a piacra, és friss paradicsomot vettünk.",
    "pl": "Wczoraj poszliśmy na targ i kupiliśmy świeże pomidory.",
    "uk": "Вчора ми пішли на ринок і купили свіжі помідори.",
}


def parakeet(*languages: str) -> ParakeetConfig:
    config = CANARY
    return ParakeetConfig(
        "mock", "float32", "ctc", languages, 64, config.preprocessor, encoder_config(), config.tokenizer
    )


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_of_a_sentence_is_guessed_among_the_models(language):
    found = guessed(SENTENCES[language], parakeet(*SENTENCES))
    assert found
    assert (found.language, found.probabilities.keys()) == (language, SENTENCES.keys())
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.runner_up in SENTENCES


def test_a_model_that_does_not_say_its_languages_may_speak_any():
    found = guessed("昨日、市場に行って新鮮なトマトを買いました。", parakeet())
    assert found
    assert found.language == "ja"


def test_nothing_is_guessed_without_text_or_for_a_model_that_hears_the_language():
    assert guessed_language(" ") is None
    assert guessed_language("Hello there", ("xx",)) is None
    assert guessed(SENTENCES["en"], CANARY) is None


def test_a_model_of_one_language_has_that_if_none_is_given():
    one, two = parakeet("de"), parakeet("de", "en")
    assert settled(Task(AUTO), one) == Task("de")
    assert settled(Task(AUTO, "de"), one) == Task("de")
    assert settled(Task(AUTO), two) == Task(AUTO)
    assert settled(Task(AUTO), CANARY) == Task(AUTO)


def test_a_target_in_the_only_language_is_no_translation():
    one, two = parakeet("de"), parakeet("de", "en")
    one.check(Task(AUTO, "de"))
    for config, task in ((one, Task(AUTO, "en")), (two, Task(AUTO, "de")), (two, Task("en", "de"))):
        with pytest.raises(CanaryOnlyError, match="mock does not translate; a Canary model does"):
            config.check(task)


def test_a_given_language_is_checked_unless_the_model_does_not_say_its_own():
    parakeet().check(Task("ja"))
    with pytest.raises(TaskError, match="language 'ja' is not supported by mock; must be one of de, en"):
        parakeet("de", "en").check(Task("ja"))


@pytest.mark.parametrize(("languages", "language"), [((), "en"), (("de", "en"), "en"), (("de", "fr"), "de")])
def test_without_text_a_language_is_assumed(languages, language):
    assert assumed(parakeet(*languages)) == language


def test_only_a_transducer_searches_beams():
    beams = DecodingOptions(beam_size=4)
    for kind in ("rnnt", "tdt"):
        replace(parakeet(), kind=kind).check_options(beams)
    hybrid = replace(parakeet(), kind="tdt", auxiliary_ctc=True)
    for config, options in ((parakeet(), beams), (hybrid, replace(beams, head="ctc"))):
        with pytest.raises(TaskError, match="beam_size 4 is not supported by the ctc head of mock; must be 1"):
            config.check_options(options)


def test_a_head_is_one_that_the_model_has():
    hybrid = replace(parakeet(), kind="tdt", auxiliary_ctc=True)
    assert [hybrid.head(DecodingOptions(head=head)) for head in (None, "tdt", "ctc")] == ["tdt", "tdt", "ctc"]
    for config, head, message in (
        (hybrid, "rnnt", "head 'rnnt' is not supported by mock; must be one of tdt, ctc"),
        (parakeet(), "tdt", "head 'tdt' is not supported by mock; must be ctc"),
        (CANARY, "ctc", f"head 'ctc' is not supported by {CANARY.name}, which has only one"),
    ):
        with pytest.raises(TaskError, match=f"^{message}$"):
            config.check_options(DecodingOptions(head=head))
