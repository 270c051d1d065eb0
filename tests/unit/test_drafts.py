"""A text that goes on from an earlier one, and a draft of it that is checked: what is written stays the same."""

from dataclasses import replace

import numpy as np
import pytest

from model.canary import reading
from model.canary.decoder import Decoder, TextMemory
from model.canary.generate import RunningBatch
from model.canary.rows import Utterance
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


@pytest.fixture(params=[4, 7])
def in_stretches(request, monkeypatch) -> int:
    """How much of a draft is checked at a time."""
    monkeypatch.setattr(reading, "STRETCH", request.param)
    return request.param


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
        "with one token too many": [*tokens[:4], 9, *tokens[4:]],
        "wrong at every fifth place": [(t + 1) % VOCAB if i % 5 == 4 else t for i, t in enumerate(tokens)],
        "wrong everywhere": [(t + 1) % VOCAB for t in tokens],
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


@pytest.mark.parametrize("index", [1, 3, 7])
def test_a_draft_that_is_checked_in_stretches_changes_nothing_either(
    canary, encoded, prompts, batch, in_stretches, index
):
    plain = replace(canary.prompted(0, encoded[index], prompts[index], FREE), attention=True, remember=True)
    [stepped] = run(batch(), plain)
    for name, draft in drafts_of(stepped.tokens).items():
        [checked] = run(batch(), replace(plain, before=TextMemory(prompts[index] + draft, [])))
        assert same(checked, stepped), name
        assert checked.memory.tokens == stepped.memory.tokens
        for mine, its in zip(checked.memory.layers, stepped.memory.layers, strict=True):
            assert mine.shape == its.shape
            assert np.abs(np.array(mine) - np.array(its)).max() < 1e-4, name


@pytest.mark.parametrize("stretch", [3, 32])
def test_a_text_that_ends_ends_at_the_same_place_whatever_its_draft_says(
    canary, encoded, prompts, batch, stretch, monkeypatch
):
    monkeypatch.setattr(reading, "STRETCH", stretch)
    request = canary.prompted(0, encoded[3], prompts[3], FREE)
    [endless] = run(batch(), request)
    end = endless.tokens[9]
    first = endless.tokens.index(end)
    assert first >= 3
    [stepped] = run(batch(end), request)
    assert stepped.tokens == endless.tokens[:first]
    request = replace(request, attention=True)
    [stepped] = run(batch(end), request)
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


def test_a_right_draft_takes_a_pass_for_each_stretch_and_one_more_token(
    canary, encoded, prompts, batch, fed, in_stretches
):
    request = canary.prompted(0, encoded[3], prompts[3], FREE)
    [stepped] = run(batch(), request)
    fed.clear()
    run(batch(), replace(request, before=TextMemory(prompts[3] + stepped.tokens, [])))
    # Each pass reads the last token and a stretch, and writes one token more than it reads of the draft.
    count, rest = divmod(len(stepped.tokens), in_stretches + 1)
    assert fed[: 1 + count] == [len(prompts[3]) + in_stretches, *[1 + in_stretches] * (count - 1), rest][: len(fed)]
    assert len(fed) == count + bool(rest)


def test_a_draft_that_is_wrong_is_dropped_after_two_passes_that_found_little(
    canary, encoded, prompts, batch, fed, in_stretches
):
    request = canary.prompted(0, encoded[3], prompts[3], FREE)
    [stepped] = run(batch(), request)
    wrong = [(token + 1) % VOCAB for token in stepped.tokens]
    never_right = TextMemory(prompts[3] + wrong, [])
    fed.clear()
    run(batch(), replace(request, before=never_right))
    assert [count for count in fed if count > 1] == [len(prompts[3]) + in_stretches, 1 + in_stretches]
    # Each wrote a token; the others were stepped, a step ahead perhaps once for nothing.
    assert len(fed) in (len(stepped.tokens), len(stepped.tokens) + 1)


TIMES = range(44, VOCAB)


class Obstinate(RunningBatch):
    """Writes words of two tokens between times, whatever was written before them."""

    text = tuple(44 + place % 20 if place % 4 in (0, 3) else 10 + place for place in range(30))

    def _write(self, text, scores):
        written = len(text.owner.tokens) if text.owner else 0
        for place, row in enumerate(scores := np.array(scores)):
            row[self.text[min(written + place, len(self.text) - 1)]] = 1.0
        return super()._write(text, scores)


@pytest.mark.parametrize(
    ("wrong", "limit", "stretches"),
    [
        # The first pass reads places 0 to 9, writes 0 to 3, and mends 4 and 7. The second reads 4 to 13 and writes up
        # to 12; the third reads 13 to 22, and the fourth the rest.
        ((3, 4, 7, 12), 30, [10, 10, 10, 5]),
        # Words stay as they are: the second pass reads 4 to 13 and writes 4 and 5.
        ((3, 5), 28, [10, 10, 10, 10]),
    ],
    ids=["times", "a word"],
)
def test_times_that_were_wrong_in_a_stretch_are_mended_by_the_pass_that_read_them(
    canary, encoded, prompts, fed, monkeypatch, wrong, limit, stretches
):
    monkeypatch.setattr(reading, "STRETCH", 10)
    request = canary.prompted(0, encoded[3], prompts[3], DecodingOptions(max_new_tokens=limit))
    draft = [other(token) if place in wrong else token for place, token in enumerate(Obstinate.text)]
    batch = Obstinate(canary.decoder, canary.head, NEVER, 2, time_ids=TIMES)
    [generated] = run(batch, replace(request, before=TextMemory(prompts[3] + draft, [])))
    assert generated.tokens == list(Obstinate.text[:limit])
    assert fed == [len(prompts[3]) + stretches[0], *(1 + stretch for stretch in stretches[1:])]


def other(token: int) -> int:
    """Another time or another part of a word."""
    return 44 + (token - 43) % 20 if token in TIMES else 5


def test_a_draft_that_is_being_checked_takes_a_row_and_can_be_dropped(canary, encoded, prompts, batch, in_stretches):
    requests = [canary.prompted(i, encoded[i], prompts[i], FREE) for i in range(3)]
    stepped = run(batch(), *requests)
    drafts = [TextMemory(prompts[i] + stepped[i].tokens, []) for i in range(3)]
    mixed = batch()
    assert not mixed.join([requests[0], replace(requests[1], before=drafts[1]), replace(requests[2], before=drafts[2])])
    assert mixed.rows == 3
    mixed.step()
    assert mixed.rows == 3
    mixed.drop(1)
    assert mixed.rows == 2
    finished = []
    while mixed.rows:
        finished += mixed.step()
    assert [generated.key for generated in finished] == [2, 0]
    assert all(same(generated, stepped[generated.key]) for generated in finished)


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


@pytest.mark.parametrize("seed", range(3))
def test_any_drafts_in_a_batch_change_neither_their_texts_nor_those_beside_them(
    canary, encoded, prompts, batch, in_stretches, seed
):
    random = np.random.default_rng(seed)
    requests = []
    for i, (each, prompt) in enumerate(zip(encoded, prompts, strict=True)):
        options = DecodingOptions(beam_size=3 if i == 6 else 1, max_new_tokens=12 + 3 * i)
        requests.append(replace(canary.prompted(i, each, prompt, options), attention=i % 2 == 0, remember=i % 3 == 0))
    alone = [run(batch(), request)[0] for request in requests]
    drafted = [
        replace(request, before=TextMemory(request.prompt + spoilt(generated.tokens, random), [])) if i % 4 else request
        for i, (request, generated) in enumerate(zip(requests, alone, strict=True))
    ]
    mixed = batch()
    finished = []
    for i in random.permutation(len(drafted)).tolist():
        finished += mixed.join([drafted[i]])
        for _ in range(random.integers(0, 4)):
            finished += mixed.step()
    while mixed.rows:
        finished += mixed.step()
    finished.sort(key=lambda generated: generated.key)
    assert [generated.key for generated in finished] == list(range(len(requests)))
    for one, other in zip(finished, alone, strict=True):
        assert same(one, other)
        assert (one.memory is None) == (other.memory is None)


def spoilt(tokens: list[int], random: np.random.Generator) -> list[int]:
    """Some of them changed, left out or doubled."""
    draft = []
    for token in tokens:
        chance = random.random()
        other = int(random.integers(4, VOCAB))
        draft += [other] if chance < 0.1 else [] if chance < 0.15 else [token, other] if chance < 0.2 else [token]
    return draft


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
