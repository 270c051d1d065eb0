"""A text that goes on from an earlier one, and a draft of it that is checked: what is written stays the same."""

from dataclasses import replace

import numpy as np
import pytest

from model.canary.decoder import Decoder, TextMemory
from model.canary.generate import RunningBatch, Utterance
from model.decoding import DecodingOptions, Encoded, Generated
from model.task import Task
from tests.unit.conftest import VOCAB, noise

FREE = DecodingOptions(max_new_tokens=24)
NEVER = -1  # a token that is never written


@pytest.fixture(params=[False, True], ids=["", "a step ahead"])
def batch(request, canary):
    """batch(end_id): an empty batch whose texts end at this token."""
    return lambda end_id=NEVER: RunningBatch(canary.decoder, canary.head, end_id, 2, look_ahead=request.param)


@pytest.fixture
def fed(canary, monkeypatch) -> list[int]:
    """How many tokens the decoder reads at a time, of each row: a prefill, then steps of one."""
    counts: list[int] = []
    prefill, step = Decoder.prefill, Decoder.step
    monkeypatch.setattr(Decoder, "prefill", lambda *args: counts.append(len(args[1][0])) or prefill(*args))
    monkeypatch.setattr(Decoder, "step", lambda *args: counts.append(1) or step(*args))
    return counts


def run(batch: RunningBatch, *utterances: Utterance) -> list[Generated]:
    """Their texts, in their order."""
    finished = batch.join(list(utterances))
    while batch.rows:
        finished += batch.step()
    return sorted(finished, key=lambda generated: generated.key)


def same(one: Generated, other: Generated) -> bool:
    if one.attention is not None or other.attention is not None:
        assert one.attention.shape == other.attention.shape == (len(one.tokens), other.attention.shape[1])
        assert np.abs(one.attention - other.attention).max() < 1e-5
    assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
    assert one.nothing == pytest.approx(other.nothing, rel=1e-3)
    return one.tokens == other.tokens


def drafts_of(tokens: list[int]) -> dict[str, list[int]]:
    """Guesses at a text of these tokens."""
    wrong = (tokens[4] + 1) % VOCAB
    return {
        "right": tokens,
        "too short": tokens[:5],
        "empty": [],
        "too long": [*tokens, 9, 9, 9],
        "wrong at first": [(tokens[0] + 1) % VOCAB, *tokens[1:]],
        "wrong in the middle": [*tokens[:4], wrong, *tokens[5:]],
        "without a token": [*tokens[:4], *tokens[5:]],
        "with an end inside": [*tokens[:4], 2, *tokens[4:]],
    }


@pytest.mark.parametrize("index", [1, 3, 7])
def test_a_draft_right_or_wrong_changes_nothing_that_is_written(canary, encoded, prompts, batch, index):
    request = replace(canary.prompted(0, encoded[index], prompts[index], FREE), attention=True)
    [stepped] = run(batch(), request)
    assert len(set(stepped.tokens)) > 5
    for name, draft in drafts_of(stepped.tokens).items():
        before = TextMemory(prompts[index] + draft, [])
        [checked] = run(batch(), replace(request, before=before))
        assert same(checked, stepped), name


def test_a_text_that_ends_ends_at_the_same_place_whatever_its_draft_says(canary, encoded, prompts, batch):
    request = canary.prompted(0, encoded[3], prompts[3], FREE)
    [endless] = run(batch(), request)
    end = endless.tokens[9]
    first = endless.tokens.index(end)
    assert first >= 3
    [stepped] = run(batch(end), request)
    assert stepped.tokens == endless.tokens[:first]
    for draft in (stepped.tokens, stepped.tokens[:2], endless.tokens, endless.tokens[: first + 1], [end], [5, 6, end]):
        [checked] = run(batch(end), replace(request, before=TextMemory(prompts[3] + draft, [])))
        assert same(checked, stepped), draft


def test_an_unchanged_text_is_read_once_and_a_longer_one_steps_from_there(canary, encoded, prompts, batch, fed):
    request = canary.prompted(0, encoded[3], prompts[3], FREE)
    [endless] = run(batch(), request)
    end = endless.tokens[9]
    tokens = endless.tokens[: endless.tokens.index(end)]
    fed.clear()
    run(batch(end), replace(request, before=TextMemory(prompts[3] + tokens, [])))
    assert fed == [len(prompts[3]) + len(tokens)]
    fed.clear()
    run(batch(end), replace(request, before=TextMemory(prompts[3] + tokens[:-2], [])))
    assert fed[0] == len(prompts[3]) + len(tokens) - 2
    # One token follows the draft in the prefill; the next two steps write the last one and the end.
    assert 2 <= len(fed) - 1 <= 3


def remembered(canary, encoded: Encoded, prompt: list[int], options: DecodingOptions = FREE) -> Generated:
    batch = RunningBatch(canary.decoder, canary.head, NEVER, 2)
    [generated] = run(batch, replace(canary.prompted(0, encoded, prompt, options), remember=True))
    return generated


@pytest.mark.parametrize("certain", [0, 1, 7, 24])
def test_going_on_from_the_cache_writes_what_reading_everything_again_does(
    canary, encoded, prompts, batch, fed, certain
):
    first = remembered(canary, encoded[5], prompts[5])
    assert first.memory.tokens == prompts[5] + first.tokens
    prompt = prompts[5] + first.tokens[:certain]
    request = replace(canary.prompted(0, encoded[5], prompt, FREE), attention=True)
    [anew] = run(batch(), request)
    fed.clear()
    [further] = run(batch(), replace(request, before=first.memory))
    assert same(further, anew)
    # The last token of the prompt, which is read for what follows it, and a draft that leaves room for one more token.
    have = first.memory.layers[0].shape[2]
    assert have == len(prompts[5]) + 24 - 1
    assert fed[0] == len(prompt) - min(have, len(prompt) - 1) + min(24 - certain, 23)
    [one] = run(batch(), replace(request, before=first.memory, limit=1))
    assert one.tokens == anew.tokens[:1]


def test_only_the_part_of_the_prompt_that_is_the_same_is_taken_from_the_cache(canary, encoded, prompts, batch, fed):
    first = remembered(canary, encoded[5], prompts[5])
    other = [*prompts[5][:4], (prompts[5][4] + 1) % VOCAB, *prompts[5][5:], *first.tokens[:3]]
    request = canary.prompted(0, encoded[5], other, FREE)
    [anew] = run(batch(), request)
    fed.clear()
    [further] = run(batch(), replace(request, before=first.memory))
    assert same(further, anew)
    assert fed[0] == len(other) - 4


def test_what_is_remembered_does_not_change_when_it_is_gone_on_from(canary, encoded, prompts, batch):
    first = remembered(canary, encoded[5], prompts[5])
    kept = [np.array(kv) for kv in first.memory.layers]
    request = replace(canary.prompted(0, encoded[5], prompts[5], FREE), before=first.memory, remember=True)
    once, again = (run(batch(), request)[0] for _ in range(2))
    assert once.tokens == again.tokens == first.tokens
    for now, then in zip(first.memory.layers, kept, strict=True):
        assert np.array_equal(np.array(now), then)
    # Texts that are finished by their prefill are remembered like those that were stepped.
    for now, then in zip(again.memory.layers, kept, strict=True):
        assert np.abs(np.array(now)[:, :, : then.shape[2]] - then).max() < 1e-4


def test_rows_with_a_past_a_draft_a_beam_or_nothing_share_a_batch_without_changing_each_other(
    canary, encoded, prompts, batch
):
    past = [remembered(canary, e, p).memory for e, p in zip(encoded, prompts, strict=True)]
    # One longer than all others, one shorter.
    growing = canary.growing_encodings([noise(s, seed) for seed, s in enumerate((9.1, 1.7))], [None, None])
    requests = []
    for i, (each, prompt) in enumerate(zip(encoded, prompts, strict=True)):
        options = DecodingOptions(beam_size=3 if i == 6 else 1, max_new_tokens=8 + 2 * i)
        plain = replace(canary.prompted(i, each, prompt, options), attention=i % 2 == 0, remember=i % 3 == 0)
        before = [None, past[i], TextMemory(past[i].tokens[:-3], past[i].layers), TextMemory(past[i].tokens, [])][i % 4]
        requests.append(replace(plain, before=before))
    for i, each in enumerate(growing, start=8):
        request = canary.utterance(i, each, Task("en"), FREE, attention=True)
        assert (request.remember, len(request.memory)) == (True, 2)
        requests.append(request)
    alone = [run(batch(), request)[0] for request in requests]
    together = run(batch(), *requests)
    mixed = batch()
    finished = mixed.join(requests[:3])
    for at in range(3, len(requests), 3):
        finished += mixed.step() + mixed.join(requests[at : at + 3])
    mixed.drop(4)
    while mixed.rows:
        finished += mixed.step()
    later = {generated.key: generated for generated in finished}
    for one, other in zip(alone, together, strict=True):
        assert same(other, one)
        assert (other.memory is None) == (one.memory is None) == (not requests[one.key].remember)
        if one.key in later:
            assert same(later[one.key], one)
            assert one.key == 4 or (later[one.key].memory is None) == (one.memory is None)
    assert set(later) >= set(range(10)) - {4}


def test_attention_of_decoding_is_that_of_a_second_pass(canary, encoded, prompts, batch):
    requests = [
        replace(canary.prompted(i, e, p, DecodingOptions(max_new_tokens=6 + i)), attention=True)
        for i, (e, p) in enumerate(zip(encoded, prompts, strict=True))
    ]
    for generated in run(batch(), *requests):
        second = canary.cross_attention(encoded[generated.key], prompts[generated.key], generated.tokens)
        assert generated.attention.shape == second.shape == (6 + generated.key, len(encoded[generated.key].vectors))
        assert np.abs(generated.attention - second).max() < 1e-5
        assert np.allclose(generated.attention.sum(axis=1), 1, atol=1e-5)


def test_attention_is_told_only_to_who_asks(canary, encoded, prompts, batch, monkeypatch):
    asked, other = (canary.prompted(i, encoded[i], prompts[i], FREE) for i in (0, 1))
    told, untold = run(batch(), replace(asked, attention=True), other)
    assert told.attention is not None
    assert untold.attention is None
    monkeypatch.setattr("model.canary.generate.Watched.attend", None)
    with pytest.raises(TypeError):
        run(batch(), replace(asked, attention=True))
