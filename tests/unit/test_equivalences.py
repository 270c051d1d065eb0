"""What must not change a result: company in a batch, padding, the cache, the way of searching."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from model import arrays
from model.arrays import mlx as mlx_arrays
from model.arrays import numpy as numpy_arrays
from model.canary.beam import _top
from model.canary.generate import RunningBatch
from model.cpu.layout import lay_out
from model.decoding import DecodingOptions, Encoded
from model.layers import Linear
from model.subsampling import subsampled
from tests.unit.conftest import MAX_SEQUENCE, tiny_canary

FREE = DecodingOptions(max_new_tokens=24)


def difference(a, b) -> float:
    return float(np.abs(np.array(a, np.float32) - np.array(b, np.float32)).max())


def test_features_of_a_batch_are_those_of_each_sound_alone(canary, sounds):
    together, lengths = canary.features(sounds)
    for row, sound in enumerate(sounds):
        alone, (n,) = canary.features([sound])
        assert n.item() == lengths[row].item() == len(sound) // 160
        assert difference(together[row, : n.item()], alone[0, : n.item()]) < 1e-5
        assert not np.array(together[row, n.item() :]).any()


def test_features_have_zero_mean_and_unit_deviation_over_the_valid_frames(canary, sounds):
    mel, lengths = canary.features(sounds[:1])
    valid = np.array(mel[0, : lengths[0].item()])
    assert np.abs(valid.mean(axis=0)).max() < 1e-5
    assert np.abs(valid.std(axis=0, ddof=1) - 1).max() < 1e-3


def test_encodings_of_a_padded_batch_are_those_of_each_sound_alone(canary, sounds):
    mel, lengths = canary.features(sounds)
    together = canary.encode(mel, lengths)
    for row, sound in enumerate(sounds):
        (alone,) = canary.encodings([sound])
        steps = alone.vectors.shape[0]
        assert steps == subsampled(lengths[row].item())
        assert difference(together[row, :steps], alone.vectors) < 2e-5


def test_what_lies_beyond_a_sounds_length_does_not_change_its_encoding(canary, sounds):
    mel, lengths = canary.features(sounds[:1])
    steps = subsampled(lengths[0].item())
    clean = canary.encode(mel, lengths)
    loud = np.concatenate([mel[:, : lengths[0].item()], 9 * np.ones((1, 50, mel.shape[2]), np.float32)], axis=1)
    dirty = canary.encode(loud, lengths)
    assert difference(clean[:, :steps], dirty[:, :steps]) < 2e-5


def test_steps_through_the_cache_score_like_the_whole_sequence_at_once(canary, encoded, prompts):
    (generated,) = canary.generate([encoded[3]], prompts[:1], FREE)
    whole, vectors = prompts[0] + generated.tokens, encoded[3].vectors
    scores = canary.forced_log_probs([whole], vectors[None], [vectors.shape[0]])[0]
    first = len(prompts[0]) - 1
    for i, (token, log_prob) in enumerate(zip(generated.tokens, generated.log_probs, strict=True)):
        assert token == int(scores[first + i].argmax())
        assert log_prob == pytest.approx(scores[first + i, token].item(), abs=1e-4)
    assert len(set(generated.tokens)) > 5


def test_a_padded_batch_of_eight_mixed_requests_gives_the_tokens_of_eight_single_ones(canary, encoded, prompts):
    together = canary.generate(encoded, prompts, FREE)
    alone = [canary.generate([e], [p], FREE)[0] for e, p in zip(encoded, prompts, strict=True)]
    assert [g.tokens for g in together] == [g.tokens for g in alone]
    assert len({tuple(g.tokens) for g in together}) == 8


def test_greedy_and_beams_of_several_widths_share_a_batch_without_changing_each_other(canary, encoded, prompts):
    options = [
        DecodingOptions(beam_size=width, length_penalty=0.5, max_new_tokens=25) for width in (1, 3, 5, 1, 2, 4, 1, 3)
    ]
    batch = canary.running_batch()
    requests = list(enumerate(zip(encoded, prompts, options, strict=True)))
    finished = batch.join([canary.prompted(i, e, p, o) for i, (e, p, o) in requests[:3]])
    # The others come in one by one, while the first are under way.
    for i, (e, p, o) in requests[3:]:
        finished += batch.step() + batch.join([canary.prompted(i, e, p, o)])
    while batch.rows:
        finished += batch.step()
    tokens = {g.key: g.tokens for g in finished}
    for i, (e, p, o) in requests:
        assert tokens[i] == canary.generate([e], [p], o)[0].tokens


def test_dropping_an_utterance_frees_its_rows_and_leaves_the_others_as_they_were(canary, encoded, prompts):
    batch = canary.running_batch()
    finished = batch.join(
        [canary.prompted(i, e, p, FREE) for i, (e, p) in enumerate(zip(encoded[:4], prompts[:4], strict=True))]
    )
    finished += batch.step()
    rows = batch.rows
    batch.drop(1)
    assert batch.rows == rows - 1
    while batch.rows:
        finished += batch.step()
    assert 1 not in {g.key for g in finished}
    for g in finished:
        assert g.tokens == canary.generate([encoded[g.key]], [prompts[g.key]], FREE)[0].tokens


def test_a_beam_finds_a_sequence_at_least_as_likely_as_the_greedy_one(canary, encoded, prompts):
    options = [DecodingOptions(beam_size=w, length_penalty=0.0, max_new_tokens=12) for w in (1, 6)]
    greedy, beam = (canary.generate(encoded, prompts, o) for o in options)
    gains = [
        sum(b.log_probs) - sum(g.log_probs)
        for b, g in zip(beam, greedy, strict=True)
        if len(b.tokens) == len(g.tokens) == 12
    ]
    assert len(gains) >= 3
    assert min(gains) > 0.5


def test_the_best_of_a_vocabulary_are_those_that_sorting_it_finds_equal_ones_in_their_order():
    random = np.random.default_rng(5)
    for width in (1, 4, 7, 32):
        scores = random.integers(-6, 0, (3, 32)).astype(np.float64)
        scores[1, ::3] = -np.inf
        assert np.array_equal(_top(scores, width), np.argsort(-scores, axis=-1, kind="stable")[:, :width])


def test_looking_a_step_ahead_changes_no_tokens_whoever_joins_leaves_or_searches(canary, encoded, prompts):
    options = [
        DecodingOptions(beam_size=width, max_new_tokens=n) for width, n in ((1, 30), (1, 9), (3, 6), (1, 21)) * 2
    ]
    requests = [canary.prompted(i, e, p, o) for i, (e, p, o) in enumerate(zip(encoded, prompts, options, strict=True))]

    def run(look_ahead: bool) -> dict[int, list[int]]:
        batch = RunningBatch(canary.decoder, canary.head, 3, 2, look_ahead=look_ahead)
        finished = batch.join(requests[:2])
        for request in requests[2:]:
            for _ in range(4):
                finished += batch.step()
            finished += batch.join([request])
            batch.drop(4)
        while batch.rows:
            finished += batch.step()
        return {generated.key: generated.tokens for generated in finished}

    ahead = run(look_ahead=True)
    assert ahead == run(look_ahead=False)
    assert ahead.keys() == set(range(8)) - {4}


def test_a_row_that_ends_while_the_next_step_is_under_way_leaves_the_others_their_own_tokens(canary, encoded, prompts):
    limits = (5, 30, 21)
    requests = [
        canary.prompted(i, e, p, DecodingOptions(max_new_tokens=n))
        for i, (e, p, n) in enumerate(zip(encoded[:3], prompts[:3], limits, strict=True))
    ]
    tokens = {}
    for look_ahead in (False, True):
        batch = RunningBatch(canary.decoder, canary.head, -1, 2, look_ahead=look_ahead)
        finished = batch.join(requests)
        while batch.rows:
            finished += batch.step()
        tokens[look_ahead] = {generated.key: generated.tokens for generated in finished}
    assert tokens[True] == tokens[False]
    assert [len(tokens[True][i]) for i in range(3)] == list(limits)


def test_a_row_may_be_written_to_the_last_place_of_the_decoder(canary, encoded, prompts):
    longest = Encoded(encoded[7].vectors, 10_000)
    (request,) = [canary.prompted(0, longest, prompts[0], DecodingOptions())]
    assert request.limit == MAX_SEQUENCE - len(prompts[0]) + 1
    tokens = {}
    for look_ahead in (False, True):
        batch = RunningBatch(canary.decoder, canary.head, -1, 2, look_ahead=look_ahead)
        finished = batch.join([request])
        while batch.rows:
            finished += batch.step()
        tokens[look_ahead] = finished[0].tokens
    assert tokens[True] == tokens[False]
    assert len(tokens[True]) == request.limit


@pytest.mark.parametrize("layer_options", [{}, {"use_bias": False, "xscaling": True, "feat_in": 83}])
def test_numpys_arrays_give_what_mlxs_do_at_every_stage(sounds, prompts, layer_options, monkeypatch):
    as_on_gpu, as_on_cpu = tiny_canary(**layer_options), tiny_canary(**layer_options)
    lay_out(as_on_cpu)
    (mel, lengths), (numpys_mel, numpys_lengths) = as_on_gpu.features(sounds), as_on_cpu.features(sounds)
    assert isinstance(mel, mx.array)
    assert isinstance(numpys_mel, np.ndarray)
    assert numpys_mel.dtype == np.float32
    assert difference(mel, numpys_mel) < 1e-4
    assert lengths.tolist() == numpys_lengths.tolist()
    padded, numpys_padded = as_on_gpu.encode(mel, lengths), as_on_cpu.encode(mel, lengths)
    assert isinstance(numpys_padded, np.ndarray)
    assert numpys_padded.dtype == as_on_cpu.forced_log_probs(prompts[:1], numpys_padded[:1], [1]).dtype == np.float32
    for row, n in enumerate(subsampled(lengths).tolist()):
        assert difference(padded[row, :n], numpys_padded[row, :n]) < 2e-5
    encoded = as_on_gpu.encodings(sounds)
    multiplied = set()
    linear = numpy_arrays.linear

    def watched(x, weight, bias):
        multiplied.add((type(x), x.dtype, weight.dtype))
        return linear(x, weight, bias)

    texts = as_on_gpu.generate(encoded, prompts, FREE)
    monkeypatch.setattr(numpy_arrays, "linear", watched)
    numpys_texts = as_on_cpu.generate(encoded, prompts, FREE)
    assert multiplied == {(np.ndarray, np.dtype(np.float32), np.dtype(np.float32))}
    assert [g.tokens for g in texts] == [g.tokens for g in numpys_texts]
    for one, other in zip(texts, numpys_texts, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert one.nothing == pytest.approx(other.nothing, rel=1e-3)
    attention, numpys_attention = (
        each.cross_attention(encoded[3], prompts[0], [5, 6, 7]) for each in (as_on_gpu, as_on_cpu)
    )
    assert attention.shape == (3, encoded[3].vectors.shape[0])
    assert difference(attention, numpys_attention) < 1e-5


@pytest.mark.parametrize("lay_out", [lay_out, lambda _: None], ids=["numpy", "mlx"])
def test_audio_longer_than_positions_are_kept_for_is_encoded_alike_and_leaves_none_behind(sounds, lay_out, monkeypatch):
    fresh, other = tiny_canary(), tiny_canary()
    lay_out(fresh)
    lay_out(other)
    (encoded,) = other.encodings(sounds[7:])
    assert len(encoded.vectors) > 90
    monkeypatch.setattr("model.encoder.POSITIONS_KEPT", 20)
    assert difference(fresh.encodings(sounds[7:])[0].vectors, encoded.vectors) < 1e-5
    fresh.encodings(sounds[:1])
    assert difference(fresh.encodings(sounds[7:])[0].vectors, encoded.vectors) < 1e-5
    kept = [layer.self_attn._projected.shape[1] for layer in (*fresh.encoder.layers, *other.encoder.layers)]
    assert kept == [2 * 20 - 1] * 2 + [2 * 2 * len(encoded.vectors) - 1] * 2


def test_what_is_multiplied_with_lies_by_inputs_in_one_block_on_a_cpu():
    module = nn.Module()
    module.first, module.second, module.embedding = Linear(32, 48), Linear(48, 16, bias=False), nn.Embedding(7, 32)
    x = mx.random.normal((2, 5, 32))
    before, found = module.second(module.first(x)), np.array(module.embedding.weight)
    lay_out(module)
    block = module.first.weight.base
    assert block.flags.c_contiguous
    assert block.size == 32 * 48 + 48 * 16 + 7 * 32
    for matrix in (module.first.weight, module.second.weight, module.embedding.weight):
        assert matrix.base is block
        assert matrix.T.flags.c_contiguous
    assert np.array_equal(module.embedding.weight, found)
    rows = np.array(x)
    assert difference(module.second(module.first(rows)), before) < 1e-5
    # A few rows are multiplied one by one.
    for count in (1, 2, 3, 4, 5):
        assert difference(module.second(module.first(rows[0, :count])), before[0, :count]) < 1e-5


def test_a_model_in_16_bits_computes_with_mlxs_arrays_and_writes(sounds, prompts):
    canary = tiny_canary()
    canary.set_dtype(mx.bfloat16)
    assert arrays.library_for("bfloat16") is canary.xp is mlx_arrays
    (encoded,) = canary.encodings(sounds[:1])
    assert encoded.vectors.dtype == mx.bfloat16
    assert canary.forced_log_probs(prompts[:1], encoded.vectors[None], [len(encoded.vectors)]).dtype == mx.float32
    (alone,) = canary.generate([encoded], prompts[:1], FREE)
    assert len(alone.tokens) == len(alone.log_probs) > 20
    for look_ahead in (False, True):
        batch = RunningBatch(canary.decoder, canary.head, 3, 2, look_ahead=look_ahead)
        finished = batch.join([canary.prompted(0, encoded, prompts[0], FREE)])
        while batch.rows:
            finished += batch.step()
        assert finished[0].tokens == alone.tokens
