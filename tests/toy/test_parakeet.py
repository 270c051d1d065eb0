"""The toy Parakeet in convert/toy: each of its heads on the recordings beside it and on held-out sentences."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from convert.hub import resolve
from model.decoding import DecodingOptions
from model.loading import load
from model.parakeet.model import ParakeetModel
from model.task import AUTO, Task, TaskError
from tests.libraries import LIBRARIES, computing_with
from tests.toy.grammar import LANGUAGES
from tests.toy.score import Heard, Item, exact, recordings, time_errors_s, word_error_rate
from tests.toy.speech import SAMPLE_RATE, hiss, silence

TOY = Path(__file__).parents[2] / "convert" / "toy"
SAMPLES = json.loads((TOY / "samples" / "samples.json").read_text())
HEADS = ["tdt", "ctc"]
# Three frames, and two: a piece of TDT takes four frames at most, even if it is a longer word.
WITHIN_S = {"tdt": 0.26, "ctc": 0.16}
PIECE_STEPS = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve("toy-parakeet", dtype="float32", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", params=[*LIBRARIES, "bfloat16"])
def parakeet(request, folder: Path) -> Iterator[ParakeetModel]:
    """In float32 with each library, and in bfloat16, a GPU's default."""
    in_16_bits = request.param == "bfloat16"
    with computing_with("mlx" if in_16_bits else request.param):
        model = load(folder, "bfloat16" if in_16_bits else "float32")
        assert isinstance(model, ParakeetModel)
        yield model


@pytest.fixture(scope="module")
def held_out() -> dict[str, list[Item]]:
    """Recordings of two held-out sentences each, by language."""
    return {language: recordings(language, 6, sentences=2, seed=4) for language in LANGUAGES}


def heard(parakeet: ParakeetModel, waveforms: list[np.ndarray], head: str) -> list[Heard]:
    transcripts = parakeet.transcribe(waveforms, Task(AUTO, timestamps="word"), DecodingOptions(head=head))
    return [Heard(t.text, [(w.word, w.start, w.end) for s in t.segments for w in s.words]) for t in transcripts]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SAMPLES)
def test_each_head_transcribes_the_samples_with_the_times_of_their_words(parakeet: ParakeetModel, name: str, head: str):
    sample = SAMPLES[name]
    waveform, rate = soundfile.read(TOY / "samples" / name, dtype="float32")
    assert rate == SAMPLE_RATE
    [said] = heard(parakeet, [waveform], head)
    assert said.text == sample["text"]
    assert [word for word, _, _ in said.words] == [word["word"] for word in sample["words"]]
    for (_, start, end), expected in zip(said.words, sample["words"], strict=True):
        assert start == pytest.approx(expected["start"], abs=WITHIN_S[head])
        assert end == pytest.approx(expected["end"], abs=WITHIN_S[head])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_sentences_have_few_wrong_words_and_right_times(
    parakeet: ParakeetModel, held_out: dict[str, list[Item]], language: str, head: str
):
    items = held_out[language]
    said = heard(parakeet, [item.waveform for item in items], head)
    assert exact(items, said, language) >= 0.8
    assert word_error_rate(items, said, language) <= 0.03
    errors = time_errors_s(items, said)
    assert np.median(errors) <= 0.04
    assert np.mean(np.array(errors) <= 0.2) >= 0.95


@pytest.mark.parametrize("head", HEADS)
def test_noise_and_silence_give_no_text(parakeet: ParakeetModel, head: str):
    sounds = [silence(2.0), *(hiss(3 * SAMPLE_RATE, level, random.Random(0)) for level in (0.001, 0.05))]
    assert [said.text for said in heard(parakeet, sounds, head)] == ["", "", ""]


@pytest.mark.parametrize("head", HEADS)
def test_recordings_in_pieces_go_on_from_each_others_state(
    parakeet: ParakeetModel, held_out: dict[str, list[Item]], head: str
):
    """As in live captions, the prediction network never starts anew, whatever was said before in any language."""
    items = [(item, language) for language, same in held_out.items() for item in same[:3]]
    random.Random(0).shuffle(items)
    state, errors = None, []
    for item, language in items:
        vectors, tokens = parakeet.encodings([item.waveform])[0].vectors, []
        for at in range(0, vectors.shape[0], PIECE_STEPS):
            [written] = parakeet.generate([parakeet.piece(0, vectors[at : at + PIECE_STEPS], state, head)])
            state = written.state
            tokens += written.tokens
        said = Heard(parakeet.tokenizer.decode(tokens), [])
        errors.append(word_error_rate([item], [said], language))
    assert np.mean(errors) <= 0.02
    assert errors.count(0) >= 11


def test_the_toy_says_its_languages_and_refuses_others_and_translation(parakeet: ParakeetModel):
    assert parakeet.config.languages == ("en", "de", "es", "fr")
    with pytest.raises(
        TaskError, match="language 'it' is not supported by toy-parakeet; must be one of en, de, es, fr"
    ):
        parakeet.config.check(Task("it"))
    with pytest.raises(TaskError, match="toy-parakeet does not translate"):
        parakeet.config.check(Task("en", "de"))


def test_the_toy_parakeet_is_small_enough_to_ship():
    assert (TOY / "toy-parakeet.nemo").stat().st_size < 3_000_000
