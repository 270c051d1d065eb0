"""canary-1b's prompt format over HTTP: a variant of the toy trained on it, with and without an aligner."""

from pathlib import Path

import httpx
import pytest

from tests.toy.combined import with_aligner

MODELS = Path(__file__).parents[1] / "toy" / "models"
LANGUAGES = ("en", "de", "es", "fr")
TOLERANCE_S = 0.25


@pytest.fixture(scope="module")
def v1(start_server, cache) -> httpx.Client:
    return start_server(model=str(MODELS / "v1.nemo"))


@pytest.fixture(scope="module")
def aligned(start_server, cache, tmp_path_factory) -> httpx.Client:
    out = tmp_path_factory.mktemp("aligned") / "v1-with-aligner.nemo"
    return start_server(model=str(with_aligner(MODELS / "v1.nemo", MODELS / "aligner.nemo", out)))


def verbose(client: httpx.Client, sample, **fields) -> dict:
    fields |= {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    return client.post("/v1/audio/transcriptions", files={"file": sample.audio}, data=fields).json()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("server", "source"), [("v1", "cross_attention"), ("aligned", "aligner")])
def test_verbose_json_has_words_with_times_and_the_source_of_the_times(
    request, samples, server: str, source: str, language: str
):
    sample = samples[language]
    body = verbose(request.getfixturevalue(server), sample, language=language)
    assert body["text"] == sample.text
    assert body["timestamps_source"] == source
    assert [word["word"] for word in body["words"]] == [word["word"] for word in sample.words]
    for heard, spoken in zip(body["words"], sample.words, strict=True):
        assert heard["start"] == pytest.approx(spoken["start"], abs=TOLERANCE_S)
        assert heard["end"] == pytest.approx(spoken["end"], abs=TOLERANCE_S)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_language_is_detected_and_reported_with_its_probability(v1, samples, language):
    body = v1.post("/transcribe", content=samples[language].audio).json()
    assert (body["text"], body["language"], body["language_source"]) == (samples[language].text, language, "detected")
    assert body["language_probability"] > 0.9


@pytest.mark.parametrize("language", LANGUAGES)
def test_speech_is_translated(v1, samples, language):
    for target, text in samples[language].translations.items():
        query = {"language": language, "target_language": target}
        assert v1.post("/translate", params=query, content=samples[language].audio).json()["text"] == text


def test_word_times_of_a_translation_come_from_cross_attention_even_with_an_aligner(aligned, samples):
    query = {"language": "de", "target_language": "en", "timestamps": "word"}
    body = aligned.post("/translate", params=query, content=samples["de"].audio).json()
    assert body["text"] == samples["de"].translations["en"]
    assert body["timestamps_source"] == "cross_attention"


def test_a_prompt_is_refused_because_the_format_does_not_support_one(v1, samples):
    answer = v1.post("/transcribe", params={"language": "en", "prompt": "Anna."}, content=samples["en"].audio)
    assert answer.status_code == 400
    assert "does not support a context" in answer.json()["error"]["message"]
