"""Passes that join and leave the running batch at any time get, token for token, what they get alone."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from model.canary.model import CanaryModel
from model.decoding import DecodingOptions
from model.task import Task
from server.engine.batching import Batcher
from server.engine.passes import Pass, PassResult

TASKS = (
    (Task("en"),),
    (Task("de", pnc=False),),
    (Task("de", "en", context="9 41 17"),),
    (Task("en"), Task("en", "de")),
)
OPTIONS = [
    DecodingOptions(beam_size=width, length_penalty=0.4, max_new_tokens=n) for width, n in ((1, 14), (1, 5), (3, 9))
]
KINDS = st.tuples(st.integers(0, 7), st.integers(0, len(TASKS) - 1), st.integers(0, len(OPTIONS) - 1))


@pytest.fixture(scope="module")
def passes(sounds):
    """passes(kind): the pass that a drawn kind means."""
    return lambda kind: Pass(sounds[kind[0]], TASKS[kind[1]], OPTIONS[kind[2]])


@pytest.fixture(scope="module", autouse=True)
def encoded_once(canary: CanaryModel):
    """The sounds recur hundreds of times, and what is tried here is what comes after."""
    encode, known = canary.encodings, {}
    with pytest.MonkeyPatch.context() as patch:

        def encodings(waveforms, between_layers=None):
            for waveform in waveforms:
                if waveform.tobytes() not in known:
                    known[waveform.tobytes()] = encode([waveform])[0]
            return [known[waveform.tobytes()] for waveform in waveforms]

        patch.setattr(canary, "encodings", encodings)
        yield


@pytest.fixture(scope="module")
def alone(canary: CanaryModel, passes):
    """alone(kind): its tokens by task, in a batch of its own."""

    @cache
    def tokens(kind: tuple[int, int, int]) -> list[list[int]]:
        ((_, result),) = run(Batcher(canary, 16), [(0, passes(kind))])
        return written(result)

    return tokens


def run(batcher: Batcher, joining: list[tuple[int, Pass]]) -> list[tuple[int, PassResult]]:
    outcomes = batcher.join(joining)
    while batcher.running:
        outcomes += batcher.step()
    return outcomes  # type: ignore[return-value]


def written(result: PassResult) -> list[list[int]]:
    return [generated.tokens for generated in result.generated]


@given(st.lists(st.tuples(KINDS, st.integers(0, 6), st.booleans()), min_size=2, max_size=7))
@settings(max_examples=2 * settings.default.max_examples, deadline=None, derandomize=True, phases=[Phase.generate])
def test_random_mixes_that_join_and_leave_at_random_times_change_nobodys_tokens(canary, passes, alone, arrivals):
    batcher = Batcher(canary, 64)
    outcomes = []
    cancelled = set()
    for ticket, (kind, steps_before, cancel) in enumerate(arrivals):
        for _ in range(steps_before):
            outcomes += batcher.step()
        outcomes += batcher.join([(ticket, passes(kind))])
        if cancel and ticket and ticket - 1 not in dict(outcomes):
            rows = batcher.rows
            batcher.cancel(ticket - 1)
            assert batcher.rows < rows
            cancelled.add(ticket - 1)
    while batcher.running:
        outcomes += batcher.step()
    results = dict(outcomes)
    assert results.keys() == set(range(len(arrivals))) - cancelled
    for ticket, result in results.items():
        assert written(result) == alone(arrivals[ticket][0])
    assert batcher.rows == 0


@pytest.mark.parametrize("canary", ["of numpy's arrays"], indirect=True)
def test_what_a_cpu_remembers_of_an_audio_is_no_longer_than_it_and_is_let_go_with_its_rows(canary, passes, sounds):
    batcher = Batcher(canary, 16)
    batcher.join([(0, passes((7, 0, 0))), (1, passes((0, 0, 2)))])

    def remembered() -> list[np.ndarray]:
        """The keys and values of each row's audio in the first layer."""
        return [row[0] for row in batcher._batch._audio._rows]

    layers = remembered()
    steps = [canary.encodings([sounds[i]])[0].vectors.shape[0] for i in (7, 0, 0, 0)]
    assert [layer.shape[1] for layer in layers] == steps
    # The hypotheses of one beam share it.
    assert layers[1] is layers[2] is layers[3]
    # Nothing larger stays in memory for what is kept.
    assert layers[0].base is None
    batcher.cancel(0)
    assert [layer.shape[1] for layer in remembered()] == [13, 13, 13]


def test_a_text_and_its_translation_share_one_cross_memory(canary, passes, monkeypatch):
    made = []
    cross_memory = type(canary.decoder).cross_memory
    monkeypatch.setattr(
        type(canary.decoder), "cross_memory", lambda *args: made.append(args[1].shape[0]) or cross_memory(*args)
    )
    ((_, result),) = run(Batcher(canary, 16), [(0, passes((5, 3, 0)))])
    assert made == [1]
    monkeypatch.undo()
    single = [Pass(passes((5, 3, 0)).waveform, (task,), OPTIONS[0]) for task in TASKS[3]]
    assert written(result) == [written(run(Batcher(canary, 16), [(0, each)])[0][1])[0] for each in single]


def test_a_prefix_is_gone_on_from_and_comes_first_in_the_transcript(canary, passes, sounds):
    whole = run(Batcher(canary, 8), [(0, passes((1, 0, 0)))])[0][1]
    (tokens,) = written(whole)
    rest = Pass(sounds[1], TASKS[0], DecodingOptions(max_new_tokens=len(tokens) - 5), (tuple(tokens[:5]),))
    resumed = run(Batcher(canary, 8), [(0, rest)])[0][1]
    assert written(resumed) == [tokens[5:]]
    assert resumed.transcripts[0].text == whole.transcripts[0].text


def test_attention_says_for_every_token_where_in_the_audio_it_was_looking(canary, passes, sounds):
    result = run(Batcher(canary, 8), [(0, replace(passes((3, 3, 0)), attention=True))])[0][1]
    for tokens, attention in zip(written(result), result.attention, strict=True):
        steps = canary.encodings([sounds[3]])[0].vectors.shape[0]
        assert attention.shape == (len(tokens), steps)
        assert np.allclose(attention.sum(axis=1), 1, atol=1e-5)
    assert np.abs(result.attention[0][0] - result.attention[0][1]).max() > 1e-3


def looked(batcher: Batcher, waveform: np.ndarray, tasks=TASKS[3], **more) -> PassResult:
    """The result of a pass over audio that grows, or does not any more."""
    options = DecodingOptions(beam_size=1, max_new_tokens=14)
    ((_, result),) = run(batcher, [(0, Pass(waveform, tasks, options, attention=True, **more))])
    assert isinstance(result, PassResult), result
    return result


def test_looks_at_growing_audio_read_what_is_new_and_the_last_one_is_what_the_file_gives(canary, sounds, monkeypatch):
    reused, batcher = [], Batcher(canary, 8)
    growing_encodings = canary.growing_encodings

    def watched(*given):
        encodings = growing_encodings(*given)
        reused.extend(encoded.reused for encoded in encodings)
        return encodings

    monkeypatch.setattr(canary, "growing_encodings", watched, raising=False)
    sound, look = sounds[7], None
    for seconds in (4.0, 4.4, 4.8, 5.2):
        result = looked(batcher, sound[: int(seconds * 16000)], grows=True, look=look)
        look = result.look
        assert [
            text.tokens[-len(each.tokens) :] for text, each in zip(look.texts.values(), result.generated, strict=True)
        ] == written(result)
        for each, attention in zip(result.generated, result.attention, strict=True):
            assert attention.shape == (len(each.tokens), len(look.encoded.vectors))
    assert reused[0] == 0 < reused[1] < reused[2] < reused[3]
    assert list(look.texts) == list(TASKS[3])
    last, file = (looked(batcher, sound[: int(5.6 * 16000)], look=each) for each in (look, None))
    assert len(reused) == 4
    assert (last.look, written(last)) == (None, written(file))
    assert np.abs(last.attention[0] - file.attention[0]).max() < 1e-5


def test_looks_of_several_sessions_are_encoded_together_and_each_gets_what_it_gets_alone(canary, sounds, monkeypatch):
    sizes, growing_encodings = [], canary.growing_encodings
    monkeypatch.setattr(
        canary,
        "growing_encodings",
        lambda *given: sizes.append(len(given[0])) or growing_encodings(*given),
        raising=False,
    )
    lengths, batcher = ((1, 4.0, 4.4), (5, 2.0, 2.4), (7, 5.6, 6.0)), Batcher(canary, 8)
    first = [looked(batcher, sounds[i][: int(s * 16000)], TASKS[0], grows=True) for i, s, _ in lengths]
    later = [
        Pass(sounds[i][: int(s * 16000)], TASKS[0], OPTIONS[0], attention=True, grows=True, look=before.look)
        for (i, _, s), before in zip(lengths, first, strict=True)
    ]
    sizes.clear()
    assert batcher.has_room_for(later[2], later[:2])
    together = dict(run(batcher, list(enumerate(later))))
    assert sizes == [3]
    apart = [run(batcher, [(0, each)])[0][1] for each in later]
    assert [written(together[i]) for i in range(3)] == [written(each) for each in apart]
    for i, each in enumerate(apart):
        assert together[i].look.encoded.reused == each.look.encoded.reused > 0
        assert np.abs(together[i].attention[0] - each.attention[0]).max() < 1e-5


def test_looks_are_not_encoded_beside_files_nor_beside_more_audio_than_a_pass_takes(canary, sounds):
    batcher, look = Batcher(canary, 64), Pass(sounds[1], TASKS[0], grows=True)
    file, long = replace(look, grows=False), replace(look, waveform=np.zeros(60 * 16000, np.float32))
    assert not batcher.has_room_for(look, [file])
    assert not batcher.has_room_for(file, [look])
    assert batcher.has_room_for(long, [look, long])
    assert not batcher.has_room_for(long, [look, long, long])


def test_a_look_of_a_model_that_was_loaded_before_is_not_gone_on_from(canary, sounds):
    former = looked(Batcher(canary, 8), sounds[7][: 4 * 16000], grows=True).look
    ((_, result),) = run(
        Batcher(canary, 8), [(0, Pass(sounds[7][: int(4.4 * 16000)], TASKS[0], OPTIONS[0], grows=True, look=former))]
    )
    assert result.look.encoded.reused == 0
    assert result.look.of is not former.of


def test_a_look_serves_the_tasks_that_it_has_texts_of_and_those_that_are_new(canary, sounds):
    batcher = Batcher(canary, 8)
    first = looked(batcher, sounds[7][: 4 * 16000], TASKS[0], grows=True).look
    later = looked(batcher, sounds[7][: int(4.4 * 16000)], TASKS[3], grows=True, look=first)
    assert later.look.encoded.reused > 0
    assert list(later.look.texts) == list(TASKS[3])


def test_looks_and_files_that_join_and_leave_at_random_times_change_nobodys_tokens(canary, passes, alone, sounds):
    before = looked(Batcher(canary, 8), sounds[7][: 4 * 16000], grows=True).look
    random = np.random.default_rng(3)
    batcher = Batcher(canary, 64)
    batcher._identity = before.of
    ahead = Pass(sounds[7][: int(4.4 * 16000)], TASKS[3], OPTIONS[0], attention=True, grows=True, look=before)
    expected = run(batcher, [(0, ahead)])[0][1]
    outcomes, kinds = [], {}
    for ticket in range(1, 13):
        for _ in range(random.integers(0, 5)):
            outcomes += batcher.step()
        if ticket % 3 == 0:
            outcomes += batcher.join([(ticket, ahead)])
            continue
        kinds[ticket] = (ticket % 8, ticket % 4, ticket % 3)
        outcomes += batcher.join([(ticket, passes(kinds[ticket]))])
    while batcher.running:
        outcomes += batcher.step()
    assert len(outcomes) == 12
    for ticket, result in outcomes:
        assert written(result) == (alone(kinds[ticket]) if ticket in kinds else written(expected))
        if ticket not in kinds:
            for mine, its in zip(result.attention, expected.attention, strict=True):
                assert np.abs(mine - its).max() < 1e-5


def test_a_pass_that_cannot_be_encoded_fails_alone(canary, passes):
    broken = Pass(np.zeros((16000, 2), np.float32), TASKS[0])
    outcomes = dict(run(Batcher(canary, 8), [(0, passes((0, 0, 0))), (1, broken), (2, passes((2, 1, 1)))]))
    assert isinstance(outcomes[1], Exception)
    assert written(outcomes[0])
    assert written(outcomes[2])


def test_a_step_that_fails_is_tried_again_pass_by_pass(canary, passes, alone, monkeypatch):
    kinds = [(0, 0, 0), (4, 1, 0), (2, 2, 2)]
    batcher = Batcher(canary, 16)
    outcomes = batcher.join([(i, passes(kind)) for i, kind in enumerate(kinds)])
    monkeypatch.setattr(batcher._batch, "step", lambda: 1 / 0)
    outcomes += batcher.step()
    while batcher.running:
        outcomes += batcher.step()
    assert {ticket: written(result) for ticket, result in outcomes} == {i: alone(k) for i, k in enumerate(kinds)}


def test_a_language_to_be_found_out_is_the_models_own_most_probable_one(canary, sounds):
    result = run(Batcher(canary, 8), [(0, Pass(sounds[0], (Task("auto"),), OPTIONS[1]))])[0][1]
    detection = result.detection
    assert detection is not None
    assert result.transcripts[0].language == detection.language
    assert set(detection.probabilities) == {"en", "de"}
    assert sum(detection.probabilities.values()) == pytest.approx(1)
    assert detection.probability == max(detection.probabilities.values())
    known = run(Batcher(canary, 8), [(0, Pass(sounds[0], (Task(detection.language),), OPTIONS[1]))])[0][1]
    assert written(result) == written(known)
