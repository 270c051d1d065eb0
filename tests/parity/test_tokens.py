"""Prompts, greedy and beam search, and the text of it, against NeMo's: every token the same."""

import numpy as np
import pytest

from model.canary.prompt import prompt_tokens
from model.config import SAMPLE_RATE
from model.decoding import DecodingOptions
from model.task import Task
from model.timestamps import plain_text
from server.cli.doctor.sounds import sound

GREEDY = DecodingOptions(beam_size=1)


def prompt(case, index: int) -> list[int]:
    return case.values["prompts"][index]["ids"]


def test_prompts_are_nemos(case):
    for told in case.values["prompts"]:
        ours = prompt_tokens(Task(**told["task"]), case.model.config, case.model.tokenizer)
        assert ours == told["ids"], told["task"]


def test_the_search_unless_asked_otherwise_is_nemos(case):
    assert case.model.config.decoding.beam_size == 1
    assert case.model.config.decoding.length_penalty == 0.0
    assert case.model.config.decoding.max_generation_delta == 50


def test_greedy_tokens_are_nemos(case):
    for told in case.values["greedy"]:
        [ours] = case.model.generate([case.encoded[told["sound"]]], [prompt(case, told["prompt"])], GREEDY)
        assert ours.tokens == told["tokens"], f"{told['sound']}, prompt {told['prompt']}"


def test_greedy_tokens_are_nemos_when_everything_is_decoded_side_by_side(case):
    told = case.values["greedy"]
    encoded = [case.encoded[one["sound"]] for one in told]
    ours = case.model.generate(encoded, [prompt(case, one["prompt"]) for one in told], GREEDY)
    assert [one.tokens for one in ours] == [one["tokens"] for one in told]


def test_a_padded_batch_gives_the_tokens_of_nemos_batch(case):
    """NeMo lets a short sound in a batch run on to the longest one's limit; here each has its own."""
    for told in case.values["batches"]:
        encoded = case.model.encoded_together([sound(name) for name in told["sounds"]])
        prompts = [prompt(case, told["prompt"])] * len(encoded)
        limits = [case.model.prompted(0, e, p, GREEDY).limit for e, p in zip(encoded, prompts, strict=True)]
        ours = case.model.generate(encoded, prompts, GREEDY)
        assert [one.tokens for one in ours] == [
            tokens[:limit] for tokens, limit in zip(told["tokens"], limits, strict=True)
        ]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("beam_size", [2, 3, 5])
def test_beam_tokens_are_nemos(case, beam_size, length_penalty):
    """NeMo's from one item at a time: its beams mix up their caches in a batch. Here they are decoded side by side."""
    told = [
        one for one in case.values["beam"] if (one["beam_size"], one["length_penalty"]) == (beam_size, length_penalty)
    ]
    encoded = [case.encoded[one["sound"]] for one in told]
    prompts = [prompt(case, one["prompt"]) for one in told]
    options = DecodingOptions(beam_size=beam_size, length_penalty=length_penalty)
    ours = case.model.generate(encoded, prompts, options)
    assert len(ours) == 6
    assert [one.tokens for one in ours] == [one["tokens"] for one in told]


def test_log_probabilities_of_greedy_tokens_are_those_of_the_teacher_forced_decoder(case):
    told = case.values["greedy"][0]
    encoded, ids = case.encoded[told["sound"]], prompt(case, told["prompt"])
    [ours] = case.model.generate([encoded], [ids], GREEDY)
    forced = case.model.forced_log_probs([ids + ours.tokens], encoded.vectors[None], [len(encoded.vectors)])
    rows = np.array(forced[0, len(ids) - 1 : -1])
    np.testing.assert_allclose(ours.log_probs, rows[np.arange(len(ours.tokens)), ours.tokens], atol=1e-4)


def test_texts_are_nemos(case):
    for told in case.values["greedy"] + case.values["beam"]:
        assert case.model.tokenizer.decode(told["tokens"]) == told["text"]


def test_transcripts_are_nemos_from_end_to_end(case):
    """Special tokens that NeMo leaves in its text are not part of a transcript's."""
    for told in case.values["transcribed"]:
        waveform = sound(told["sound"])
        [ours] = case.model.transcribe([waveform], Task(**told["task"]))
        ids = [token for segment in ours.segments for token in segment.tokens]
        assert case.model.tokenizer.decode(ids) == told["text"]
        assert ours.text == plain_text(ids, case.model.tokenizer)
        assert ours.duration == len(waveform) / SAMPLE_RATE
