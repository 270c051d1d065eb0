"""A random model that writes at the pace of speech: its texts are made up, its computing is not."""

import math
from pathlib import Path

import numpy as np
import pytest

from convert.convert import ConversionConfig, convert
from model.decoding import DecodingOptions
from model.task import Task
from server.audio.vad import FRAME
from server.engine.batching import Batcher
from server.engine.passes import Look, Pass, PassResult
from server.engine.thread import Engine
from server.live.decoder import EngineDecoder
from server.live.endpointing import SAMPLE_RATE
from server.live.events import LiveResult
from server.live.segment import LiveOptions
from server.live.session import LiveSession
from server.live.windows import WindowTranscriber
from tests.archives import write_archive
from tests.libraries import LIBRARIES, computing_with
from tests.live import last_looks
from tests.live.looks import Shape, sound
from tests.live.paced import LEAD_S, STEP_S, WORD_S, PacedCanary, said, words_of
from tests.live.random_archive import members

SMALL = Shape(layers=2, width=64, decoder_layers=2, vocabulary=1792, decoder_width=64)
# In the 9 s of a session.
WORDS = 16
# How far a time may be from the word's own.
FAR_S = 2.5 * STEP_S
GREEDY = DecodingOptions(beam_size=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    parent = tmp_path_factory.mktemp("paced")
    archive = write_archive(parent / "small.nemo", members(SMALL), prefix="")
    return convert(ConversionConfig(source=archive, output=parent / "small"))


@pytest.fixture(scope="module", params=LIBRARIES)
def canary(folder, request) -> PacedCanary:
    with computing_with(request.param):
        return PacedCanary.load(folder, "float32")


def text_of(canary: PacedCanary, seconds: float) -> list[int]:
    return [token for token, _ in said(canary.tokenizer, seconds)]


def heard(canary: PacedCanary, wanted: Pass, batcher: Batcher | None = None) -> tuple[PassResult, int]:
    """What becomes of a pass, and how many steps it takes after the prefill."""
    batcher = batcher or Batcher(canary, 16)
    outcomes, steps = batcher.join([(1, wanted)]), 0
    while not outcomes:
        outcomes, steps = batcher.step(), steps + 1
    ((_, result),) = outcomes
    assert isinstance(result, PassResult), result
    return result, steps


def test_words_differ_and_have_two_tokens_of_which_the_first_begins_it(canary):
    words = words_of(canary.tokenizer)
    assert len(set(words)) > 0.9 * len(words)
    for begins, goes_on in words:
        assert canary.tokenizer.starts_word(begins)
        assert not canary.tokenizer.starts_word(goes_on)
        assert canary.tokenizer.text([begins, goes_on]).strip().isalpha()


@pytest.mark.parametrize(("seconds", "words"), [(0.3, 0), (1.2, 1), (4.0, 6), (20.0, 38), (40.0, 78)])
def test_a_text_is_as_long_as_its_audio_and_begins_like_that_of_any_other_audio(canary, seconds, words):
    result, steps = heard(canary, Pass(sound(seconds), (Task("en"),), GREEDY))
    tokens = result.generated[0].tokens
    assert len(tokens) == 2 * words
    assert tokens == text_of(canary, 40.0)[: len(tokens)]
    # The first token comes with the prompt; the end takes a step like every other.
    assert steps == len(tokens)


def test_a_search_is_greedy_whatever_is_asked_for(canary):
    result, _ = heard(canary, Pass(sound(3.0), (Task("en"),), DecodingOptions(beam_size=4)))
    assert result.generated[0].tokens == text_of(canary, 3.0)


def test_the_model_scores_what_it_is_made_to_write_as_if_it_had_chosen_it(canary):
    waveform, task = sound(5.0), Task("de")
    result, _ = heard(canary, Pass(waveform, (task,), GREEDY))
    written, prompt = result.generated[0], canary.prompt(task)
    encoded = canary.encodings([waveform])[0].vectors
    scores = canary.forced_log_probs([prompt + written.tokens], encoded[None], [len(encoded)])
    scores = canary.xp.to_numpy(scores)[0, len(prompt) - 1 : -1]
    np.testing.assert_allclose(written.log_probs, scores[np.arange(len(scores)), written.tokens], atol=1e-3)
    # Random weights choose other words.
    assert (scores.argmax(1) != written.tokens).mean() > 0.9


def test_a_look_that_goes_on_from_the_last_one_takes_a_step_for_each_new_token_alone(canary):
    batcher, look, steps, texts = Batcher(canary, 16), None, [], []
    for seconds, certain in ((4.0, 0), (4.4, 0), (5.2, 10), (6.0, 12)):
        prefix = tuple(text_of(canary, 40.0)[:certain])
        window = sound(8.0)[: int(seconds * SAMPLE_RATE)]
        result, taken = heard(
            canary, Pass(window, (Task("en"),), GREEDY, (prefix,), True, grows=True, look=look), batcher
        )
        assert isinstance(result.look, Look)
        look = result.look
        steps.append(taken)
        texts.append([*prefix, *result.generated[0].tokens])
    assert texts == [text_of(canary, seconds) for seconds in (4.0, 4.4, 5.2, 6.0)]
    # Of 12, 2, 4 and 2 new tokens and the end, the first comes with the prefill, which checks all that was known.
    assert steps == [12, 2, 4, 2]


def test_a_token_attends_to_its_time(canary):
    result, _ = heard(canary, Pass(sound(6.0), (Task("en"),), GREEDY, attention=True))
    (attention,) = result.attention
    assert attention.shape == (20, 75)
    np.testing.assert_array_equal(attention.sum(1), 1)
    middles = np.array([at for _, at in said(canary.tokenizer, 6.0)])
    assert np.abs(attention.argmax(1) * STEP_S + STEP_S / 2 - middles).max() <= STEP_S / 2 + 1e-6


def test_words_that_are_timed_stand_between_time_tokens(canary):
    result, steps = heard(canary, Pass(sound(3.0), (Task("en", timestamps="word"),), GREEDY))
    (transcript,), words = result.transcripts, words_of(canary.tokenizer)[:4]
    assert transcript.timestamps_source == "model"
    assert steps == 4 * 4
    timed = [word for segment in transcript.segments for word in segment.words]
    assert [word.word for word in timed] == [canary.tokenizer.text(list(word)).strip() for word in words]
    for number, word in enumerate(timed):
        start, end = LEAD_S + number * WORD_S, LEAD_S + (number + 1) * WORD_S
        assert abs(word.start - start) < FAR_S
        assert abs(word.end - end) < FAR_S


async def test_the_words_of_a_last_look_are_timed_in_few_passes_from_a_draft_whose_times_are_mostly_wrong(canary):
    engine = last_looks.Engine(canary, rounds=1)
    await last_looks.live(engine, sound(12.0), "en")
    ((stepped,), (drafted,)) = engine.stepped, engine.drafted
    # Two parts and two times a word, and the end.
    assert (stepped.words, stepped.tokens) == (drafted.words, drafted.tokens) == (22, 89)
    assert stepped.passes == 89
    assert drafted.passes < 10


@pytest.mark.parametrize(("policy", "latest_s"), [("alignatt", 1.5), ("agreement", 1.0)])
async def test_captions_of_it_become_certain_while_they_are_spoken(folder, policy, latest_s):
    engine = Engine(lambda: PacedCanary.load(folder, "float32"))
    info = await engine.start()
    options = LiveOptions("en", policy=policy)
    session = LiveSession(WindowTranscriber(EngineDecoder(engine, word_times=True), options), options)
    certain_s: dict[int, float] = {}
    final = None
    frames = sound(math.ceil(9.0 * SAMPLE_RATE / FRAME) * FRAME / SAMPLE_RATE).reshape(-1, FRAME)
    for frame in [*frames, None]:
        if frame is None:
            session.finalize()
        else:
            session.hear(frame, [1.0])
        while session.due:
            for event in await session.step():
                if isinstance(event, LiveResult):
                    for number in range(len(event.text[: event.stable].split())):
                        certain_s.setdefault(number, session.heard_s)
                    final = event
    await engine.stop()
    assert final is not None
    assert final.is_final
    words = [info.tokenizer.text(list(word)).strip() for word in words_of(info.tokenizer)[:WORDS]]
    assert final.text.split() == words
    starts = [LEAD_S + number * WORD_S for number in range(WORDS)]
    assert [word.start for word in final.words] == pytest.approx(starts, abs=FAR_S)
    late = [certain_s[number] - LEAD_S - (number + 1) * WORD_S for number in range(WORDS)]
    # Nothing is certain in the first 2.5 s.
    assert max(late[4:]) < latest_s
    assert min(late) > 0
