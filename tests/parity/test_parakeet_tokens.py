"""What a Parakeet's heads write: tokens, frames, durations, confidences, words, segments and texts, against NeMo's."""

from typing import Any

import numpy as np
import pytest

from model.config import SAMPLE_RATE
from model.decoding import DecodingOptions, Encoded, Generated
from model.parakeet.beam import BeamRows
from model.parakeet.decoding import CTC, TimedTokens, Utterance
from model.parakeet.model import ParakeetModel
from model.parakeet.times import token_spans, word_spans
from model.parakeet.transducer import Transducer
from model.parakeet.words import Spelling, punctuation
from model.task import Task
from model.timestamps import sentences
from server.cli.doctor.sounds import LENGTHS, sound

STEP_S = 0.08


def heads(case) -> list[str]:
    return list(dict.fromkeys(run["head"] for run in case.values["greedy"]))


def greedy(case, head: str) -> dict[str, dict[str, Any]]:
    """NeMo's greedy results by sound. head: "transducer" or "ctc", as the goldens name them."""
    return {run["sound"]: run for run in case.values["greedy"] if run["head"] == head}


def utterance(case, key: int, encoded: Encoded, head: str) -> Utterance:
    own = CTC if head == CTC else case.model.config.kind
    return case.model.utterance(key, encoded, Task("en"), DecodingOptions(head=own))


def written(case, head: str) -> dict[str, TimedTokens]:
    """By sound, each decoded by itself."""
    return {name: case.model.generate([utterance(case, 0, encoded, head)])[0] for name, encoded in case.encoded.items()}


def nemos_spelling(parakeet: ParakeetModel) -> Spelling:
    """Opening marks join the word before them too."""
    tokenizer = parakeet.tokenizer
    return Spelling(tokenizer, punctuation(tokenizer.piece(i) for i in range(tokenizer.vocab_size)))


def plain(spelling: Spelling, text: str) -> str:
    """NeMo's text with single spaces. Its words have a space before a mark where its text has none."""
    return " ".join(spelling.without_spaces_before_marks(text).split())


def test_greedy_tokens_frames_and_durations_are_nemos(parakeet_case):
    for head in heads(parakeet_case):
        theirs = greedy(parakeet_case, head)
        for name, ours in written(parakeet_case, head).items():
            assert ours.tokens == theirs[name]["tokens"], f"{head}, {name}"
            if head != CTC:
                assert ours.frames == theirs[name]["frames"], name
                assert ours.durations == theirs[name].get("durations", []), name


def test_side_by_side_they_are_the_same(parakeet_case):
    for head in heads(parakeet_case):
        theirs = greedy(parakeet_case, head)
        encoded = enumerate(parakeet_case.encoded.values())
        together = parakeet_case.model.generate([utterance(parakeet_case, i, each, head) for i, each in encoded])
        assert [ours.tokens for ours in together] == [theirs[name]["tokens"] for name in parakeet_case.encoded]


def test_a_padded_batch_of_eight_is_eight_single_ones(parakeet_case):
    names = [*LENGTHS, *LENGTHS][:8]
    encoded = parakeet_case.model.encoded_together([sound(name) for name in names])
    for head in heads(parakeet_case):
        theirs = greedy(parakeet_case, head)
        together = parakeet_case.model.generate(
            [utterance(parakeet_case, i, each, head) for i, each in enumerate(encoded)]
        )
        assert [ours.tokens for ours in together] == [theirs[name]["tokens"] for name in names]


@pytest.mark.parametrize("steps", [1, 7, 25])
def test_in_pieces_with_the_state_carried_over_they_are_the_same(parakeet_case, steps):
    parakeet = parakeet_case.model
    for head in heads(parakeet_case):
        own = CTC if head == CTC else parakeet.config.kind
        for name, theirs in greedy(parakeet_case, head).items():
            vectors, state, tokens, frames = parakeet_case.encoded[name].vectors, None, [], []
            for begin in range(0, vectors.shape[0], steps):
                [piece] = parakeet.generate([parakeet.piece(0, vectors[begin : begin + steps], state, own)])
                state, tokens, frames = piece.state, tokens + piece.tokens, frames + piece.frames
            assert tokens == theirs["tokens"], f"{head}, {name}"
            assert head == CTC or frames == theirs["frames"], name


def test_confidences_are_nemos(parakeet_case):
    for head in heads(parakeet_case):
        for name, ours in written(parakeet_case, head).items():
            theirs = greedy(parakeet_case, head)[name]["token_confidence"]
            np.testing.assert_allclose(ours.confidences, theirs, rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("beam_size", [2, 4])
def test_beam_tokens_and_frames_are_nemos(parakeet_case, beam_size):
    """All sounds side by side. NeMo takes the place of a duration among the durations for the duration itself."""
    config, parakeet = parakeet_case.model.config, parakeet_case.model
    runs = [run for run in parakeet_case.values["beam"] if run["beam_size"] == beam_size]
    if config.kind == CTC:
        assert not runs
        return
    places = tuple(range(len(config.durations)))
    if config.durations == places:
        own = DecodingOptions(beam_size=beam_size)
        keyed = enumerate(run["sound"] for run in runs)
        together = parakeet.generate(
            [parakeet.utterance(i, parakeet_case.encoded[name], Task("en"), own) for i, name in keyed]
        )
    else:
        rows = BeamRows(
            Transducer(parakeet.prediction, parakeet.joint, config.vocab_size + 1, places, config.max_symbols)
        )
        together = rows.join(
            [
                Utterance(i, parakeet_case.encoded[run["sound"]].vectors, beam_size=beam_size)
                for i, run in enumerate(runs)
            ]
        )
        while rows.rows:
            together += rows.step()
        together.sort(key=lambda ours: ours.key)
    assert len(together) == len(LENGTHS)
    assert [ours.tokens for ours in together] == [run["tokens"] for run in runs]
    assert [ours.frames for ours in together] == [run["frames"] for run in runs]


def test_texts_are_nemos(parakeet_case):
    spelling = nemos_spelling(parakeet_case.model)
    for run in parakeet_case.values["greedy"] + parakeet_case.values["beam"]:
        assert spelling.text(run["tokens"]) == " ".join(run["text"].split())


def test_a_transducers_spans_words_and_segments_are_nemos(parakeet_case):
    if parakeet_case.model.config.kind == CTC:
        return
    spelling = nemos_spelling(parakeet_case.model)
    for name, ours in written(parakeet_case, "transducer").items():
        theirs = greedy(parakeet_case, "transducer")[name]
        spans = token_spans(ours, spelling)
        assert [list(span) for span in spans] == theirs["spans"]
        words = spelling.words(ours.tokens)
        # NeMo's random texts have words without text.
        told = [word for word in theirs["words"] if word[0]]
        assert [word.text for word in words] == [plain(spelling, text) for text, *_ in told]
        frames = word_spans(words, spans)
        assert [list(span) for span in frames] == [[start, end] for _, start, end, *_ in told]
        times = [(start * STEP_S, end * STEP_S) for start, end in frames]
        segments = sentences(words, times, ours, parakeet_case.model.tokenizer)
        told = theirs["segments"]
        assert [plain(spelling, segment.text) for segment in segments] == [plain(spelling, text) for text, *_ in told]
        # In NeMo, a word without text may begin or end a segment.
        if all(text for text, *_ in theirs["words"]):
            placed = [(segment.start, segment.end) for segment in segments]
            assert placed == [pytest.approx((start, end)) for *_, start, end in told]


def test_ctc_words_are_nemos_and_each_token_begins_where_nemos_ends(parakeet_case):
    """NeMo's span of a token ends where the token itself begins. A mark's is made empty, so its end says nothing."""
    if CTC not in heads(parakeet_case):
        return
    spelling = nemos_spelling(parakeet_case.model)
    for name, ours in written(parakeet_case, CTC).items():
        theirs = greedy(parakeet_case, CTC)[name]
        words = spelling.words(ours.tokens)
        assert [word.text for word in words] == [plain(spelling, text) for text, *_ in theirs["words"] if text]
        joins = spelling.joins(ours.tokens)
        for joined, frame, (_, end) in zip(joins, ours.frames, theirs["spans"], strict=True):
            assert joined or frame == end
        for word, (start, end) in zip(words, word_spans(words, token_spans(ours, spelling)), strict=True):
            assert start == ours.frames[word.tokens.start]
            assert end >= start


def test_transcripts_are_nemos_from_end_to_end(parakeet_case):
    """From sounds of 16 bits. NeMo's text and words, but for the space before marks that open something."""
    parakeet, spelling = parakeet_case.model, nemos_spelling(parakeet_case.model)
    for told in parakeet_case.values["transcribed"]:
        waveform = (np.round(sound(told["sound"]) * 32768).clip(-32768, 32767) / 32768).astype(np.float32)
        [ours] = parakeet.transcribe([waveform], Task("en", timestamps="word"))
        assert ours.duration == len(waveform) / SAMPLE_RATE
        assert ours.timestamps_source == "model"
        tokens = [token for segment in ours.segments for token in segment.tokens]
        assert spelling.text(tokens) == plain(spelling, told["text"])
        assert ours.text.replace(" ", "") == spelling.text(tokens).replace(" ", "")
        if told["head"] == CTC:
            continue
        firsts = {round(start, 3) for _, start, _ in told["words"]}
        placed = [word for segment in ours.segments for word in segment.words]
        assert placed
        # A mark that opens something begins a word of its own here.
        assert all(round(word.start, 3) in firsts for word in placed if word.word[0] not in "¿¡([{")
        assert all(0 < word.confidence <= 1 for word in placed)


def test_probabilities_of_tokens_are_those_of_a_beam_that_finds_the_same(parakeet_case):
    parakeet = parakeet_case.model
    if parakeet.config.kind == CTC:
        return
    encoded = parakeet_case.encoded["0.35s"]
    found: list[Generated] = [
        parakeet.generate([parakeet.utterance(0, encoded, Task("en"), DecodingOptions(beam_size=width))])[0]
        for width in (1, 2)
    ]
    if found[0].tokens == found[1].tokens:
        np.testing.assert_allclose(found[0].log_probs, found[1].log_probs, atol=1e-4)
