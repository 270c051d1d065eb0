"""Word times and detected languages of the toy's variants in models/, on held-out sentences."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convert.convert import ConversionConfig, convert
from server import Canary
from tests.toy.combined import with_aligner
from tests.toy.grammar import LANGUAGES
from tests.toy.score import Heard, Item, recordings, time_errors_s

MODELS = Path(__file__).with_name("models")
TOY = Path(__file__).parents[2] / "convert" / "toy" / "toy.nemo"
COUNT = 8


@pytest.fixture(scope="module")
def unseen() -> dict[str, list[Item]]:
    """Recordings of held-out sentences by language."""
    return {language: recordings(language, COUNT, seed=5) for language in LANGUAGES}


@pytest.fixture(scope="module")
def v1() -> Iterator[Canary]:
    with Canary.from_pretrained(MODELS / "v1.nemo", dtype="float32") as canary:
        yield canary


@pytest.fixture(scope="module")
def v1_with_aligner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    folder = tmp_path_factory.mktemp("aligner")
    archive = with_aligner(MODELS / "v1.nemo", MODELS / "aligner.nemo", folder / "combined.nemo")
    converted = convert(ConversionConfig(source=archive, output=folder / "combined"))
    with Canary.from_pretrained(converted, dtype="float32") as canary:
        yield canary


def timed(canary: Canary, items: list[Item], source: str) -> list[Heard]:
    """Transcribe the items with word times, which must come from `source`."""
    transcripts = canary.transcribe([item.waveform for item in items], items[0].language, timestamps="word")
    assert {t.timestamps_source for t in transcripts} == {source}
    return [Heard(t.text, [(w.word, w.start, w.end) for s in t.segments for w in s.words]) for t in transcripts]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("fixture", "source"), [("v1", "cross_attention"), ("v1_with_aligner", "aligner")])
def test_word_times_are_close_to_when_the_words_were_spoken(request, unseen, language: str, fixture: str, source: str):
    items = unseen[language]
    heard = timed(request.getfixturevalue(fixture), items, source)
    assert [h.text for h in heard] == [item.text(language) for item in items]
    errors = time_errors_s(items, heard)
    assert len(errors) == 2 * sum(len(item.spoken) for item in items)
    assert np.median(errors) <= 0.08
    assert np.mean(np.array(errors) <= 0.2) >= 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("archive", [TOY, MODELS / "v1.nemo"], ids=["canary2", "canary"])
def test_the_spoken_language_is_detected_in_both_prompt_formats(unseen, archive: Path, dtype: str):
    with Canary.from_pretrained(archive, dtype=dtype) as canary:
        assert canary.info.config.prompt_format == ("canary2" if archive == TOY else "canary")
        for language, items in unseen.items():
            transcripts = canary.transcribe([item.waveform for item in items], "auto")
            assert [t.language for t in transcripts] == [language] * COUNT
            assert [t.text for t in transcripts] == [item.text(language) for item in items]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_comes_with_its_probability_and_the_runner_up(v1: Canary, unseen, language: str):
    for transcription in v1.transcribe([item.waveform for item in unseen[language]], "auto"):
        detection = transcription.detection
        assert detection
        assert sum(detection.probabilities.values()) == pytest.approx(1)
        assert detection.probability == detection.probabilities[language] == max(detection.probabilities.values())
        assert detection.runner_up != language
