"""Audio of any length through an engine that knows what is said at every second."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.decoding import DecodingOptions, detection_from
from model.task import Task
from model.transcript import Segment, Transcript, Word
from server.engine.passes import Pass, PassResult, Timing
from server.errors import QueueFull, TranscriptionFailed
from server.longform.cutting import SAMPLE_RATE, Cutting
from server.longform.transcribe import AT_ONCE, Progress, transcribe_audio

SAMPLES = Path(__file__).parents[2] / "convert" / "toy" / "samples"
CUTTING = Cutting(10.0, 15.0, 2.0)
SPOKEN = soundfile.read(SAMPLES / "en.flac", dtype="float32")[0]
SENTENCE = np.concatenate([SPOKEN, np.zeros(SAMPLE_RATE, np.float32)])
SENTENCE_S = len(SENTENCE) / SAMPLE_RATE
# How probable the engine finds German, whatever is said.
GERMAN = 0.97


class Engine:
    """Writes each pass as "w12.": the whole second of the long audio that it begins in, found by its samples."""

    info = None

    def __init__(self, sound: np.ndarray):
        self.sound = sound
        self.passes: list[Pass] = []
        self.running = self.most_running = self.together = 0
        self.text = lambda start_s, wanted: f"w{round(start_s)}."
        self.delay_s = lambda start_s: 0.0

    async def run(self, wanted: Pass, priority: int = 1) -> PassResult:
        self.passes.append(wanted)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        start_s = self.place(wanted.waveform)
        try:
            await asyncio.sleep(self.delay_s(start_s))
            while self.most_running < self.together:
                await asyncio.sleep(0.01)
            return self.result(self.text(start_s, wanted), wanted)
        finally:
            self.running -= 1

    def place(self, waveform: np.ndarray) -> float:
        """Where it is in the long audio, in seconds."""
        middle = waveform[len(waveform) // 2 :][:400]
        size, found = len(middle), self.sound
        starts = np.flatnonzero(found[: len(found) - size + 1] == middle[0])
        at = next(int(i) for i in starts if np.array_equal(found[i : i + size], middle))
        return (at - len(waveform) // 2) / SAMPLE_RATE

    @staticmethod
    def result(text: str, wanted: Pass) -> PassResult:
        task = wanted.tasks[0]
        detection = None
        if task.language == "auto" or wanted.detect_language:
            detection = detection_from({"de": GERMAN, "en": 1 - GERMAN})
        language = "de" if task.language == "auto" else task.language
        duration = len(wanted.waveform) / SAMPLE_RATE
        words = tuple(Word(word, 0.5, 1.0) for word in text.split()) if task.timestamps == "word" else ()
        segments = (Segment(0.0, duration, text, (1,), words),) if text else ()
        transcript = Transcript(text, language, language, duration, segments, "model" if words else None)
        return PassResult((transcript,), (), (), detection, Timing(encode_s=1.0))


def marked(seconds: float) -> np.ndarray:
    """Speech with pauses, each sample a little different from all others."""
    sound = np.tile(SENTENCE, int(seconds / SENTENCE_S) + 1)[: int(seconds * SAMPLE_RATE)]
    return sound + np.random.default_rng(0).uniform(-1e-4, 1e-4, len(sound)).astype(np.float32)


@pytest.fixture(scope="module")
def minute() -> np.ndarray:
    return marked(48)


async def test_a_short_audio_is_exactly_one_pass(minute):
    sound = minute[: 10 * SAMPLE_RATE]
    engine = Engine(sound)
    done = await transcribe_audio(engine, sound, Task("en"), cutting=CUTTING)
    assert [len(wanted.waveform) for wanted in engine.passes] == [len(sound)]
    assert done.text == "w0."
    assert done.duration == 10.0


async def test_in_one_pass_a_long_audio_is_not_cut_and_not_decoded_again(minute):
    engine = Engine(minute)
    engine.text = lambda start_s, wanted: "na " * 20
    blocks = iter(np.array_split(minute, 50))
    done = await transcribe_audio(engine, blocks, Task("en"), DecodingOptions(one_pass=True), cutting=CUTTING)
    assert [(len(wanted.waveform), wanted.options.one_pass) for wanted in engine.passes] == [(len(minute), True)]
    assert (done.text, done.duration) == ("na " * 20, 48.0)


async def test_pieces_run_side_by_side_a_bounded_number_and_come_in_order(minute):
    engine = Engine(minute)
    engine.together = AT_ONCE
    told: list[Progress] = []
    blocks = iter(np.array_split(minute, 50))
    done = await transcribe_audio(engine, blocks, Task("en"), on_progress=told.append, cutting=CUTTING, total_s=48.0)
    starts = [int(word[1:-1]) for word in done.text.split()]
    assert starts == sorted(starts)
    assert len(starts) == len(engine.passes) >= 4
    assert engine.most_running == AT_ONCE
    assert [s for p in told for s in p.segments] == list(done.segments)
    assert [p.done_s for p in told] == sorted(p.done_s for p in told)
    assert told[-1].done_s == pytest.approx(48.0)
    assert done.timing.encode_s == len(engine.passes)
    for word, segment in zip(starts, done.segments, strict=True):
        assert segment.start == pytest.approx(word, abs=0.51)


async def test_the_language_of_the_first_piece_is_that_of_the_rest(minute):
    engine = Engine(minute)
    done = await transcribe_audio(engine, minute, Task("auto"), cutting=CUTTING)
    assert [wanted.tasks[0].language for wanted in engine.passes] == ["auto"] + ["de"] * (len(engine.passes) - 1)
    assert done.language == "de"
    assert done.detection is not None
    each = await transcribe_audio(Engine(minute), minute, Task("auto"), detect_each=True)
    assert {segment.language for segment in each.segments} == {"de"}


async def test_speech_in_another_language_than_the_one_given_gets_a_warning(minute):
    engine = Engine(minute)
    done = await transcribe_audio(engine, minute, Task("en"), cutting=CUTTING)
    assert [wanted.detect_language for wanted in engine.passes] == [True] + [False] * (len(engine.passes) - 1)
    (warning,) = done.warnings
    assert warning.to_dict() == {
        "code": "language_mismatch",
        "message": "The speech sounds like German (probability 0.97), but the language is set to English, "
        "so the text may be a translation. Set language to 'de' or 'auto'.",
        "language": "en",
        "detected_language": "de",
        "language_probability": 0.97,
    }
    assert (done.language, done.detection) == ("en", None)
    assert "language_probability" not in done.to_dict("request")


@pytest.mark.parametrize("task", [Task("de"), Task("auto"), Task("de", "en")])
async def test_the_right_language_and_one_that_is_detected_get_no_warning(minute, task: Task):
    assert (await transcribe_audio(Engine(minute), minute, task, cutting=CUTTING)).warnings == ()


async def test_a_translation_from_another_language_than_the_one_given_gets_a_warning_too(minute):
    done = await transcribe_audio(Engine(minute), minute, Task("en", "de"), cutting=CUTTING)
    assert [warning.code for warning in done.warnings] == ["language_mismatch"]


async def test_a_detection_that_is_not_sure_gives_no_warning(minute, monkeypatch):
    monkeypatch.setitem(globals(), "GERMAN", 0.94)
    assert (await transcribe_audio(Engine(minute), minute, Task("en"), cutting=CUTTING)).warnings == ()


async def test_the_language_is_checked_in_the_first_piece_with_two_seconds_of_speech(minute):
    for seconds, checked in ((1.9, False), (2.1, True)):
        sound = minute[SAMPLE_RATE : SAMPLE_RATE + round(seconds * SAMPLE_RATE)]
        engine = Engine(sound)
        await transcribe_audio(engine, sound, Task("en"))
        assert [wanted.detect_language for wanted in engine.passes] == [checked]
    word = SPOKEN[round(0.4 * SAMPLE_RATE) : round(1.4 * SAMPLE_RATE)]
    sound = np.concatenate([word, np.zeros(4 * SAMPLE_RATE, np.float32), minute])
    engine = Engine(sound)
    await transcribe_audio(engine, sound, Task("en"), cutting=CUTTING)
    assert [wanted.detect_language for wanted in engine.passes][:3] == [False, True, False]


async def test_the_warning_stays_where_the_piece_is_decoded_again_for_a_loop(minute):
    engine = Engine(minute)
    engine.text = lambda start_s, wanted: "as said." if wanted.options.beam_size else "so so so so so so so so"
    done = await transcribe_audio(engine, minute[: 14 * SAMPLE_RATE], Task("en"), cutting=CUTTING)
    assert (done.text, len(done.warnings)) == ("as said.", 1)


async def test_words_are_timed_for_the_merge_alone_where_nobody_asked_for_times():
    sound = marked(24)
    for at_silences, asked in ((True, "none"), (False, "word")):
        engine = Engine(sound)
        rules = replace(CUTTING, at_silences=at_silences)
        done = await transcribe_audio(engine, sound, Task("en"), cutting=rules)
        assert {wanted.tasks[0].timestamps for wanted in engine.passes} == {asked}
        assert {segment.words for segment in done.segments} == {()}
        assert done.timestamps_source is None
        timed = await transcribe_audio(Engine(sound), sound, Task("en", timestamps="word"), cutting=rules)
        assert {len(segment.words) for segment in timed.segments} == {1}
        assert timed.timestamps_source == "model"


async def test_words_in_the_midst_of_a_long_silence_were_not_said():
    sound = np.concatenate([SPOKEN, np.zeros(4 * SAMPLE_RATE, np.float32), SPOKEN])
    silence_s = len(SPOKEN) / SAMPLE_RATE

    class Inventive(Engine):
        """Writes a word every half second from its second on."""

        @staticmethod
        def result(text: str, wanted: Pass) -> PassResult:
            duration = len(wanted.waveform) / SAMPLE_RATE
            words = tuple(Word(f"{i}", 1 + i / 2, 1.4 + i / 2) for i in range(max(1, int(2 * duration) - 3)))
            segment = Segment(words[0].start, words[-1].end, " ".join(w.word for w in words), (1,), words)
            return PassResult((Transcript("", "en", "en", duration, (segment,), "model"),), (), (), None, Timing())

    rules = Cutting(10.0, 15.0, 2.0, at_silences=False)
    done = await transcribe_audio(Inventive(sound), sound, Task("en", timestamps="word"), cutting=rules)
    starts = [word.start for segment in done.segments for word in segment.words]
    inside = [at for at in starts if silence_s + 0.2 < at < silence_s + 3.6]
    assert (inside, len(starts) > 10) == ([], True)


async def test_silence_gives_no_words_and_no_pass():
    sound = np.zeros(60 * SAMPLE_RATE, np.float32)
    engine = Engine(sound)
    for seconds in (5, 60):
        done = await transcribe_audio(engine, sound[: seconds * SAMPLE_RATE], Task("en"), cutting=CUTTING)
        assert (done.text, done.segments, done.duration) == ("", (), seconds)
    assert engine.passes == []


async def test_a_loop_is_decoded_again_with_a_wider_search_and_then_in_halves(minute):
    stubborn = False

    def text(start_s: float, wanted: Pass) -> str:
        if wanted.options.beam_size and not stubborn:
            return "as it was said."
        return "so so so so so so so so" if len(wanted.waveform) > 8 * SAMPLE_RATE else f"half {start_s:.0f}."

    sound = minute[: 14 * SAMPLE_RATE]
    for expected in ("as it was said.", "half 0."):
        engine = Engine(sound)
        engine.text = text
        done = await transcribe_audio(engine, sound, Task("en"), cutting=CUTTING)
        assert done.text.startswith(expected)
        assert [wanted.options.beam_size for wanted in engine.passes][:2] == [None, 4]
        stubborn = True
    unguarded = await transcribe_audio(engine, sound, Task("en"), cutting=CUTTING, loop_guard=False)
    assert unguarded.text == "so so so so so so so so"


async def test_speech_without_text_is_decoded_by_itself_and_else_said(minute, caplog):
    engine = Engine(minute)
    lost = False

    def text(start_s: float, wanted: Pass) -> str:
        whole = len(wanted.waveform) > 9.2 * SAMPLE_RATE
        return "" if lost or whole else "found."

    engine.text = text
    done = await transcribe_audio(engine, minute, Task("en", timestamps="word"), cutting=CUTTING)
    assert "found." in done.text
    lost = True
    done = await transcribe_audio(engine, minute, Task("en", timestamps="word"), cutting=CUTTING)
    assert done.text == ""
    assert len(done.uncovered) >= 4
    assert "no text for the speech from" in caplog.text


async def test_speech_that_nothing_was_written_from_is_put_in_where_it_was_said():
    sound = marked(40)
    rules = Cutting(10.0, 15.0, 2.0)

    class Forgetful(Engine):
        """Writes the first and the last second of a whole piece; all of a part of one. Its attention says so."""

        @staticmethod
        def result(text: str, wanted: Pass) -> PassResult:
            duration = len(wanted.waveform) / SAMPLE_RATE
            whole, timed = duration > 6.5, wanted.tasks[0].timestamps != "none"
            seconds = [0, int(duration) - 1] if whole else range(int(duration))
            words = tuple(Word("edge" if whole else "found", i, i + 0.9) for i in seconds)
            line = Segment(0.0, duration, " ".join(w.word for w in words), (1,) * len(words), words if timed else ())
            attention = np.eye(int(duration) + 1)[list(seconds)]
            transcript = Transcript(line.text, "en", "en", duration, (line,), "model" if timed else None)
            return PassResult((transcript,), (), (attention,) if wanted.attention else (), None, Timing())

    for asked in ("word", "none"):
        engine = Forgetful(sound)
        done = await transcribe_audio(engine, sound, Task("en", timestamps=asked), cutting=rules)
        texts = [word for segment in done.segments for word in segment.text.split()]
        first, last = texts.index("found"), len(texts) - 1 - texts[::-1].index("found")
        assert (texts[0], texts[first - 1], texts[last + 1], texts[-1]) == ("edge",) * 4
        assert texts.count("found") > 3
        assert any(segment.words for segment in done.segments) == (asked == "word")
        assert any(wanted.attention for wanted in engine.passes) == (asked == "none")
    assert "found" not in (await transcribe_audio(engine, sound, Task("en"), cutting=rules, loop_guard=False)).text


async def test_a_full_queue_refuses_a_new_file_and_makes_one_under_way_wait(minute):
    engine, refusals = Engine(minute), 0
    run = engine.run

    async def busy(wanted: Pass, priority: int = 1) -> PassResult:
        nonlocal refusals
        if len(engine.passes) >= free and refusals < 2:
            refusals += 1
            raise QueueFull("full")
        return await run(wanted, priority)

    engine.run = busy  # type: ignore[method-assign]
    free = 2
    done = await transcribe_audio(engine, minute, Task("en"), cutting=CUTTING)
    assert (refusals, len(done.segments)) == (2, len(engine.passes))
    # A new one is new also where what it begins with is left out.
    for sound in (minute, np.concatenate([np.zeros(4 * SAMPLE_RATE, np.float32), minute])):
        free, refusals = 0, 0
        with pytest.raises(QueueFull):
            await transcribe_audio(Runner(busy), sound, Task("en"), cutting=CUTTING)


async def test_only_the_first_pass_of_a_file_has_to_start_in_time(minute):
    engine = Engine(minute)
    await transcribe_audio(engine, minute, Task("en"), cutting=CUTTING, start_by=12.0)
    assert [wanted.start_by for wanted in engine.passes] == [12.0] + [None] * (len(engine.passes) - 1)
    assert len(engine.passes) > 2


class Runner:
    info = None

    def __init__(self, run):
        self.run = run


async def test_a_failure_or_a_cancellation_takes_the_other_pieces_out(minute):
    engine = Engine(minute)
    engine.delay_s = lambda start_s: 30.0 if start_s > 1 else 0.05
    engine.text = lambda start_s, wanted: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await transcribe_audio(engine, minute, Task("en"), cutting=CUTTING)
    assert engine.running == 0
    waiting = Engine(minute)
    waiting.delay_s = lambda start_s: 30.0
    work = asyncio.create_task(transcribe_audio(waiting, minute, Task("en"), cutting=CUTTING))
    while not waiting.running:
        await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert waiting.running == 0


async def test_what_reading_the_audio_raises_reaches_the_caller_and_the_event_loop_stays_free(minute):
    threads = set()

    def blocks():
        for block in np.array_split(minute, 10):
            threads.add(threading.current_thread())
            yield block
        raise TranscriptionFailed("broken")

    with pytest.raises(TranscriptionFailed, match="broken"):
        await transcribe_audio(Engine(minute), blocks(), Task("en"), cutting=CUTTING)
    assert threading.main_thread() not in threads
