"""WS /v1/realtime, by OpenAI's own client, by LiveKit's and pipecat's plug-ins, and by hand."""

import asyncio
import base64
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server.live.session import LiveSession
from server.web.routes.openai_session import Session

DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
MANUAL = {"audio": {"input": {"turn_detection": None, "transcription": {"language": "en"}}}}
BY_SERVER = {"audio": {"input": {"turn_detection": {"type": "server_vad"}, "transcription": {"language": "en"}}}}


@asynccontextmanager
async def opened(url: str, session: dict | None = None, **options) -> AsyncIterator[ClientConnection]:
    async with connect(f"{url}/v1/realtime?intent=transcription", proxy=None, **options) as ws:
        created = await told(ws)
        assert created["type"] == "session.created"
        if session is not None:
            await send(ws, "session.update", session={"type": "transcription", **session})
            assert (await told(ws))["type"] == "session.updated"
        yield ws


async def send(ws: ClientConnection, kind: str, **fields) -> None:
    await ws.send(json.dumps({"type": kind, **fields}))


async def speak(ws: ClientConnection, sound: bytes, size: int = 9600) -> None:
    for at in range(0, len(sound), size):
        audio = base64.b64encode(sound[at : at + size]).decode()
        await send(ws, "input_audio_buffer.append", audio=audio)


async def told(ws: ClientConnection) -> dict:
    message = json.loads(await asyncio.wait_for(ws.recv(), 60))
    assert message["event_id"]
    return message


async def until(ws: ClientConnection, kind: str, count: int = 1) -> list[dict]:
    messages: list[dict] = []
    while count:
        messages.append(await told(ws))
        count -= messages[-1]["type"] == kind
    return messages


def texts(messages: list[dict]) -> list[str]:
    """What each completed item says; its deltas must say the same."""
    deltas: dict[str, str] = {}
    completed = []
    for message in messages:
        if message["type"] == DELTA:
            deltas[message["item_id"]] = deltas.get(message["item_id"], "") + message["delta"]
        if message["type"] == COMPLETED:
            assert deltas.get(message["item_id"], "") == message["transcript"]
            completed.append(message["transcript"])
    return completed


async def test_openais_client_is_told_each_turn_as_it_grows(toy, pcm, samples):
    seen = []
    async with (
        AsyncOpenAI(api_key="not-needed", base_url=f"{toy.base_url}/v1") as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        await connection.session.update(
            session={
                "type": "transcription",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24_000},
                        "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                        "turn_detection": {"type": "server_vad"},
                    }
                },
            }
        )
        sound = pcm(rate=24_000, tail_s=1)
        within_a_turn = 4 * 2 * 24_000
        for at in range(0, len(sound), 4801):
            if at <= within_a_turn < at + 4801:
                # No more is said before the first words are told.
                while not seen or seen[-1].type != DELTA:
                    seen.append(await connection.recv())
            audio = base64.b64encode(sound[at : at + 4801]).decode()
            await connection.input_audio_buffer.append(audio=audio)
        while sum(each.type == COMPLETED for each in seen) < 2:
            seen.append(await connection.recv())
    kinds = [type(event).__name__ for event in seen]
    assert kinds[:2] == ["SessionCreatedEvent", "SessionUpdatedEvent"]
    assert " ".join(event.transcript for event in seen if event.type == COMPLETED) == samples["en"].text
    assert "InputAudioBufferSpeechStartedEvent" in kinds
    for turn in (event for event in seen if event.type == COMPLETED):
        assert "".join(e.delta for e in seen if e.type == DELTA and e.item_id == turn.item_id) == turn.transcript
    assert kinds.index("ConversationItemInputAudioTranscriptionDeltaEvent") < kinds.index(
        "InputAudioBufferSpeechStoppedEvent"
    )


def test_livekits_plug_in_hears_every_turn(run_client, spoken, samples):
    events = [json.loads(line) for line in run_client("livekit_client.py", str(spoken)).splitlines()]
    finals = [event["text"] for event in events if event["type"] == "final_transcript"]
    assert " ".join(finals) == samples["en"].text
    assert {"start_of_speech", "end_of_speech", "interim_transcript"} <= {event["type"] for event in events}


@pytest.mark.parametrize("turns", ["server", "manual"])
def test_pipecats_service_hears_every_turn(run_client, spoken, samples, turns):
    frames = [json.loads(line) for line in run_client("pipecat_client.py", str(spoken), turns).splitlines()]
    finals = [frame["text"] for frame in frames if frame["type"] == "TranscriptionFrame"]
    assert " ".join(finals) == samples["en"].text
    assert len(finals) == (2 if turns == "server" else 1)


@pytest.fixture(scope="module")
def spoken(pcm, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spoken") / "en.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24_000, 0, "NONE", ""))
        file.writeframes(pcm(rate=24_000, tail_s=1))
    return path


async def test_a_turn_is_started_stopped_committed_and_completed_as_one_item(url, pcm):
    async with opened(url, BY_SERVER) as ws:
        await speak(ws, pcm(rate=24_000, tail_s=1))
        messages = await until(ws, COMPLETED, 2)
    by_kind = {kind: [m for m in messages if m["type"] == kind] for kind in {m["type"] for m in messages}}
    started, stopped = (by_kind[f"input_audio_buffer.speech_{what}"] for what in ("started", "stopped"))
    committed, completed = by_kind["input_audio_buffer.committed"], by_kind[COMPLETED]
    items = [message["item_id"] for message in started]
    assert [[m["item_id"] for m in which] for which in (stopped, committed, completed)] == [items] * 3
    assert [message["previous_item_id"] for message in committed] == [None, items[0]]
    assert 0 < started[0]["audio_start_ms"] < stopped[0]["audio_end_ms"] < started[1]["audio_start_ms"]
    assert completed[0]["usage"]["type"] == "duration"
    assert completed[0]["content_index"] == 0


@pytest.mark.parametrize(
    ("format", "rate"),
    [({"type": "audio/pcm", "rate": 16_000}, 16_000), ({"type": "audio/pcm"}, 24_000)],
)
async def test_pcm_is_taken_at_its_rate(url, pcm, samples, format, rate):
    async with opened(url, {"audio": {"input": {**MANUAL["audio"]["input"], "format": format}}}) as ws:
        await speak(ws, pcm(rate=rate), size=3333)
        await send(ws, "input_audio_buffer.commit")
        assert texts(await until(ws, COMPLETED)) == [samples["en"].text]


async def test_without_turn_detection_nothing_is_committed_but_by_the_client(url, pcm, samples):
    async with opened(url, MANUAL) as ws:
        await speak(ws, pcm(rate=24_000, tail_s=3))
        await send(ws, "input_audio_buffer.commit")
        messages = await until(ws, COMPLETED)
        await speak(ws, pcm(rate=24_000))
        await send(ws, "input_audio_buffer.commit")
        more = await until(ws, COMPLETED)
    assert texts(messages) == texts(more) == [samples["en"].text]
    assert {m["type"] for m in messages + more} == {"input_audio_buffer.committed", DELTA, COMPLETED}
    first, second = (m for m in messages + more if m["type"] == "input_audio_buffer.committed")
    assert (first["previous_item_id"], second["previous_item_id"]) == (None, first["item_id"])


async def test_deltas_come_before_the_end_of_a_turn(url, pcm):
    async with opened(url, MANUAL) as ws:
        await speak(ws, pcm(rate=24_000)[: 24_000 * 2 * 5])
        assert (await told(ws))["type"] == DELTA


async def test_what_is_cleared_is_not_transcribed(url, pcm, samples):
    async with opened(url, MANUAL) as ws:
        await speak(ws, pcm(rate=24_000)[: 24_000 * 2 + 1])
        await send(ws, "input_audio_buffer.clear")
        await until(ws, "input_audio_buffer.cleared")
        await speak(ws, pcm(rate=24_000))
        await send(ws, "input_audio_buffer.commit")
        assert texts(await until(ws, COMPLETED)) == [samples["en"].text]


async def test_turns_that_have_ended_are_cleared_unless_they_are_committed(url, pcm, samples, monkeypatch):
    """Without turn detection a pause ends a turn that nobody is told of; here all of them wait to be written."""
    due, held = LiveSession.due.fget, [True]  # type: ignore[attr-defined]
    monkeypatch.setattr(LiveSession, "due", property(lambda session: not held and due(session)))
    async with opened(url, MANUAL) as ws:
        for end in ("commit", "clear", "commit"):
            await speak(ws, pcm(rate=24_000, tail_s=1.6))
            await send(ws, f"input_audio_buffer.{end}")
            if end == "clear":
                await until(ws, "input_audio_buffer.cleared")
                held.clear()
        assert texts(await until(ws, COMPLETED, 2)) == [samples["en"].text] * 2


async def test_a_buffer_of_nothing_is_not_committed(url):
    async with opened(url, MANUAL) as ws:
        await send(ws, "input_audio_buffer.commit", event_id="mine")
        error = (await told(ws))["error"]
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")


async def test_settings_may_change_between_turns_and_what_was_heard_is_kept(url, pcm, samples):
    async with opened(url, BY_SERVER) as ws:
        await speak(ws, pcm("en", 24_000))
        change = {"audio": {"input": {"transcription": {"language": "de"}}}}
        await send(ws, "session.update", session=change)
        messages = await until(ws, "session.updated")
        await speak(ws, pcm("de", 24_000, tail_s=1))
        german = await until(ws, COMPLETED)
    assert " ".join(texts(messages)) == samples["en"].text
    assert " ".join(texts(german)) == samples["de"].text
    starts = [m["audio_start_ms"] for m in messages + german if m["type"].endswith("speech_started")]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("message", "code", "param", "named"),
    [
        ("{", "invalid_json", None, "JSON"),
        ("7", "invalid_message", None, "object"),
        (b"\0\0", "invalid_json", None, "base64"),
        ({"type": "response.create"}, "unknown_event", "type", "response.create"),
        ({"type": "input_audio_buffer.append"}, "invalid_value", "audio", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "ä"}, "invalid_value", "audio", "base64"),
        ({"type": "session.update"}, "invalid_value", "session", "session"),
        (
            {"type": "session.update", "session": {"type": "realtime"}},
            "invalid_value",
            "session.type",
            "'realtime'",
        ),
        (
            {"type": "session.update", "session": {"audio": {"input": {"transcription": {"language": "klingon"}}}}},
            "invalid_value",
            "session.language",
            "klingon",
        ),
        (
            {"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "nova-2"}}}}},
            "invalid_value",
            "session.model",
            "nova-2",
        ),
    ],
)
async def test_a_bad_message_is_named_and_the_session_goes_on(url, message, code, param, named):
    async with opened(url) as ws:
        await ws.send(json.dumps(message) if isinstance(message, dict) else message)
        error = (await told(ws))["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
        assert named in error["message"]
        await send(ws, "session.update", session={})
        assert (await told(ws))["type"] == "session.updated"


@pytest.mark.parametrize(("given", "told_back"), [("mine \ud800", "mine ?"), ("Zoë 😀", "Zoë 😀")])
async def test_a_message_may_be_named_with_what_is_no_character(url, given, told_back):
    """Half of a pair of surrogates can be written in JSON, and not in UTF-8."""
    async with opened(url) as ws:
        await send(ws, "nope", event_id=given)
        error = (await told(ws))["error"]
        assert (error["code"], error["event_id"]) == ("unknown_event", told_back)
        wanted = {"transcription": {"prompt": given, "model": given}}
        await send(ws, given, session={"audio": {"input": wanted}}, event_id=given)
        assert (await told(ws))["error"]["event_id"] == told_back
        await send(ws, "session.update", session={"audio": {"input": wanted}}, event_id=given)
        assert (await told(ws))["error"]["event_id"] == told_back


async def test_what_a_client_sends_is_neither_piled_up_nor_sent_back_without_bounds(url):
    async with opened(url) as ws:
        for name in ("a", "b"):
            reduction = {"type": "far_field", name: "x" * 1000}
            await send(ws, "session.update", session={"audio": {"input": {"noise_reduction": reduction}}})
            told_back = (await told(ws))["session"]["audio"]["input"]["noise_reduction"]
            assert told_back == {"type": "far_field"}
        await send(ws, "session.update", session={"audio": {"input": {"transcription": {"prompt": "x" * 10_001}}}})
        error = (await told(ws))["error"]
        assert (error["param"], len(error["message"]) < 300) == ("session.prompt", True)
        await send(ws, "response.create", event_id="x" * 513)
        assert (await told(ws))["error"]["event_id"] is None
        await send(
            ws, "session.update", session={"audio": {"x" * 100_000: 1, "input": {"format": {"type": "x" * 9999}}}}
        )
        assert len((await told(ws))["error"]["message"]) < 500


async def test_the_key_in_a_subprotocol_is_not_sent_back(url):
    protocols = ["realtime", "openai-insecure-api-key.sk-secret"]
    async with opened(url, subprotocols=protocols) as ws:
        assert ws.subprotocol == "realtime"
    async with opened(url) as ws:
        assert ws.subprotocol is None


async def test_a_model_that_is_not_served_is_named(url):
    async with connect(f"{url}/v1/realtime?model=nova-2", proxy=None) as ws:
        await told(ws)
        await speak(ws, bytes(4800))
        assert "nova-2" in (await told(ws))["error"]["message"]
        with pytest.raises(ConnectionClosed):
            await told(ws)


def test_an_update_changes_what_it_names_and_null_is_a_value():
    session = Session().updated(
        {
            "audio": {
                "input": {
                    "turn_detection": {"type": "server_vad", "threshold": 0.7},
                    "transcription": {"language": "de-DE"},
                }
            }
        }
    )
    assert session.audio.input.turn_detection.threshold == 0.7
    assert session.audio.input.turn_detection.silence_duration_ms == 500
    session = session.updated({"audio": {"input": {"turn_detection": {"silence_duration_ms": 300}}}})
    assert session.audio.input.turn_detection.threshold == 0.7
    assert session.audio.input.transcription.language == "de"
    assert session.endpointing.silence_s == 0.3
    session = session.updated({"audio": {"input": {"turn_detection": None}}})
    assert session.audio.input.turn_detection is None
    assert session.updated({"audio": {}}).audio.input.turn_detection is None


def test_a_format_is_one_thing():
    session = Session().updated({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}})
    assert session.audio.input.format.encoding == ("pcm_s16le", 16_000)
    session = session.updated({"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
    assert session.audio.input.format.encoding == ("ulaw", 8_000)
    session = session.updated({"audio": {"input": {"format": {"type": "audio/pcm"}}}})
    assert session.audio.input.format.encoding == ("pcm_s16le", 24_000)


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
async def test_telephone_sound_is_taken(url, pcm, law):
    """The toy never met half a spectrum: that words come, and when, is what counts."""
    from tests.live.test_sound import companded

    codes = companded(np.frombuffer(pcm(rate=8_000), "<i2"), law)
    async with opened(url, {"audio": {"input": {**MANUAL["audio"]["input"], "format": {"type": law}}}}) as ws:
        await speak(ws, codes, 1001)
        await send(ws, "input_audio_buffer.commit")
        messages = await until(ws, COMPLETED)
        assert "man" in texts(messages)[0]
        assert messages[-1]["usage"]["seconds"] > 5
