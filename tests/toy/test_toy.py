"""The toy's grammar and speech, and the model in convert/toy on the recordings beside it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from server import Canary
from tests.libraries import LIBRARIES, computing_with
from tests.toy.grammar import LANGUAGES, Sentence, sentence, vocabulary
from tests.toy.score import heard
from tests.toy.speech import SAMPLE_RATE, bare, speak

TOY = Path(__file__).parents[2] / "convert" / "toy"
SAMPLES = json.loads((TOY / "samples" / "samples.json").read_text())


def sentence_that_starts(start: str) -> Sentence:
    rng = random.Random(0)
    return next(s for s in iter(lambda: sentence(rng), None) if s.text("en").startswith(start))


def test_held_out_meanings_are_never_drawn_for_training():
    rng = random.Random(0)
    trained = {sentence(rng, "train").text("en") for _ in range(2000)}
    assert trained.isdisjoint({sentence(rng, "test").text("en") for _ in range(500)})


def test_sentences_use_only_the_vocabulary_in_every_language():
    rng = random.Random(0)
    for language in LANGUAGES:
        known = {word.lower() for word in vocabulary(language)}
        assert {bare(word) for _ in range(300) for word in sentence(rng).words(language)} <= known


def test_adjectives_agree_and_are_placed_as_in_each_language():
    question = sentence_that_starts("Where is the old house")
    assert [question.text(language) for language in LANGUAGES] == [
        "Where is the old house?",
        "Wo ist das alte Haus?",
        "¿Dónde está la casa vieja?",
        "Où est la vieille maison?",
    ]


def test_a_cut_off_sentence_has_a_mark_only_if_a_sentence_may_end_there():
    question = sentence_that_starts("Where is the red house")
    assert [question.text("es", count=n) for n in (3, 4, 5)] == [
        "¿Dónde está la",
        "¿Dónde está la casa?",
        "¿Dónde está la casa roja?",
    ]
    assert question.first(1).text("de") == "Wo ist"
    assert question.after(1).text("de") == "das rote Haus?"
    assert question.text("de", pnc=False) == "wo ist das rote haus"


def test_the_waveform_is_loud_during_words_and_silent_between_them():
    words = ["The", "dog", "is", "big.", "Anna", "sings."]
    waveform, times = speak(words, "en", "en-us", random.Random(0), lead_s=0.5, tail_s=0.25, pause_s=0.75, noise=0.0)
    assert [word for word, _, _ in times] == words
    assert times[0][1] == 0.5
    assert len(waveform) / SAMPLE_RATE == pytest.approx(times[-1][2] + 0.25)
    assert times[4][1] - times[3][2] == pytest.approx(0.75)
    within = np.zeros(len(waveform), bool)
    for _, start, end in times:
        within[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = True
        assert np.abs(waveform[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]).max() == pytest.approx(
            0.5, abs=1e-3
        )
    assert not waveform[~within].any()


def test_the_same_seed_gives_the_same_samples():
    first, second = (speak(["Hunde"], "de", None, random.Random(7))[0] for _ in range(2))
    assert np.array_equal(first, second)


def test_words_and_times_are_parsed_from_a_flash_token_string():
    assert heard("<|2|> The<|5|> <|6|> dog.<|11|>").words == [("The", 0.16, 0.4), ("dog.", 0.48, 0.88)]
    assert heard("<|nospeech|>").text == ""


@pytest.fixture(scope="module", params=[*LIBRARIES, "bfloat16"])
def toy(request) -> Iterator[Canary]:
    """In float32 with each library, and in bfloat16, a GPU's default."""
    in_16_bits = request.param == "bfloat16"
    with computing_with("mlx" if in_16_bits else request.param):
        canary = Canary.from_pretrained(TOY / "toy.nemo", dtype="bfloat16" if in_16_bits else "float32")
    with canary:
        yield canary


@pytest.mark.parametrize("name", SAMPLES)
def test_the_toy_model_transcribes_its_samples_with_times_and_translates_them(toy: Canary, name: str):
    sample, sound = SAMPLES[name], TOY / "samples" / name
    language = sample["language"]
    timed = toy.transcribe(sound, language=language, timestamps="word")
    assert timed.text == sample["text"]
    words = [word for segment in timed.segments for word in segment.words]
    assert [word.word for word in words] == [word["word"] for word in sample["words"]]
    for word, expected in zip(words, sample["words"], strict=True):
        assert word.start == pytest.approx(expected["start"], abs=0.16)
        assert word.end == pytest.approx(expected["end"], abs=0.16)
    for target, translation in sample["translations"].items():
        assert toy.transcribe(sound, language=language, target_language=target).text == translation
    plain = toy.transcribe(sound, language=language, pnc=False).text
    assert plain == "".join(letter for letter in sample["text"].lower() if letter not in ".?¿")


def test_the_samples_are_16_khz_mono_and_have_the_duration_in_the_index():
    for name, sample in SAMPLES.items():
        info = soundfile.info(TOY / "samples" / name)
        assert (info.samplerate, info.channels) == (SAMPLE_RATE, 1)
        assert info.duration == pytest.approx(sample["duration"], abs=1e-3)


def test_the_toy_model_is_small_enough_to_ship():
    assert (TOY / "toy.nemo").stat().st_size < 6_000_000
