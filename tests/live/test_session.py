"""What a live session promises, with a decoder that is scripted, or makes anything up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.task import AUTO, Task, TaskError
from server.audio.vad import FRAME
from server.live.endpointing import Endpointing
from server.live.events import Lag, Problem, SpeechStarted, SpeechStopped
from server.live.policy import Token, without_loop, words
from server.live.segment import LiveOptions
from server.live.windows import Heard
from tests.live.scripted import (
    SAMPLE_RATE,
    Reader,
    ScriptedDecoder,
    hear_all,
    live,
    said,
    session_over,
    sound,
    speech_probabilities,
    step_all,
    tokens_of,
)

POLICIES = pytest.mark.parametrize("policy", ["alignatt", "agreement"])
TALK = "The cat sees two old houses in the garden. | Where is my brother? | Now he sleeps."


@POLICIES
async def test_everything_said_is_written_once_and_in_order(policy):
    reader = await live(said(TALK), policy=policy)
    assert reader.text == TALK.replace("| ", "")
    assert [result.ends_turn for result in reader.finals] == [True, True, True]


@POLICIES
async def test_text_stays_before_the_speaker_has_finished(policy):
    reader = await live(said(TALK), policy=policy, settle_s=1.0)
    first = [result for result in reader.results if result.segment == 1]
    kept = [result.text[: result.stable] for result in first]
    assert kept[len(kept) // 2].startswith("The cat sees")
    assert not first[len(kept) // 2].is_final


@POLICIES
async def test_a_word_that_is_cut_by_the_end_of_what_was_heard_does_not_stay(policy):
    reader = await live(said(TALK), policy=policy, settle_s=0.0)
    assert any("hm" in result.text for result in reader.results)
    assert not any("hm" in result.text[: result.stable] for result in reader.results)


@POLICIES
async def test_a_full_stop_does_not_stay_until_a_word_follows_it(policy):
    """The decoder ends every sentence too early; what it goes on to hear takes the place of its full stops."""
    script = said("one two three | four five six")

    class Hasty(ScriptedDecoder):
        async def __call__(self, window, tasks, given, last, look=None, tails=()):
            heard = await super().__call__(window, tasks, given, last)
            return Heard(((*heard.tokens[0], Token(1, ".", len(window) / SAMPLE_RATE - 2)),), "en")

    reader = await live(script, Hasty(script), policy=policy, settle_s=0.0, endpointing=Endpointing(silence_s=2.0))
    assert any(result.text.endswith("three.") for result in reader.results)
    assert reader.text == "one two three four five six."


async def test_no_text_stays_of_a_window_that_is_too_short_to_tell():
    reader = await live(said(TALK), settle_s=2.5)
    early = [r for r in reader.results if not r.is_final and r.end - r.start < 2.5]
    assert early
    assert all(result.stable == 0 for result in early)


async def test_times_are_counted_from_the_start_of_the_session():
    script = said(TALK)
    reader = await live(script)
    found = [word for result in reader.finals for word in result.words]
    assert [word.start for word in found] == pytest.approx([word.start for word in script], abs=0.05)


async def test_words_take_the_times_that_the_decoder_tells():
    from model.transcript import Word

    script = said("one two")

    class Telling(ScriptedDecoder):
        async def __call__(self, window, tasks, given, last, look=None, tails=()):
            heard = await super().__call__(window, tasks, given, last)
            return Heard(heard.tokens, "en", 1.0, (Word("One", 0.5, 0.6), Word("too", 0.7, 0.8)) if last else ())

    reader = await live(script, Telling(script))
    one, two = reader.finals[0].words
    window_start = reader.finals[0].start - 0.5
    assert (one.start, one.end) == pytest.approx((window_start + 0.5, window_start + 0.6))
    assert two.start == pytest.approx(script[1].start, abs=0.01)


async def test_speech_is_told_to_start_and_stop():
    script = said("one two three | four")
    reader = await live(script)
    assert [e.start for e in reader.of(SpeechStarted)] == pytest.approx([script[0].start, script[3].start], abs=0.05)
    assert [e.end for e in reader.of(SpeechStopped)] == pytest.approx([script[2].end, script[3].end], abs=0.05)


async def test_a_pause_shorter_than_the_endpoint_goes_on_in_the_same_segment():
    reader = await live(said("one two | three"), endpointing=Endpointing(silence_s=2.0))
    assert [result.text for result in reader.finals] == ["one two three"]


async def test_finalize_writes_out_what_is_being_said_and_what_follows_is_a_new_turn():
    script = said("one two three four five six seven eight")
    waveform, middle = sound(script), round(2.05 * SAMPLE_RATE) // FRAME * FRAME
    chances = speech_probabilities(script, len(waveform))
    session = session_over(ScriptedDecoder(script))
    reader = await hear_all(session, waveform[:middle], chances[: middle // FRAME])
    assert (reader.finals[0].text, reader.finalized) == ("one two three four", 1)
    reader.read(session.hear(waveform[middle:], chances[middle // FRAME :]))
    reader.read(session.finalize())
    await step_all(session, reader)
    assert reader.text == "one two three four five six seven eight"
    assert [result.turn for result in reader.finals] == [1, 2]


async def test_what_is_cleared_is_not_written():
    script = said("one two three | four")
    waveform, middle = sound(script), FRAME * 45
    chances = speech_probabilities(script, len(waveform))
    session, reader = session_over(ScriptedDecoder(script)), Reader()
    reader.read(session.hear(waveform[:middle], chances[:45]))
    await session.step()
    session.clear()
    reader.read(session.hear(waveform[middle:], chances[45:]))
    reader.read(session.finalize())
    await step_all(session, reader)
    assert "one" not in reader.text
    assert reader.text.endswith("four")


@pytest.mark.parametrize(
    ("ended_turns", "kept"),
    [(True, "one two ten"), (False, "one two three four ten")],
    ids=["back to the last finalize", "the turn that goes on"],
)
async def test_clearing_goes_back_as_far_as_it_is_asked_to(ended_turns, kept):
    """All of it waits to be written: a turn that is finalized, one that has ended, one that goes on in two segments."""
    script = said("one two | three four | five six seven eight | ten")
    waveform, chances = sound(script), speech_probabilities(script, len(sound(script)))
    options = LiveOptions(endpointing=Endpointing(long_s=1.5, pause_s=0.08))
    session, reader = session_over(ScriptedDecoder(script), options), Reader()
    reader.read(session.hear(waveform[: 50 * FRAME], chances[:50]))
    reader.read(session.finalize())
    reader.read(session.hear(waveform[50 * FRAME : 178 * FRAME], chances[50:178]))
    assert session.waiting == 5
    session.clear(ended_turns)
    reader.read(session.hear(waveform[178 * FRAME :], chances[178:]))
    reader.read(session.finalize())
    await step_all(session, reader)
    assert (reader.text, reader.finalized) == (kept, 2)


async def test_what_is_cleared_while_it_is_being_decoded_is_not_written():
    script = said("one two three four")
    waveform = sound(script)
    decoder = ScriptedDecoder(script)

    async def cleared(*asked):
        session.clear()
        return await decoder(*asked)

    session, reader = session_over(cleared), Reader()
    reader.read(session.hear(waveform, speech_probabilities(script, FRAME * 50)))
    await step_all(session, reader)
    assert len(decoder.windows) == 1
    assert reader.results == []


async def test_a_turn_soon_after_another_begins_after_its_end():
    script = said("one two") + said("three four", start=1.45)
    reader = await live(script, endpointing=Endpointing(silence_s=0.1, padding_s=0.3))
    assert reader.text == "one two three four"


async def test_silence_is_never_decoded_and_never_kept():
    decoder = ScriptedDecoder([])
    session = session_over(decoder)
    reader = await hear_all(session, np.zeros(60 * SAMPLE_RATE, np.float32), [0.0] * (60 * SAMPLE_RATE // FRAME))
    assert (decoder.windows, reader.results) == ([], [])
    assert sum(map(len, session._sound.pieces)) < SAMPLE_RATE


@POLICIES
async def test_speech_without_a_pause_is_cut_into_windows_that_the_model_is_good_for(policy):
    words = [f"word{i}" for i in range(200)]
    script = said(" ".join(words))
    decoder = ScriptedDecoder(script)
    options = Endpointing(silence_s=0.5, long_s=1e9)
    reader = await live(script, decoder, policy=policy, window_s=10.0, endpointing=options)
    assert max(end - start for start, end in decoder.windows) <= 10.0
    assert len(reader.finals) >= 8
    # a cut may go through a word; no more than that is lost or said twice
    found = reader.text.split()
    assert len(set(words) & set(found)) >= 200 - len(reader.finals)
    assert len(found) <= 200 + 2 * len(reader.finals)


async def test_a_long_turn_is_cut_at_its_short_pauses():
    script = said(" ".join(f"w{i}" for i in range(60)))
    # every tenth word is followed by 0.25 s more
    script = [type(w)(w.word, w.start + i // 10 * 0.25, w.end + i // 10 * 0.25) for i, w in enumerate(script)]
    decoder = ScriptedDecoder(script)
    reader = await live(script, decoder, endpointing=Endpointing(long_s=5.0, pause_s=0.2))
    assert reader.text.split() == [w.word for w in script]
    assert [result.ends_turn for result in reader.finals][:-1] == [False] * (len(reader.finals) - 1)
    assert {result.turn for result in reader.finals} == {1}


async def test_when_decoding_is_slow_steps_are_skipped_the_client_is_told_and_no_word_is_lost():
    script = said(TALK)
    waveform = sound(script)
    chances = speech_probabilities(script, len(waveform))
    decoder = ScriptedDecoder(script)

    async def slow(*asked):
        heard = await decoder(*asked)
        # while it decodes, three seconds more are heard
        at = round(session.heard_s * SAMPLE_RATE)
        more = waveform[at : at + 3 * SAMPLE_RATE]
        reader.read(session.hear(more, chances[at // FRAME : (at + len(more)) // FRAME]))
        return heard

    session, reader = session_over(slow), Reader()
    first = FRAME * 40
    reader.read(session.hear(waveform[:first], chances[:40]))
    await step_all(session, reader)
    reader.read(session.finalize())
    await step_all(session, reader)
    assert reader.text == TALK.replace("| ", "")
    assert len(decoder.windows) < 10
    lags = [event.seconds for event in reader.of(Lag)]
    assert max(lags) >= 2.0
    assert lags[-1] == 0.0


async def test_transcript_and_translation_come_side_by_side_from_one_look():
    script = said(TALK)
    decoder = ScriptedDecoder(script)
    reader = await live(script, decoder, target_language="de")
    assert set(decoder.tasks) == {(Task("en"), Task("en", "de"))}
    assert " ".join(r.translation.text for r in reader.finals) == TALK.replace("| ", "").upper()
    assert any(0 < r.translation.stable < len(r.translation.text) for r in reader.results if not r.is_final)


async def test_a_language_to_be_found_out_is_fixed_before_any_text_stays():
    script = said(TALK)
    decoder = ScriptedDecoder(script, language="de")
    reader = await live(script, decoder, language=AUTO, target_language="en", settle_s=0.0)
    assert decoder.tasks[0] == (Task(AUTO),)
    assert all(r.stable == 0 for r in reader.results if r.segment == 1 and r.end < 2.0)
    assert {result.language for result in reader.results} == {"de"}
    assert decoder.tasks[-1] in [(Task("de"), Task("de", "en")), (Task("de", "en"),)]
    assert all(result.translation for result in reader.finals)


async def test_a_short_segment_of_an_uncertain_language_is_taken_for_the_one_before():
    script = said("one two three four five six seven eight | ja")
    decoder = ScriptedDecoder(script, language="de")

    async def unsure(window, tasks, given, last, look=None, tails=()):
        heard = await decoder(window, tasks, given, last)
        short = tasks[0].language == AUTO and len(window) < 1.5 * SAMPLE_RATE
        return Heard(heard.tokens, "fr" if short else tasks[0].language.replace(AUTO, "de"), 0.4 if short else 1.0)

    waveform = sound(script)
    session = session_over(unsure, LiveOptions(AUTO))
    reader = await hear_all(session, waveform, speech_probabilities(script, len(waveform)))
    assert [result.language for result in reader.finals] == ["de", "de"]


async def test_a_translation_that_the_model_cannot_do_is_told_and_the_transcript_goes_on():
    def check(task: Task) -> None:
        if task.is_translation:
            raise TaskError("mock does not translate en to fr", "target_language")

    script = said("one two three")
    session = session_over(ScriptedDecoder(script), LiveOptions(target_language="fr"), check)
    waveform = sound(script)
    reader = await hear_all(session, waveform, speech_probabilities(script, len(waveform)))
    assert [event.message for event in reader.of(Problem)] == ["mock does not translate en to fr."]
    assert (reader.text, reader.finals[0].translation) == ("one two three", None)


async def test_a_loop_is_cut_off():
    script = said("one two")

    class Looping(ScriptedDecoder):
        async def __call__(self, window, tasks, given, last, look=None, tails=()):
            heard = await super().__call__(window, tasks, given, last)
            again = [Token(7, " and", 0.5), Token(8, " on", 0.5)] * 20
            return Heard(((*heard.tokens[0], *again),), "en")

    reader = await live(script, Looping(script))
    assert reader.text == "one two and on"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("a a a a", "a a a a"),  # as often as somebody might say it
        ("a b a a a a a", "a b a"),
        ("x a b a b a b a b a b", "x a b"),
        ("a b c a b c a b c a b c", "a b c"),
        ("a b c a b c a b c", "a b c a b c a b c"),
        ("a", "a"),
    ],
)
def test_a_loop_is_what_is_written_more_often_than_anybody_says_it(written, kept):
    tokens = [token for word in written.split() for token in tokens_of(word, 0.0)]
    assert "".join(t.text for t in without_loop(tokens)).strip() == kept


def test_a_loop_that_began_in_the_certain_text_is_cut_off():
    before = tokens_of("a", 0.0) * 3
    assert without_loop(tokens_of("a", 0.0) * 5, before) == []


def test_pieces_are_joined_to_words():
    tokens = [Token(1, " hou", 0), Token(2, "ses", 0), Token(3, ".", 0), Token(4, " ", 0), Token(5, "o", 0)]
    assert ["".join(token.text for token in word) for word in words(tokens)] == [" houses.", " o"]


pieces = st.sampled_from([" a", " b", "c", ".", " ", "d", ""])
token = st.builds(lambda text, at: Token(hash(text) % 1000, text, at), pieces, st.floats(0, 20))


@given(data=st.data(), policy=st.sampled_from(["alignatt", "agreement"]), target=st.sampled_from([None, "de"]))
@settings(max_examples=40, deadline=None)
async def test_what_stays_never_changes_whatever_is_heard_and_however_it_is_decoded(data, policy, target):
    """The reader checks every event; the decoder, the detector and the client do as they like."""

    async def anything(window, tasks, given, last, look=None, tails=()):
        assert len(window) <= 4 * SAMPLE_RATE
        language = data.draw(st.sampled_from(["en", "de"]))
        texts = tuple(tuple(data.draw(st.lists(token, max_size=8))) for _ in tasks)
        spoken = tasks[0].language if tasks[0].language != AUTO else language
        return Heard(texts, spoken, data.draw(st.floats(0, 1)))

    options = LiveOptions(
        data.draw(st.sampled_from([AUTO, "en"])), target, policy, window_s=4.0, settle_s=data.draw(st.floats(0, 2)),
        endpointing=Endpointing(silence_s=0.2, long_s=2.0),
    )  # fmt: skip
    session, reader = session_over(anything, options), Reader()
    finalized = 0
    for _ in range(data.draw(st.integers(1, 12))):
        frames = data.draw(st.integers(0, 60))
        chance = data.draw(st.sampled_from([0.0, 1.0, 0.5]))
        noise = data.draw(st.integers(0, 1000))
        samples = np.random.default_rng(noise).standard_normal(frames * FRAME).astype(np.float32)
        reader.read(session.hear(samples, [chance] * frames))
        match data.draw(st.sampled_from(["step", "wait", "finalize", "clear"])):
            case "step":
                await step_all(session, reader)
            case "finalize":
                finalized += 1
                reader.read(session.finalize())
            case "clear":
                session.clear()
                reader.clear()
    reader.read(session.finalize())
    await step_all(session, reader)
    assert reader.finalized == finalized + 1
    assert session.behind_s == 0.0
