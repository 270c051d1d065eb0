"""Words, segments, times and probabilities from what a model writes; its attention as times."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

import server
from convert.hub import resolve
from model.alignment import attention_times, monotonic_path
from model.canary.config import CanaryConfig
from model.canary.model import CanaryModel
from model.canary.prompt import NO_SPEECH
from model.decoding import Generated
from model.task import Task
from model.timestamps import WordTokens, timed_segments, whole_segment, written_words

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"
STEP_S = 0.08


class Tokenizer:
    """Pieces are their own text; `<5>` is the time of step 5."""

    def __init__(self, pieces: str):
        self.pieces = list(dict.fromkeys(pieces.split()))
        self.time_steps = {i: int(p[1:-1]) for i, p in enumerate(self.pieces) if p.startswith("<")}

    def ids(self, pieces: str) -> list[int]:
        return [self.pieces.index(piece) for piece in pieces.split()]

    def is_special(self, token: int) -> bool:
        return token in self.time_steps

    def starts_word(self, token: int) -> bool:
        return self.pieces[token].startswith("▁")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids).replace("▁", " ")


def segments(pieces: str, log_probs: list[float] | None = None, duration: float = 60.0):
    tokenizer = Tokenizer(pieces)
    ids = tokenizer.ids(pieces)
    generated = Generated(0, ids, log_probs or [-0.5] * len(ids), 0.25)
    return ids, timed_segments(generated, tokenizer, STEP_S, duration)  # type: ignore[arg-type]


def test_segments_end_where_sentences_do_and_hold_every_token():
    ids, found = segments("<1> ▁One <3> <4> ▁two . <7> <9> ▁Th ree <12> <12> ▁four ? <20>")
    assert [s.text for s in found] == ["One two.", "Three four?"]
    assert [time for s in found for time in (s.start, s.end)] == pytest.approx([0.08, 0.56, 0.72, 1.6])
    assert [token for s in found for token in s.tokens] == ids
    for segment in found:
        assert " ".join(word.word for word in segment.words) == segment.text
        assert tuple(token for word in segment.words for token in word.tokens) == segment.tokens


def test_a_word_whose_start_or_end_is_missing_is_kept_with_the_times_around_it():
    _, found = segments("<1> ▁One <3> ▁two <7> <9> ▁three")
    words = [word for segment in found for word in segment.words]
    assert [(w.word, round(w.start / STEP_S), round(w.end / STEP_S)) for w in words] == [
        ("One", 1, 3),
        ("two", 3, 7),
        ("three", 9, 9),
    ]


def test_probabilities_are_those_of_a_words_own_tokens():
    _, (segment,) = segments("<1> ▁Sev en <3>", [-9.0, -0.2, -0.4, -9.0])
    assert segment.words[0].probability == pytest.approx(math.exp(-0.3))
    assert segment.avg_logprob == pytest.approx(-18.6 / 4)
    assert segment.no_speech_prob == 0.25


def test_tokens_of_a_given_prefix_have_no_probability_and_change_none():
    tokenizer = Tokenizer("▁One ▁two")
    generated = Generated(0, tokenizer.ids("▁One ▁two"), [-0.1], 0.0)
    (segment,) = whole_segment(generated, tokenizer, 2.0)  # type: ignore[arg-type]
    assert segment.avg_logprob == pytest.approx(-0.1)


def test_untimed_tokens_are_grouped_into_the_words_of_the_text():
    tokenizer = Tokenizer("▁ ▁An na ▁is ▁he re .")
    words = written_words(tokenizer.ids("▁ ▁An na ▁is ▁he re ."), tokenizer)  # type: ignore[arg-type]
    assert words == [WordTokens("Anna", range(3)), WordTokens("is", range(3, 4)), WordTokens("here.", range(4, 7))]


def test_the_path_of_most_attention_never_goes_back():
    attention = np.full((4, 12), 0.01)
    for token, (first, last) in enumerate(((1, 3), (4, 4), (6, 8), (9, 11))):
        attention[token, first : last + 1] = 0.3
    attention[0, 10] = 0.9  # a glance ahead
    first, last = monotonic_path(attention)
    assert (first[1:] <= np.array([4, 6, 9])).all()
    assert (last[:-1] <= first[1:]).all()
    assert first[3] == 9
    assert last[2] in (8, 9)


def test_seams_move_to_the_pauses_near_them():
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(32000).astype(np.float32) * 0.001
    for start, stop in ((4800, 12800), (14400, 24000)):
        sound[start:stop] += 0.3 * rng.standard_normal(stop - start).astype(np.float32)
    attention = np.full((2, 25), 0.01)
    attention[0, 3:9], attention[1, 12:19] = 0.2, 0.2
    words = [WordTokens("a", range(1)), WordTokens("b", range(1, 2))]
    times = attention_times(attention, words, sound, STEP_S)
    assert times == [pytest.approx((0.3, 0.8), abs=0.021), pytest.approx((0.9, 1.5), abs=0.021)]


@pytest.fixture(scope="module")
def toy() -> CanaryModel:
    return CanaryModel.load(resolve("toy", dtype="float32"), "float32")


@pytest.mark.parametrize("source", ["model", "cross_attention"])
def test_word_times_of_the_toys_recordings_are_the_known_ones(toy, monkeypatch, source):
    if source == "cross_attention":
        monkeypatch.setattr(CanaryConfig, "writes_times", False)
    errors = []
    for name, told in json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8")).items():
        waveform = soundfile.read(SAMPLES / name, dtype="float32")[0]
        (transcript,) = toy.transcribe([waveform], Task(told["language"], timestamps="word"))
        assert transcript.text == told["text"]
        assert transcript.timestamps_source == source
        words = [word for segment in transcript.segments for word in segment.words]
        for word, known in zip(words, told["words"], strict=True):
            assert word.word == known["word"]
            assert word.probability is None or 0.2 < word.probability <= 1
            errors += [abs(word.start - known["start"]), abs(word.end - known["end"])]
    assert np.median(errors) <= 0.08
    assert np.mean(np.array(errors) <= 0.2) >= 0.95


def test_a_text_that_begins_with_no_speech_is_empty(toy):
    waveform = np.zeros(32000, np.float32)
    (encoded,) = toy.encodings([waveform])
    tokens = [toy.tokenizer.special[NO_SPEECH], *toy.tokenizer.encode("The dog", "en")]
    generated = Generated(0, tokens, [-0.1] * len(tokens), 0.99)  # type: ignore[list-item]
    transcript = toy.transcript(generated, waveform, Task("en"), encoded)
    assert (transcript.text, transcript.segments) == ("", ())


def test_python_users_audio_of_any_length_is_transcribed_as_its_parts_are():
    parts = [soundfile.read(SAMPLES / f"{language}.flac", dtype="float32")[0] for language in ("en", "de")]
    pause = np.zeros(32000, np.float32)
    long = np.concatenate([parts[0], pause, parts[0], pause, parts[0]])
    with server.Canary.from_pretrained("toy", dtype="float32") as user:
        alone, whole = user.transcribe([parts[0], long], "en", timestamps="word")
        other = user.transcribe(parts[1], "auto")
    assert whole.text == " ".join([alone.text] * 3)
    assert whole.duration == len(long) / 16000
    later = whole.segments[len(alone.segments)]
    assert later.start == pytest.approx(alone.segments[0].start + (len(parts[0]) + len(pause)) / 16000, abs=0.17)
    assert other.language == "de"
