"""Live text of models that carry state: every step is decoded once, and certain text never changes."""

import asyncio
import gc
import json
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from convert.hub import resolve
from model import loading
from model.config import TokenizerConfig
from model.decoding import DecodingOptions, Encoded, Generated
from model.family import Model
from model.parakeet.model import ParakeetModel
from model.parakeet.words import ParakeetTokenizer, Spelling
from model.task import Task
from model.tokenizer import load_tokenizer
from server.audio.vad import FRAME, SpeechDetector
from server.cli.doctor.sounds import sound
from server.engine.batching import Batcher
from server.engine.passes import Pass, PassResult, Piece
from server.engine.thread import Engine
from server.errors import EngineStopped
from server.live.endpointing import SAMPLE_RATE, Endpointing
from server.live.events import Lag
from server.live.following import Followed, Follower, FollowingTranscriber
from server.live.policy import Token, words
from server.live.segment import LiveOptions
from server.live.session import LiveSession
from tests.libraries import LIBRARIES, computing_with
from tests.live.scripted import Reader, hear_all, step_all
from tests.live.test_captions import START, captioned, cut
from tests.live.test_captions import until as until_type
from tests.live.test_realtime import BY_SERVER, COMPLETED, opened, speak, texts, until
from tests.parakeet_archives import converted_in

STEP = 1280
PIECES = TokenizerConfig("bpe", {"": "tokenizer.model"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(name): the converted archive of that name."""
    return converted_in(tmp_path_factory.mktemp("parakeets"))


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    return resolve("toy-parakeet", dtype="float32", cache_dir=tmp_path_factory.mktemp("cache"))


@contextmanager
def running(folder, library: str = LIBRARIES[0]) -> Iterator[Engine]:
    """An engine with the model in a folder."""

    def load() -> Model:
        with computing_with(library):
            return loading.load(folder, "float32")

    engine = Engine(load)
    asyncio.run(engine.start())
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module", params=LIBRARIES)
def tiny(request, folder) -> Iterator[Engine]:
    """An engine with random weights: it writes some text of any sound."""
    with running(folder("tdt_ctc"), request.param) as engine:
        yield engine


@pytest.fixture(scope="module", params=LIBRARIES)
def toy(request, toy_folder) -> Iterator[Engine]:
    with running(toy_folder, request.param) as engine:
        yield engine


def session_on(engine: Engine, word_times: bool = True, **options) -> LiveSession:
    return LiveSession(FollowingTranscriber(Follower(engine, word_times)), LiveOptions(**options))


def outcome(batcher: Batcher, wanted: Pass) -> PassResult:
    outcomes = batcher.join([(0, wanted)])
    while batcher.running:
        outcomes += batcher.step()
    [(_, result)] = outcomes
    assert isinstance(result, PassResult), result
    return result


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("archive", "head"), [("tdt", "tdt"), ("rnnt", "rnnt"), ("tdt_ctc", "tdt"), ("ctc", "ctc")])
def test_pieces_of_given_vectors_have_the_tokens_of_the_whole_at_once(folder, monkeypatch, archive, head, library):
    with computing_with(library):
        model = loading.load(folder(archive), "float32")
    assert isinstance(model, ParakeetModel)
    vectors = model.encodings([sound("5.5s")])[0].vectors
    steps = vectors.shape[0]
    # Each sample is its own number, so that the encoder knows which part it was given.
    window = np.arange(steps * STEP, dtype=np.float32)

    def encodings(waveforms: list[np.ndarray], between_layers: object = None) -> list[Encoded]:
        parts = [(int(w[0]) // STEP, int(w[-1]) // STEP + 1) for w in waveforms]
        return [Encoded(vectors[begin:end], end - begin) for begin, end in parts]

    monkeypatch.setattr(model, "encodings", encodings)
    batcher, options = Batcher(model, 16), DecodingOptions(head=head)

    def at_once(end: int):
        return outcome(batcher, Pass(window[: end * STEP], (Task(),), options, piece=Piece())).generated[0]

    whole = at_once(steps)
    assert len(whole.tokens) > 10
    for seed in range(3):
        rng = np.random.default_rng(seed)
        before, end = None, 0
        while end < steps:
            end = min(end + int(rng.integers(0, 7)), steps)
            known = min(end + int(rng.integers(0, 9)), steps)
            begin = before.state.frames if before else 0
            piece = Piece(max(0, begin - int(rng.integers(0, 20))), end, before)
            before, provisional = outcome(
                batcher, Pass(window[: max(known, 1) * STEP], (Task(),), options, piece=piece)
            ).generated
            assert before.tokens == whole.tokens[: len(before.tokens)]
            assert before.tokens + provisional.tokens == at_once(max(known, 1)).tokens
        assert before is not None
        assert (before.tokens, before.frames) == (whole.tokens, whole.frames)
        # The limit on tokens at a step starts anew with each piece; probabilities and times do not.
        assert before.log_probs == pytest.approx(whole.log_probs, abs=1e-4)
        assert before.durations == whole.durations  # type: ignore[attr-defined]


@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_certain_text_never_changes_whatever_is_heard_and_however_it_comes(tiny, data):
    """The reader checks every event."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    length = data.draw(st.integers(1, 25 * SAMPLE_RATE))
    waveform = (rng.standard_normal(length) * data.draw(st.sampled_from([0.0, 0.01, 0.3]))).astype(np.float32)
    blocks = data.draw(st.lists(st.tuples(st.integers(1, 200), st.sampled_from([0.0, 1.0])), min_size=1, max_size=8))
    probabilities = [p for count, p in blocks for _ in range(count)][: length // FRAME]
    probabilities += [0.0] * (length // FRAME - len(probabilities))
    silence_s = data.draw(st.sampled_from([0.1, 0.5, 5.0]))
    session = session_on(tiny, step_s=data.draw(st.sampled_from([0.4, 3.0])), endpointing=Endpointing(0.5, silence_s))
    reader = await hear_all(session, waveform, probabilities, data.draw(st.sampled_from([1600, 40_000, 10**6])))
    assert reader.finalized == 1
    assert not session.due


async def spoken(engine: Engine, waveform: np.ndarray, piece: int, **options) -> Reader:
    session, detector, reader = session_on(engine, **options), SpeechDetector(), Reader()
    for at in range(0, len(waveform), piece):
        part = waveform[at : at + piece]
        reader.read(session.hear(part, detector.feed(part)))
        await step_all(session, reader)
    reader.read(session.finalize())
    await step_all(session, reader)
    return reader


@pytest.mark.parametrize("language", ["en", "de", "es", "fr"])
async def test_toy_speech_is_written_as_it_is_said_with_its_times(toy, samples, language):
    waveform, _ = soundfile.read(samples[language].path, dtype="float32")
    reader = await spoken(toy, waveform, 1600, language=language)
    assert reader.text == samples[language].text
    found = [word for result in reader.finals for word in result.words]
    for word, true in zip(found, samples[language].words, strict=True):
        assert word.start == pytest.approx(true["start"], abs=0.25)
        assert word.end == pytest.approx(true["end"], abs=0.35)


async def test_text_becomes_certain_while_the_speaker_goes_on(toy, samples):
    waveform = np.tile(soundfile.read(samples["en"].path, dtype="float32")[0], 2)
    # No pause is long enough to end a segment.
    reader = await spoken(toy, waveform, 1600, language="en", endpointing=Endpointing(silence_s=5.0, long_s=30.0))
    open_results = [result for result in reader.results if not result.is_final]
    assert any(0 < result.stable < len(result.text) for result in open_results)
    assert max(result.stable for result in open_results) > len(samples["en"].text) / 2
    assert len(reader.finals) == 1
    assert reader.text == " ".join([samples["en"].text] * 2)


async def test_each_step_is_decoded_once_and_no_look_encodes_more_than_the_context(toy, samples, monkeypatch):
    waveform = np.tile(soundfile.read(samples["en"].path, dtype="float32")[0], 4)[: 18 * SAMPLE_RATE]
    passes, run = [], toy.run

    async def watched(wanted: Pass, priority: int) -> PassResult:
        passes.append(wanted)
        return await run(wanted, priority)

    monkeypatch.setattr(toy, "run", watched)
    follower = Follower(toy, False, left_s=4.0, right_s=1.0)
    options = LiveOptions(endpointing=Endpointing(silence_s=30, long_s=30))
    session = LiveSession(FollowingTranscriber(follower), options)
    await hear_all(session, waveform, [1.0] * (len(waveform) // FRAME))
    pieces = [wanted.piece for wanted in passes]
    assert len(pieces) > 40
    assert pieces[-1].end is None
    for piece, following in pairwise(pieces):
        assert following.begin == max(piece.end, piece.begin)
    for wanted in passes[:-1]:
        assert wanted.length_s - wanted.piece.context * 0.08 <= 4.0 + 0.4 + 1.0 + 0.16


LONG_TURNS = {
    "at pauses": {"endpointing": Endpointing(silence_s=5.0, long_s=2.0)},
    "at quiet places": {"endpointing": Endpointing(silence_s=5.0, long_s=100.0), "window_s": 5.0},
}


@pytest.mark.parametrize("piece", [6400, 10**7])
@pytest.mark.parametrize("cuts", LONG_TURNS)
async def test_a_long_turn_loses_nothing_where_it_is_cut(toy, samples, cuts, piece):
    waveform = np.tile(soundfile.read(samples["de"].path, dtype="float32")[0], 2)
    reader = await spoken(toy, waveform, piece, language="de", **LONG_TURNS[cuts])
    assert reader.text == " ".join([samples["de"].text] * 2)
    assert len(reader.finals) > 2
    assert {result.turn for result in reader.finals} == {1}
    if piece == 6400:
        assert reader.of(Lag) == []


async def followed_in_two(follow: Follower, waveform: np.ndarray, cut: int) -> list[str]:
    """The texts before and after a cut at a sample, with the words of each."""
    first = await follow(waveform[: cut + 2 * SAMPLE_RATE], Task("en"), None, True, cut)
    assert first.next
    assert len(first.next.lead) <= 4.08 * SAMPLE_RATE
    second = await follow(waveform[cut:], Task("en"), first.next, True)
    assert [word.start for word in second.words] == sorted(word.start for word in second.words)
    assert max(word.end for word in second.words) <= (len(waveform) - cut) / SAMPLE_RATE + 0.001
    for followed in (first, second):
        assert [word.word for word in followed.words] == shown(followed.certain).split()
    return [shown(first.certain), shown(second.certain)]


@pytest.mark.parametrize("language", ["en", "de"])
async def test_no_word_is_lost_or_split_wherever_a_turn_is_cut(toy, samples, language):
    waveform = np.tile(soundfile.read(samples[language].path, dtype="float32")[0], 2)
    # Later cuts have all of the left context, and drop what is before it.
    for at in range(SAMPLE_RATE // 2, len(waveform) - SAMPLE_RATE, 11 * SAMPLE_RATE // 10):
        texts = await followed_in_two(Follower(toy, word_times=True, left_s=4.0), waveform, at)
        assert " ".join(texts).split() == samples[language].text.split() * 2, at / SAMPLE_RATE


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_text_is_spelled_as_a_transcript_and_only_grows(folder, data):
    """Without a space before a mark, also if the vocabulary has one there."""
    tokenizer = load_tokenizer(folder("tdt_ctc"), PIECES, single=ParakeetTokenizer)
    info = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(languages=(), step_s=0.08))
    follower = Follower(SimpleNamespace(info=info), word_times=False)  # type: ignore[arg-type]
    marks = [i for i in range(tokenizer.vocab_size) if not any(c.isalnum() for c in tokenizer.piece(i))]
    written = data.draw(st.lists(st.sampled_from(marks) | st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    heard: tuple[Token, ...] = ()
    while len(heard) < len(written):
        end = data.draw(st.integers(len(heard) + 1, len(written)))
        so_far = Generated(0, written[:end], [0.0] * end, frames=list(range(end)))
        heard += follower._tokens(heard, so_far, 0.0, len(heard))
        assert shown(heard) == Spelling(tokenizer).text(written[:end])
        assert [word.strip() for word in ("".join(t.text for t in each) for each in words(heard)) if word.strip()] == (
            shown(heard).split()
        )


def shown(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens).strip()


async def test_a_pause_longer_than_the_right_context_loses_nothing(toy, samples):
    """The silence is decoded for good before the turn ends, and the turn's end lies before it."""
    waveform, _ = soundfile.read(samples["en"].path, dtype="float32")
    paused = np.concatenate([waveform, np.zeros(6 * SAMPLE_RATE, np.float32), waveform])
    reader = await spoken(toy, paused, 1600, language="en", endpointing=Endpointing(silence_s=4.0, long_s=30.0))
    assert reader.text == f"{samples['en'].text} {samples['en'].text}"
    assert [result.ends_turn for result in reader.finals] == [True, True]


@pytest.mark.parametrize("piece", [777, 10**6])
async def test_the_text_does_not_depend_on_how_the_sound_comes(toy, samples, piece):
    waveform = np.tile(soundfile.read(samples["en"].path, dtype="float32")[0], 2)
    assert (await spoken(toy, waveform, piece, language="en")).text == " ".join([samples["en"].text] * 2)


async def test_a_turn_that_is_dropped_while_it_is_decoded_leaves_nothing_to_the_next(toy, samples, monkeypatch):
    waveform, _ = soundfile.read(samples["en"].path, dtype="float32")
    session, run = session_on(toy, language="en"), toy.run

    async def cleared(wanted: Pass, priority: int) -> PassResult:
        session.clear()
        return await run(wanted, priority)

    session.hear(waveform, [1.0] * (len(waveform) // FRAME))
    with monkeypatch.context() as patch:
        patch.setattr(toy, "run", cleared)
        assert await session.step() == []
    detector, reader = SpeechDetector(), Reader()
    await step_all(session, reader)
    reader.read(session.hear(waveform, detector.feed(waveform)))
    reader.read(session.finalize())
    await step_all(session, reader)
    assert reader.text == samples["en"].text


async def test_a_session_that_is_dropped_frees_its_state(tiny):
    session, rng = session_on(tiny), np.random.default_rng(0)
    session.hear(rng.standard_normal(5 * SAMPLE_RATE).astype(np.float32), [1.0] * (5 * SAMPLE_RATE // FRAME))
    await session.step()
    assert session._current is not None
    followed = session._current.followed
    assert isinstance(followed, Followed)
    assert type(followed.text.state.memory) is np.ndarray
    state = weakref.ref(followed.text.state)
    del session, followed
    for _ in range(100):
        gc.collect()
        if state() is None:
            break
        # The engine's thread lets go of its last pass a moment after that has its result.
        await asyncio.sleep(0.01)
    assert state() is None


async def test_a_session_whose_engine_stops_says_so(folder):
    engine = Engine(lambda: loading.load(folder("rnnt"), "float32"))
    await engine.start()
    session = session_on(engine)
    session.hear(np.zeros(SAMPLE_RATE, np.float32), [1.0] * (SAMPLE_RATE // FRAME))
    await engine.stop()
    with pytest.raises(EngineStopped):
        await session.step()


@pytest.fixture(scope="module")
def url(start_server, cache) -> str:
    client = start_server(model="toy-parakeet")
    return str(client.base_url).replace("http", "ws", 1).rstrip("/")


async def test_captions_have_the_messages_that_every_model_has(url, pcm, samples):
    shown, messages = await captioned(url, cut(pcm(), 3200))
    assert " ".join(shown.words) == samples["en"].text
    # A lag is told only by a slow machine.
    kinds = {message["type"] for message in messages} - {"lag"}
    assert kinds == {"speech_started", "result", "speech_stopped", "done"}
    found = [word for message in shown.finals for word in message["words"]]
    assert [word["word"] for word in found] == [word["word"] for word in samples["en"].words]


async def test_the_language_of_a_segment_is_guessed_from_its_text(url, pcm, samples):
    shown, _ = await captioned(url, cut(pcm("de"), 3200), language="auto")
    assert " ".join(shown.words) == samples["de"].text
    assert {message["language"] for message in shown.finals} == {"de"}


async def test_a_translation_is_refused(url):
    async with connect(f"{url}/stream", proxy=None) as ws:
        await ws.send(json.dumps(START | {"target_language": "de"}))
        message = await until_type(ws, "error")
    assert message[-1]["fatal"]
    assert "does not translate" in message[-1]["message"]


async def test_realtime_deltas_are_the_transcript(url, pcm, samples):
    async with opened(url, BY_SERVER) as ws:
        await speak(ws, pcm(rate=24_000, tail_s=1.0))
        messages = await until(ws, COMPLETED, 2)
    assert " ".join(texts(messages)) == samples["en"].text


async def test_many_sessions_at_once_write_what_each_would_alone(url, pcm, samples):
    heard = await asyncio.gather(*(captioned(url, cut(pcm(each), 3200), language=each) for each in samples))
    assert [" ".join(shown.words) for shown, _ in heard] == [each.text for each in samples.values()]
