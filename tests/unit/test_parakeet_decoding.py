"""Greedy search, beam search and CTC of Parakeets with random weights, beside plain loops in double precision."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from model.arrays import mlx as mlx_arrays
from model.cpu.layout import lay_out
from model.layers import Linear
from model.parakeet.beam import Beam, BeamRows
from model.parakeet.config import JointConfig, PredictionConfig
from model.parakeet.ctc import CTCSearch
from model.parakeet.decoding import State, TimedTokens, Utterance
from model.parakeet.joint import Joint
from model.parakeet.prediction import PredictionNetwork
from model.parakeet.transducer import GreedyRows, Transducer
from tests.libraries import LIBRARIES

PIECES, D, P, J = 30, 24, 16, 20
TDT, RNNT = (0, 1, 2, 3, 4), ()
# Encoder vectors in each recording; the seventh has none.
LENGTHS = (1, 7, 30, 50, 3, 80, 0, 25)
Event = tuple[int, int, int | None]


def randomised(module, generator: np.random.Generator):
    """With weights so loud that what comes out depends on the sound and on the text so far."""
    for name, value in dict(tree_flatten(module.parameters())).items():
        scale = 2.5 / value.shape[-1] ** 0.5 if value.ndim > 1 else 0.3
        module.load_weights([(name, mx.array(generator.normal(0, scale, value.shape), mx.float32))], strict=False)
    return module


def transducer(library: str, durations=TDT, max_symbols=10, lstm_layers=2, seed=0, blank=2.5) -> Transducer:
    """blank: how much louder the blank is than a token."""
    generator = np.random.default_rng(seed)
    prediction = randomised(PredictionNetwork(PredictionConfig(hidden=P, layers=lstm_layers), PIECES), generator)
    prediction.embedding.weight = prediction.embedding.weight * (mx.arange(PIECES + 1) < PIECES)[:, None]
    joint = randomised(Joint(JointConfig(hidden=J), D, P, PIECES + 1 + len(durations)), generator)
    joint.out.update({"bias": joint.out["bias"] + blank * (mx.arange(PIECES + 1 + len(durations)) == PIECES)})
    mx.eval(prediction.parameters(), joint.parameters())
    if library == "numpy":
        lay_out(prediction)
        lay_out(joint)
    return Transducer(prediction, joint, PIECES + 1, durations, max_symbols)


def recordings(seed=0) -> list[np.ndarray]:
    generator = np.random.default_rng(1000 + seed)
    return [generator.standard_normal((length, D)).astype(np.float32) for length in LENGTHS]


def one_by_one(transducer: Transducer, vectors: np.ndarray) -> list[Event]:
    """Token, frame and duration, one after the other, as the papers have it: no batch, no window."""

    def values(layer) -> tuple[np.ndarray, np.ndarray]:
        return np.array(layer.weight, np.float64), np.array(layer.bias, np.float64)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    embedding = np.array(transducer.prediction.embedding.weight, np.float64)
    layers = [values(layer) for layer in transducer.prediction.layers]
    of_frame, of_text, out = (
        values(layer) for layer in (transducer.joint.encoder, transducer.joint.prediction, transducer.joint.out)
    )

    def predicted(token: int, memory):
        x, after = embedding[token], []
        for (weight, bias), (h, c) in zip(layers, memory, strict=True):
            i, f, g, o = (weight @ np.concatenate([x, h]) + bias).reshape(4, P)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(c)
            after.append((x, c))
        return x, after

    found = []
    text, memory = predicted(PIECES, [(np.zeros(P), np.zeros(P))] * len(layers))
    t, here, last = 0, 0, None
    while t < len(vectors):
        hidden = of_frame[0] @ vectors[t] + of_frame[1] + of_text[0] @ text + of_text[1]
        scores = out[0] @ np.maximum(hidden, 0) + out[1]
        token = int(scores[: PIECES + 1].argmax())
        jumps = scores[PIECES + 1 :]
        duration = transducer.durations[jumps.argmax()] if transducer.durations else int(token == PIECES)
        if token == PIECES:
            t += max(duration, 1)
            continue
        found.append((token, t, duration if transducer.durations else None))
        here = here + 1 if t == last else 1
        last = t
        t += duration
        text, memory = predicted(token, memory)
        if duration == 0 and here >= transducer.max_symbols:
            t += 1
    return found


def decoded(rows: GreedyRows | BeamRows, utterances: list[Utterance]) -> list[TimedTokens]:
    finished = rows.join(utterances)
    while rows.rows:
        finished += rows.step()
    return sorted(finished, key=lambda written: written.key)


def carried(written: TimedTokens) -> State:
    assert written.state is not None
    return written.state


def events(written: TimedTokens) -> list[Event]:
    """With None for durations that are not told."""
    durations = written.durations or [None] * len(written.tokens)
    return list(zip(written.tokens, written.frames, durations, strict=True))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("max_symbols", [2, 10])
@pytest.mark.parametrize("durations", [TDT, (0, 1, 2, 4), RNNT], ids=["tdt", "tdt, 0124", "rnnt"])
def test_a_batch_writes_what_a_plain_loop_writes_of_each_recording(durations, max_symbols, library):
    written = []
    for seed in range(2):
        # Without durations, a louder blank keeps the texts as short as with them.
        blank = 2.5 if durations else 5.0
        network = transducer(library, durations, max_symbols, lstm_layers=1 + seed % 2, seed=seed, blank=blank)
        vectors = recordings(seed)
        written = decoded(GreedyRows(network), [Utterance(key, each) for key, each in enumerate(vectors)])
        assert [events(each) for each in written] == [one_by_one(network, each) for each in vectors]
        assert [each.key for each in written] == list(range(8))
    assert max(len(each.tokens) for each in written) > 10


@pytest.mark.parametrize(("window", "rounds", "look_ahead"), [(1, 1, False), (1, 5, True), (5, 3, True), (8, 8, False)])
@pytest.mark.parametrize("durations", [TDT, RNNT], ids=["tdt", "rnnt"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_window_rounds_and_looking_ahead_change_nothing(library, durations, window, rounds, look_ahead):
    # The second one is silent for several windows at a time.
    for blank in (2.5, 10.0):
        network, vectors = transducer(library, durations, max_symbols=3, blank=blank), recordings()
        rows = GreedyRows(network, look_ahead, window, rounds)
        written = decoded(rows, [Utterance(key, each) for key, each in enumerate(vectors)])
        assert [events(each) for each in written] == [one_by_one(network, each) for each in vectors]
    frames = written[5].frames
    assert len(frames) > 3
    assert max(np.diff(frames)) > 8


@pytest.mark.parametrize("look_ahead", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_row_may_join_and_leave_at_any_step(library, look_ahead):
    network, vectors = transducer(library, max_symbols=3), recordings()
    rows = GreedyRows(network, look_ahead, rounds=2)
    waiting, finished = list(enumerate(vectors)), []
    while waiting or rows.rows:
        if waiting:
            key, each = waiting.pop()
            finished += rows.join([Utterance(key, each)])
            assert rows.rows <= 8
        finished += rows.step()
        # The longest one leaves before its end, and another takes its name.
        if len(waiting) == 1:
            rows.drop(5)
            finished += rows.join([Utterance(5, vectors[3])])
    by_key = {each.key: events(each) for each in finished}
    expected = {key: one_by_one(network, each) for key, each in enumerate(vectors)} | {
        5: one_by_one(network, vectors[3])
    }
    assert by_key == expected
    assert len(finished) == 8


@pytest.mark.parametrize("library", LIBRARIES)
def test_dropping_what_is_not_there_and_stepping_an_empty_batch_do_nothing(library):
    rows = GreedyRows(transducer(library))
    rows.drop(7)
    assert rows.step() == []
    assert rows.rows == 0


@pytest.mark.parametrize("cuts", [(30,), (1, 2, 3), (10, 20, 40, 79), (40, 40)])
@pytest.mark.parametrize("durations", [TDT, RNNT], ids=["tdt", "rnnt"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_decoding_in_pieces_with_the_state_carried_over_is_decoding_at_once(library, durations, cuts):
    network = transducer(library, durations, max_symbols=3)
    whole = recordings()[5]
    state, found = network.started(), []
    for begin, end in zip((0, *cuts), (*cuts, 80), strict=True):
        [piece] = decoded(GreedyRows(network), [Utterance(0, whole[begin:end], state=state)])
        found += events(piece)
        state = carried(piece)
        assert state.frames == end
    assert found == one_by_one(network, whole)
    assert state.last == found[-1][0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_state_is_not_changed_by_decoding_from_it(library):
    """So a provisional tail may be decoded, and thrown away."""
    network, whole = transducer(library), recordings()[5]
    [first] = decoded(GreedyRows(network), [Utterance(0, whole[:40], state=network.started())])
    tails = [decoded(GreedyRows(network), [Utterance(0, whole[40:], state=first.state)])[0] for _ in range(2)]
    assert events(tails[0]) == events(tails[1])
    assert events(first) + events(tails[1]) == one_by_one(network, whole)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_jump_past_the_end_of_a_piece_is_carried_over_even_through_pieces_shorter_than_it(library):
    network, whole = transducer(library, durations=(3, 4)), recordings()[5]
    state, found, jumps = network.started(), [], []
    for frame in whole:
        [piece] = decoded(GreedyRows(network), [Utterance(0, frame[None], state=state)])
        found += events(piece)
        state = carried(piece)
        jumps.append(state.jump)
    assert found == one_by_one(network, whole)
    assert max(jumps) == 3


@pytest.mark.parametrize("library", LIBRARIES)
def test_pieces_of_several_recordings_are_decoded_side_by_side(library):
    network, vectors = transducer(library), [each for each in recordings() if len(each) > 20]
    states = [network.started()] * len(vectors)
    found = [[] for _ in vectors]
    for begin, end in ((0, 10), (10, 20), (20, 99)):
        pieces = [Utterance(k, v[begin:end], state=states[k]) for k, v in enumerate(vectors)]
        for written in decoded(GreedyRows(network), pieces):
            found[written.key] += events(written)
            states[written.key] = carried(written)
    assert found == [one_by_one(network, each) for each in vectors]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_text_ends_at_its_limit(library):
    network, vectors = transducer(library), recordings()
    written = decoded(GreedyRows(network), [Utterance(0, vectors[5], limit=4), Utterance(1, vectors[3])])
    assert [events(each) for each in written] == [one_by_one(network, vectors[5])[:4], one_by_one(network, vectors[3])]
    assert [len(each.log_probs) for each in written] == [len(each.tokens) for each in written]


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_libraries_know_the_probability_of_a_token(library):
    """Of the token among all tokens and the blank: durations take no part."""
    network, vectors = transducer(library), recordings()[5]
    [written] = decoded(GreedyRows(network), [Utterance(0, vectors)])
    frames = network.joint.frames(network.xp.asarray(vectors))
    first = network.xp.to_numpy(network.joint(frames[written.frames[0]], network.start(1)[0][0]))[: PIECES + 1]
    chances = np.exp(first - first.max())
    chances /= chances.sum()
    assert written.log_probs[0] == pytest.approx(np.log(chances[written.tokens[0]]), abs=1e-4)
    # NeMo's measure with 31 tokens, from its formula.
    entropy = (1 - (chances**0.33).sum()) / 0.67
    least = np.exp((1 - 31**0.67) / 0.67)
    assert written.confidences[0] == pytest.approx((np.exp(entropy) - least) / (1 - least), rel=1e-3)
    assert all(0 <= each <= 1 for each in written.confidences)


@pytest.mark.parametrize("durations", [TDT, RNNT], ids=["tdt", "rnnt"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_beams_side_by_side_are_those_of_each_recording_alone(library, durations):
    network, vectors = transducer(library, durations, max_symbols=3), recordings()
    utterances = [Utterance(key, each, beam_size=2 + key % 3) for key, each in enumerate(vectors)]
    together = decoded(BeamRows(network), utterances)
    alone = [decoded(BeamRows(network), [each])[0] for each in utterances]
    assert [events(each) for each in together] == [events(each) for each in alone]
    assert together[6].tokens == []
    assert len({tuple(each.tokens) for each in together}) > 5


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_beam_leaves_when_it_is_dropped(library):
    network, vectors = transducer(library, max_symbols=3), recordings()
    rows = BeamRows(network)
    rows.join([Utterance(0, vectors[5], beam_size=3), Utterance(1, vectors[3], beam_size=2)])
    assert rows.rows == 5
    rows.step()
    rows.drop(0)
    assert rows.rows == 2
    finished = []
    while rows.rows:
        finished += rows.step()
    assert [events(each) for each in finished] == [
        events(decoded(BeamRows(network), [Utterance(1, vectors[3], beam_size=2)])[0])
    ]


def test_hypotheses_with_the_same_tokens_at_the_same_frame_become_one_with_all_their_probability():
    """At every step "a" has the probability 0.5, "b" 0.2 and the blank 0.3; durations of 0 and 1 have 0.6 and 0.4."""
    network = SimpleNamespace(blank=2, durations=(0, 1), max_symbols=10)
    beam = Beam(width=6, length=1, transducer=network)  # type: ignore[arg-type]
    scores = np.log([[0.5, 0.2, 0.3]] * 6), np.log([[0.6, 0.4]] * 6), np.zeros(6)

    def hypotheses() -> dict[tuple[str, int], float]:
        texts = ["".join("ab"[step.token] for step in text.steps()) for text in beam.texts]
        alive = [i for i, score in enumerate(beam.scores) if np.isfinite(score)]
        return {(texts[i], int(beam.frames[i])): float(np.exp(beam.scores[i])) for i in alive}

    beam.advance(*scores)
    # A blank moves on by a frame, with a duration of 0 as with 1: 0.3 · 0.6 + 0.3 · 0.4.
    assert hypotheses() == pytest.approx({("a", 0): 0.3, ("a", 1): 0.2, ("", 1): 0.3, ("b", 0): 0.12, ("b", 1): 0.08})
    assert not beam.finished
    beam.advance(*scores)
    # "a" at the end: from before, and after a blank: 0.2 + 0.3 · 0.3 · 0.6.
    assert hypotheses() == pytest.approx(
        {("", 1): 0.3, ("a", 1): 0.254, ("aa", 0): 0.09, ("b", 1): 0.08, ("aa", 1): 0.06}
    )
    # The best one by its probability to the power of 1 / (tokens + 1): √0.254.
    assert [step.token for step in beam.best().steps()] == [0]


def test_after_the_most_tokens_of_a_frame_comes_a_blank():
    network = SimpleNamespace(blank=2, durations=(), max_symbols=2)
    beam = Beam(width=2, length=2, transducer=network)  # type: ignore[arg-type]
    while not beam.finished:
        beam.advance(np.log([[0.7, 0.2, 0.1]] * 2), np.zeros((2, 0)), np.zeros(2))
    assert [(step.token, step.frame) for step in beam.texts[0].steps()] == [(0, 0), (0, 0), (0, 1), (0, 1)]


def ctc(library: str, head: Linear) -> tuple[CTCSearch, Any]:
    """And its array library."""
    if library == "numpy":
        lay_out(head)
    return CTCSearch(head, head.weight.shape[0], head.xp), head.xp


@pytest.mark.parametrize("library", LIBRARIES)
def test_ctc_drops_repeats_and_blanks_and_tells_the_frames_of_each_token(library):
    head = Linear(4, 4)
    head.update({"weight": mx.eye(4) * 9, "bias": mx.zeros((4,))})
    search, xp = ctc(library, head)
    blank = 3
    labels = [blank, 1, 1, blank, 1, 2, 2, 2, blank]
    written = search.written(5, xp.asarray(np.eye(4, dtype=np.float32)[labels]))
    assert written.key == 5
    assert events(written) == [(1, 1, 2), (1, 4, 1), (2, 5, 3)]
    assert written.state is None
    assert written.log_probs == pytest.approx([-np.log(1 + 3 * np.exp(-9))] * 3, abs=1e-6)


@pytest.mark.parametrize("cuts", [(3,), (1, 2, 40), (12, 12, 30)])
@pytest.mark.parametrize("library", LIBRARIES)
def test_ctc_in_pieces_writes_each_token_once_with_all_its_frames(library, cuts):
    search, xp = ctc(library, randomised(Linear(D, PIECES + 1), np.random.default_rng(3)))
    # Neighbouring frames are alike, so that tokens last.
    vectors = np.repeat(recordings()[3][:20], 3, axis=0)
    whole = search.written(0, xp.asarray(vectors))
    written = search.written(0, xp.asarray(vectors[: cuts[0]]), State())
    for begin, end in zip(cuts, (*cuts[1:], 60), strict=True):
        written = written.followed_by(search.written(0, xp.asarray(vectors[begin:end]), carried(written)))
    assert events(written) == events(whole)
    assert written.log_probs == pytest.approx(whole.log_probs, abs=1e-5)
    assert written.confidences == pytest.approx(whole.confidences, abs=1e-5)
    assert carried(written).frames == 60
    assert max(whole.durations) >= 3


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_ctc_token_across_several_pieces_is_one(library):
    head = Linear(4, 4)
    head.update({"weight": mx.eye(4) * 9, "bias": mx.zeros((4,))})
    search, xp = ctc(library, head)
    labels = np.eye(4, dtype=np.float32)[[1, 1, 1, 1, 1, 1, 3, 1]]
    written = search.written(0, xp.asarray(labels[:2]), State())
    for begin, end in ((2, 3), (3, 5), (5, 8)):
        written = written.followed_by(search.written(0, xp.asarray(labels[begin:end]), carried(written)))
    assert events(written) == [(1, 0, 6), (1, 7, 1)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_ctc_of_a_long_recording_is_computed_some_frames_at_a_time(library, monkeypatch):
    search, xp = ctc(library, randomised(Linear(D, PIECES + 1), np.random.default_rng(3)))
    vectors = xp.asarray(recordings()[5])
    whole = search.written(0, vectors)
    monkeypatch.setattr("model.parakeet.ctc.FRAMES_AT_ONCE", 7)
    assert events(search.written(0, vectors)) == events(whole)
    assert search.log_probs(vectors).shape == (80, PIECES + 1)
    assert search.written(0, vectors[:0]).tokens == []


def test_the_state_of_a_gpu_is_plain_numbers_which_any_thread_may_keep():
    network = transducer("mlx")
    [piece] = decoded(GreedyRows(network), [Utterance(0, mx.array(recordings()[5]), state=network.started())])
    assert network.xp is mlx_arrays
    state = carried(piece)
    assert state.text.shape == (J,)
    assert state.memory.shape == (4, P)
    assert {type(state.text), type(state.memory)} == {np.ndarray}


def test_a_gpu_is_given_eight_rounds_and_the_next_eight_before_the_host_looks_at_a_token(monkeypatch):
    events = []

    def noted(name: str):
        original = getattr(mlx_arrays, name)

        def call(*arrays):
            events.append(name)
            return original(*arrays)

        monkeypatch.setattr(mlx_arrays, name, call)

    rows = GreedyRows(transducer("mlx", max_symbols=3))
    rows.join([Utterance(0, recordings()[5])])
    for name in ("start", "to_numpy", "evaluate"):
        noted(name)
    rows.step()
    looks = events.index("to_numpy")
    assert events[:looks] == ["start"] * 16
    assert set(events[looks:]) == {"to_numpy"}
    events.clear()
    rows.step()
    assert events[: events.index("to_numpy")] == ["start"] * 8
