"""What a session's decoder asks the engine for at each look at a window, and what it goes on from."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from model.task import AUTO, Task
from server.engine.passes import Pass, Timing
from server.live.decoder import ENDS_AFTER, STARTS_BEFORE, EngineDecoder, timed_draft
from server.live.endpointing import SAMPLE_RATE
from server.live.policy import Token
from server.live.segment import LiveOptions
from tests.live.scripted import ScriptedDecoder, hear_all, live, said, session_over, sound, speech_probabilities

# The token for the time 0.
FIRST_TIME = 1000


class Engine:
    """Hears nothing, and leaves a numbered look of each pass whose audio grows."""

    info = SimpleNamespace(
        tokenizer=SimpleNamespace(
            text=lambda ids: "", is_special=lambda i: False, time_steps={FIRST_TIME + step: step for step in range(30)}
        ),
        config=SimpleNamespace(step_s=0.08, writes_times=True),
    )

    def __init__(self) -> None:
        self.passes: list[Pass] = []

    async def run(self, wanted: Pass, priority: int) -> SimpleNamespace:
        self.passes.append(wanted)
        texts = len(wanted.tasks)
        return SimpleNamespace(
            generated=(SimpleNamespace(tokens=[]),) * texts,
            attention=(np.zeros((0, 5)),) * texts,
            transcripts=(SimpleNamespace(language="en", segments=()),) * texts,
            detection=None,
            timing=Timing(),
            look=len(self.passes) if wanted.grows else None,
        )


@pytest.fixture
def engine() -> Engine:
    return Engine()


def window(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


async def test_a_window_that_grows_is_gone_on_with_and_a_complete_one_is_encoded_whole(engine):
    decode, look = EngineDecoder(engine, word_times=True), None  # type: ignore[arg-type]
    for seconds, last in ((1.2, False), (1.6, False), (2.0, True)):
        heard = await decode(window(seconds), (Task("en"), Task("en", "de")), ((), ()), last, look)
        look = heard.look
    assert [(wanted.grows, wanted.look) for wanted in engine.passes] == [(True, None), (True, 1), (False, 2)]
    assert [len(wanted.tasks) for wanted in engine.passes] == [2, 2, 3]
    assert look is None


async def test_a_window_that_is_padded_or_of_an_unknown_language_leaves_no_look(engine):
    decode = EngineDecoder(engine, word_times=False)  # type: ignore[arg-type]
    looks = []
    for seconds, language in ((0.6, "en"), (1.0, "en"), (3.0, AUTO)):
        looks.append((await decode(window(seconds), (Task(language),), ((),), False)).look)
    assert looks == [None, 2, None]
    # A padded window is encoded together with other looks all the same.
    assert [wanted.grows for wanted in engine.passes] == [True, True, False]
    assert [len(wanted.waveform) for wanted in engine.passes] == [SAMPLE_RATE, SAMPLE_RATE, 3 * SAMPLE_RATE]


CERTAIN = (Token(7, " one", 0.48), Token(8, "s", 0.56))
TAIL = (Token(9, " two", 0.88), Token(5, ".", 0.96))


def time_tokens(*steps: int) -> list[int]:
    return [FIRST_TIME + step for step in steps]


async def test_the_timed_text_of_a_complete_window_has_what_was_found_so_far_as_its_draft(engine):
    decode = EngineDecoder(engine, word_times=True)  # type: ignore[arg-type]
    tasks, given, tails = (Task("en"), Task("en", "de")), (CERTAIN, ()), (TAIL, CERTAIN)
    for last in (False, True):
        await decode(window(2.0), tasks, given, last, None, tails)
    growing, complete = engine.passes
    assert growing.drafts == ()
    assert complete.prefixes == ((7, 8), (), ())
    # Tokens attend to steps 6 and 7, then 11 and 12. The first word ends where the second begins.
    first = time_tokens(6 - STARTS_BEFORE, 11 - STARTS_BEFORE)
    second = time_tokens(11 - STARTS_BEFORE, 12 + ENDS_AFTER)
    assert complete.drafts == ((), (), (first[0], 7, 8, first[1], second[0], 9, 5, second[1]))


async def test_a_model_that_writes_no_times_has_the_words_alone_as_its_draft(engine, monkeypatch):
    monkeypatch.setattr(engine.info.config, "writes_times", False)
    decode = EngineDecoder(engine, word_times=True)  # type: ignore[arg-type]
    await decode(window(2.0), (Task("en"),), (CERTAIN,), True, None, (TAIL,))
    assert engine.passes[0].drafts == ((), (7, 8, 9, 5))


def test_guessed_times_are_in_order_and_stop_where_the_model_has_none():
    tokenizer = SimpleNamespace(time_steps={FIRST_TIME + step: step for step in range(30)})
    heard = [Token(7, " one", 0.0), Token(8, " two", 0.08), Token(9, " three", 0.0), Token(5, " four", 9.0)]
    draft = timed_draft(heard, tokenizer, 0.08)  # type: ignore[arg-type]
    assert [token for token in draft if token < FIRST_TIME] == [7, 8, 9]
    steps = [token - FIRST_TIME for token in draft if token >= FIRST_TIME]
    assert len(steps) == 6
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert timed_draft([], tokenizer, 0.08) == ()  # type: ignore[arg-type]


@dataclass
class Looking(ScriptedDecoder):
    """Leaves a numbered look of each call, and notes where its window began and which look it was given."""

    given: list[tuple[float, int | None]] = field(default_factory=list)

    async def __call__(self, window, tasks, given, last, look=None, tails=()):
        self.given.append((float(window[0]), look))
        heard = await super().__call__(window, tasks, given, last)
        return replace(heard, look=len(self.given))


async def test_a_look_is_of_one_segment_and_goes_from_each_call_to_the_next():
    script = said("one two three | four five six")
    decoder = Looking(script)
    reader = await live(script, decoder)
    assert reader.text == "one two three four five six"
    starts = sorted({start for start, _ in decoder.given})
    assert len(starts) == 2
    assert len(decoder.given) > 6
    for i, (start, look) in enumerate(decoder.given):
        begins = i == 0 or decoder.given[i - 1][0] != start
        assert look == (None if begins else i)


async def test_a_session_keeps_no_look_between_segments():
    script = said("one two three")
    session = session_over(Looking(script), LiveOptions())
    waveform = sound(script, tail_s=3.0)
    await hear_all(session, waveform, speech_probabilities(script, len(waveform)))
    assert session._current is None
