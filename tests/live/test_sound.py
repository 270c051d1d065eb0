"""A client's bytes to samples: companding, odd pieces, bounds, and clients that do not read."""

import asyncio
from types import SimpleNamespace

import av
import numpy as np
import pytest

from model.task import Task
from server.engine.passes import Timing
from server.engine.waiting import LIVE
from server.errors import AudioError, QueueFull
from server.live import connection
from server.live.capacity import LiveCapacity, Seat
from server.live.connection import Bounds, LiveConnection
from server.live.decoder import token_texts
from server.live.policy import Token
from server.live.sound import RawSound
from server.web.routes import websockets
from server.web.routes.websockets import NotReading, Outbox
from tests.live.scripted import ScriptedDecoder, said, session_over, sound, speech_probabilities

CODECS = {"audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}


def companded(samples: np.ndarray, law: str) -> bytes:
    """8 kHz int16 → G.711, by FFmpeg."""
    encoder = av.CodecContext.create(CODECS[law], "w")
    encoder.sample_rate, encoder.layout, encoder.format = 8_000, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.rate = 8_000
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


class Heard:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.samples = np.zeros(0, np.float32)

    async def __call__(self, samples: np.ndarray) -> None:
        self.samples = np.concatenate([self.samples, samples])


@pytest.mark.parametrize(("encoding", "law"), [("ulaw", "audio/pcmu"), ("alaw", "audio/pcma")])
async def test_g711_is_expanded_as_ffmpeg_does_it(encoding, law):
    codes = bytes(range(256))
    decoder = av.CodecContext.create(CODECS[law], "r")
    decoder.sample_rate, decoder.layout = 8_000, "mono"
    (frame,) = decoder.decode(av.Packet(codes))
    heard = Heard()
    # at 16 kHz nothing is resampled
    await RawSound(encoding, 16_000, heard).write(codes)
    assert heard.samples == pytest.approx(frame.to_ndarray()[0] / 32768, abs=1e-6)


async def test_half_a_sample_waits_for_its_other_half():
    samples = np.array([1, -2, 300, -32768, 32767], "<i2")
    heard = Heard()
    raw = RawSound("pcm_s16le", 16_000, heard)
    for byte in samples.tobytes():
        await raw.write(bytes([byte]))
    assert heard.samples == pytest.approx(samples / 32768)


async def test_resampled_pieces_are_the_resampled_whole():
    tone = (np.sin(np.arange(48_000) / 30) * 10_000).astype("<i2").tobytes()
    whole, pieces = Heard(), Heard()
    for heard, size in ((whole, len(tone)), (pieces, 777)):
        raw = RawSound("pcm_s16le", 48_000, heard)
        for at in range(0, len(tone), size):
            await raw.write(tone[at : at + size])
        await raw.flush()
    assert len(whole.samples) == 16_000
    assert pieces.samples == pytest.approx(whole.samples, abs=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
async def test_nothing_is_heard_of_what_was_cleared_and_all_of_what_comes_then(rate):
    loud, then = np.full(rate, 20_000, "<i2").tobytes(), np.full(rate, 100, "<i2").tobytes()
    heard, alone = Heard(), Heard()
    raw, other = RawSound("pcm_s16le", rate, heard), RawSound("pcm_s16le", rate, alone)
    # half a sample waits, and at other rates what the resampler holds back
    await raw.write(loud[:-1])
    raw.clear()
    before = len(heard.samples)
    for each in (raw, other):
        await each.write(then)
        await each.flush()
    assert heard.samples[before:] == pytest.approx(alone.samples)
    assert len(alone.samples) == 16_000


@pytest.mark.parametrize("rate", [7_999, 192_001])
def test_a_rate_out_of_bounds_is_named(rate):
    with pytest.raises(AudioError, match=str(rate)):
        RawSound("pcm_s16le", rate, Heard())


async def test_no_more_sound_is_taken_than_may_wait_for_the_model(monkeypatch):
    script = said("one two three four five six seven eight nine ten")
    waveform = sound(script)
    chances = iter(speech_probabilities(script, len(waveform)))
    gate = asyncio.Event()
    decoder = ScriptedDecoder(script)

    async def gated(*asked):
        await gate.wait()
        return await decoder(*asked)

    class Detector:
        def feed(self, samples: np.ndarray) -> list[float]:
            return [next(chances, 0.0) for _ in range(len(samples) // 512)]

    monkeypatch.setattr(connection, "SpeechDetector", Detector)
    events = []

    async def emit(event) -> None:
        events.append(event)

    session = session_over(gated)
    live = LiveConnection(session, emit, Bounds(buffer_s=1.0, rate=1000.0), Seat(LiveCapacity()))
    stepping = asyncio.create_task(live.run())
    hearing = asyncio.create_task(live.hear(waveform))
    while session.behind_s <= 1.0:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not hearing.done()
    assert session.behind_s <= 2.5
    gate.set()
    await asyncio.wait_for(hearing, 10)
    assert session.heard_s == pytest.approx(len(waveform) / 16_000)
    stepping.cancel()


async def test_sound_faster_than_its_bound_waits(monkeypatch):
    class Deaf:
        def feed(self, samples: np.ndarray) -> list[float]:
            return [0.0] * (len(samples) // 512)

    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    # Its own view of asyncio: servers of other tests sleep in this process too.
    monkeypatch.setattr(connection, "asyncio", SimpleNamespace(**(vars(asyncio) | {"sleep": sleep})))
    monkeypatch.setattr(connection, "SpeechDetector", Deaf)
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: 0.0))
    bounds, seat = Bounds(buffer_s=2.0, rate=4.0), Seat(LiveCapacity())
    live = LiveConnection(session_over(ScriptedDecoder([])), None, bounds, seat)  # type: ignore[arg-type]
    await live.hear(np.zeros(2 * 16_000, np.float32))
    assert not waited
    await live.hear(np.zeros(4 * 16_000, np.float32))
    assert waited[-1] == pytest.approx(1.0)


async def test_a_newer_guess_takes_the_place_of_one_that_was_not_sent():
    sent = []

    async def send(message) -> None:
        sent.append(message)

    box = Outbox(send)
    for message, replaces in [("a", 1), ("b", 1), ("final", None), ("c", 2), ("d", 2), ("e", 3)]:
        box.put(message, replaces)
    await box.send_all()
    assert sent == ["b", "final", "d", "e"]


async def test_who_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(websockets, "SEND_S", 0.01)

    async def stuck(message) -> None:
        await asyncio.Event().wait()

    box = Outbox(stuck)
    box.put("a")
    with pytest.raises(NotReading):
        await box.run()
    for i in range(websockets.MAX_UNSENT):
        box.put(i)
    with pytest.raises(NotReading):
        box.put("one more")


async def test_live_passes_go_first_and_wait_when_the_line_is_full(monkeypatch):

    from server.live import decoder

    asked = []

    class Engine:
        info = SimpleNamespace(
            tokenizer=SimpleNamespace(text=lambda ids: "", is_special=lambda i: False),
            config=SimpleNamespace(step_s=0.08, writes_times=True),
        )

        async def run(self, wanted, priority):
            asked.append((wanted, priority))
            if len(asked) < 3:
                raise QueueFull("full")
            generated = SimpleNamespace(tokens=[])
            transcript = SimpleNamespace(language="en", segments=())
            return SimpleNamespace(
                generated=(generated, generated), attention=(np.zeros((0, 5)),) * 2, transcripts=(transcript,) * 2,
                detection=None, look=None, timing=Timing(model_s=0.25),
            )  # fmt: skip

    monkeypatch.setattr(decoder, "RETRY_S", 0.0)
    heard = await decoder.EngineDecoder(Engine(), word_times=False)(  # type: ignore[arg-type]
        np.zeros(100, np.float32), (Task("en"), Task("en", "de")), ((Token(5, " a", 0.1),), ()), False
    )
    wanted, priority = asked[-1]
    assert (len(asked), priority, len(heard.tokens), heard.model_s) == (3, LIVE, 2, 0.25)
    assert (wanted.prefixes, wanted.attention, len(wanted.waveform)) == (((5,), ()), True, 16_000)


def test_a_letter_in_two_tokens_belongs_to_the_second():
    class Bytes:
        def text(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    assert token_texts(Bytes(), [], list("aé.".encode())) == ["a", "", "é", "."]  # type: ignore[arg-type]
