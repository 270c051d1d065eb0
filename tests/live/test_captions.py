"""WS /stream, spoken over a real websocket to a server with the toy model."""

import asyncio
import base64
import json
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from server.live.capacity import LOOKS, WARM_UP, LookCost
from tests.live.recorded import contained
from tests.live.speaking import Shown

START = {"type": "start", "encoding": "pcm_s16le", "sample_rate": 16_000, "language": "en"}


@asynccontextmanager
async def opened(url: str, **start) -> AsyncIterator[ClientConnection]:
    async with connect(f"{url}/stream", proxy=None) as ws:
        await ws.send(json.dumps(START | start))
        assert (await told(ws))["type"] == "ready"
        yield ws


async def told(ws: ClientConnection) -> dict:
    return json.loads(await asyncio.wait_for(ws.recv(), 60))


async def until(ws: ClientConnection, kind: str) -> list[dict]:
    """All messages up to the first of this type."""
    messages = [await told(ws)]
    while messages[-1]["type"] != kind:
        messages.append(await told(ws))
    return messages


async def captioned(url: str, sound: Iterable[bytes], **start) -> tuple[Shown, list[dict]]:
    """What a client is shown of `sound`, every message checked, and all messages."""
    async with opened(url, **start) as ws:
        for piece in sound:
            await ws.send(piece)
        await ws.send('{"type": "stop"}')
        messages = await until(ws, "done")
        with pytest.raises(ConnectionClosed):
            await told(ws)
        assert ws.close_code == 1000
    shown = Shown()
    for message in messages:
        shown.add(0.0, message)
    return shown, messages


def cut(data: bytes, *sizes: int) -> list[bytes]:
    """Pieces of these sizes, again and again."""
    pieces, at = [], 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
    return pieces


@pytest.mark.parametrize("language", ["en", "de", "es", "fr"])
async def test_a_recording_is_captioned_as_it_is_said(url, pcm, samples, language):
    shown, messages = await captioned(url, cut(pcm(language), 3200), language=language)
    assert " ".join(shown.words) == samples[language].text
    assert messages[-1]["duration"] == pytest.approx(samples[language].duration, abs=0.01)


async def test_words_have_their_times_in_the_session(url, pcm, samples):
    shown, _ = await captioned(url, [bytes(64_000), *cut(pcm(), 3200)])
    found = [word for message in shown.finals for word in message["words"]]
    assert [word["word"] for word in found] == [word["word"] for word in samples["en"].words]
    for word, true in zip(found, samples["en"].words, strict=True):
        assert word["start"] == pytest.approx(2 + true["start"], abs=0.2)
        assert word["end"] == pytest.approx(2 + true["end"], abs=0.2)


async def test_frames_may_have_any_size(url, pcm, samples):
    shown, _ = await captioned(url, cut(pcm(), 1, 3, 777, 0, 4801, 32001))
    assert " ".join(shown.words) == samples["en"].text


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100, 48_000])
async def test_sound_of_any_rate_is_resampled(url, pcm, samples, rate):
    shown, messages = await captioned(url, cut(pcm(rate=rate), 9600), sample_rate=rate)
    assert messages[-1]["duration"] == pytest.approx(samples["en"].duration, abs=0.02)
    # at 8 kHz half of the spectrum is gone, which the toy never met
    assert rate == 8_000 or " ".join(shown.words) == samples["en"].text


async def test_the_translation_stands_beside_the_transcript(url, pcm, samples):
    shown, _ = await captioned(url, cut(pcm(), 3200), target_language="de")
    assert " ".join(shown.words) == samples["en"].text
    beside = [message["translation"] for message in shown.finals]
    assert " ".join(t["text"] for t in beside) == samples["en"].translations["de"]
    assert {t["language"] for t in beside} == {"de"}
    assert all(t["stable_chars"] == len(t["text"]) for t in beside)


async def test_the_language_is_found_out(url, pcm, samples):
    shown, _ = await captioned(url, cut(pcm("de"), 3200), language="auto")
    assert {message["language"] for message in shown.finals} == {"de"}
    assert " ".join(shown.words) == samples["de"].text


@pytest.mark.parametrize("encoding", ["webm", "mp4", "ogg"])
async def test_a_recorders_container_is_decoded_while_it_comes(url, pcm, samples, encoding):
    data = contained(pcm(rate=48_000), encoding)
    async with opened(url, encoding=encoding, sample_rate=None) as ws:
        half = len(data) // 2
        for piece in cut(data[:half], 1013):
            await ws.send(piece)
        # before the rest is there
        early = await until(ws, "speech_started")
        for piece in cut(data[half:], 1013):
            await ws.send(piece)
        await ws.send('{"type": "stop"}')
        messages = early + await until(ws, "done")
    finals = [m["text"] for m in messages if m["type"] == "result" and m["is_final"]]
    assert " ".join(finals) == samples["en"].text


async def test_finalize_writes_out_what_was_heard_without_a_pause(url, pcm, samples):
    async with opened(url) as ws:
        await ws.send(pcm()[: 2 * 16_000 * 3])
        await ws.send('{"type": "finalize"}')
        messages = await until(ws, "result")
        while not messages[-1]["is_final"]:
            messages += await until(ws, "result")
        assert messages[-1]["text"].startswith(" ".join(samples["en"].text.split()[:3]))
        assert messages[-1]["speech_final"]


async def test_finalize_writes_out_all_that_was_sent_before_it_also_what_resampling_holds_back(url, pcm):
    written = []
    for rate in (16_000, 24_000, 48_000):
        async with opened(url, sample_rate=rate) as ws:
            await ws.send(pcm(rate=rate)[: 2 * rate])
            await ws.send('{"type": "finalize"}')
            messages = await until(ws, "result")
            while not messages[-1]["is_final"]:
                messages += await until(ws, "result")
        written.append((messages[-1]["text"], messages[-1]["end"]))
    assert written == [written[0]] * 3


async def test_what_is_said_between_a_finalize_and_the_stop_comes_before_done(url, pcm, samples):
    async with opened(url) as ws:
        for message in (pcm("en"), '{"type": "finalize"}', pcm("en"), '{"type": "stop"}'):
            await ws.send(message)
        finals = [m["text"] for m in await until(ws, "done") if m["type"] == "result" and m["is_final"]]
        assert " ".join(finals) == " ".join([samples["en"].text] * 2)


async def test_without_interim_results_there_are_only_final_ones(url, pcm, samples):
    shown, _ = await captioned(url, cut(pcm(), 3200), interim_results=False)
    assert shown.results
    assert all(message["is_final"] for _, message in shown.results)
    assert " ".join(shown.words) == samples["en"].text


async def test_silence_gives_no_result(url):
    shown, messages = await captioned(url, [bytes(320_000)])
    assert (shown.results, [m["type"] for m in messages]) == ([], ["done"])


@pytest.mark.parametrize(
    ("message", "code", "named"),
    [
        ("{", "invalid_json", "'{'"),
        ("[" * 5000, "invalid_json", "[["),
        ('"start"', "invalid_message", "start"),
        ('{"typ": "start"}', "unknown_message", "no type"),
        ('{"type": "begin"}', "unknown_message", "'begin'"),
        ('{"type": {"a": 1}}', "unknown_message", "'a'"),
        ('{"type": "finalize"}', "not_started", "finalize"),
        (b"\0\0", "not_started", "audio"),
        ({"sample_rate": None}, "invalid_start", "sample_rate"),
        ({"sample_rate": 7}, "invalid_start", "sample_rate"),
        ({"encoding": "mp3"}, "invalid_start", "mp3"),
        ({"language": "klingon"}, "invalid_start", "klingon"),
        ({"endpointing_ms": -1}, "invalid_start", "endpointing_ms"),
        ({"endpointing_ms": "soon"}, "invalid_start", "soon"),
        ({"colour": "red"}, "invalid_start", "colour"),
        ({"x" * 100_000: 1}, "invalid_start", "x" * 80 + ":"),
    ],
)
async def test_a_bad_message_is_named_and_another_try_is_welcome(url, message, code, named):
    async with connect(f"{url}/stream", proxy=None) as ws:
        await ws.send(json.dumps(START | message) if isinstance(message, dict) else message)
        error = await told(ws)
        assert (error["type"], error["code"], error["fatal"]) == ("error", code, False)
        assert named in error["message"]
        await ws.send(json.dumps(START))
        assert (await told(ws))["type"] == "ready"


async def test_a_second_start_is_refused_and_the_session_goes_on(url):
    async with opened(url) as ws:
        await ws.send(json.dumps(START))
        assert (await told(ws))["code"] == "already_started"
        await ws.send('{"type": "stop"}')
        assert (await told(ws))["type"] == "done"


@pytest.mark.parametrize(
    ("start", "code", "named"),
    [
        ({"language": "uk"}, "invalid_request", "uk"),
        ({"language": "de", "target_language": "fr"}, "invalid_request", "fr"),
        ({"model": "canary-9b"}, "model_not_found", "canary-9b"),
    ],
)
async def test_what_the_model_cannot_do_ends_the_session_with_a_reason(url, start, code, named):
    async with connect(f"{url}/stream", proxy=None) as ws:
        await ws.send(json.dumps(START | start))
        error = await told(ws)
        assert (error["code"], error["fatal"]) == (code, True)
        assert named in error["message"]
        with pytest.raises(ConnectionClosed):
            await told(ws)
        assert ws.close_code == 1008


async def test_too_many_mistakes_end_the_session(url):
    async with connect(f"{url}/stream", proxy=None) as ws:
        for _ in range(21):
            await ws.send("no")
        messages = [await told(ws) for _ in range(21)]
        assert [m["fatal"] for m in messages] == [False] * 20 + [True]
        assert messages[-1]["code"] == "too_many_errors"


async def test_a_message_over_the_cap_closes_the_connection_and_nothing_else(url, toy):
    async with opened(url) as ws:
        await ws.send(bytes(1_100_000))
        with pytest.raises(ConnectionClosed):
            await until(ws, "done")
        assert ws.close_code == 1009
    assert toy.get("/health").status_code == 200


def test_a_frame_that_announces_a_gibibyte_is_refused_before_it_comes(url, toy):
    host, port = url.removeprefix("ws://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(
            f"GET /stream HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
        )
        assert b"101 Switching" in raw.recv(4096)
        raw.sendall(b"\x82\xff" + struct.pack("!Q", 1 << 30) + b"\0\0\0\0" + bytes(1000))
        answer = b""
        while piece := raw.recv(4096):
            answer += piece
        assert answer[:1] == b"\x88"
        assert struct.unpack("!H", answer[2:4]) == (1009,)
    assert toy.get("/health").status_code == 200


@pytest.fixture(scope="module")
def narrow(start_server, cache) -> str:
    """A server with one seat, where nobody may be silent for long."""
    client = start_server(model="toy", max_live_sessions=1, live_idle_s=2.0)
    return str(client.base_url).replace("http", "ws", 1).rstrip("/")


@asynccontextmanager
async def seated(url: str) -> AsyncIterator[ClientConnection]:
    """A session on a server whose seat may still be warm. Fails if it is not given free."""
    deadline = time.monotonic() + 20
    while True:
        async with connect(f"{url}/stream", proxy=None) as ws:
            # refused, it may be closed before the start is sent
            with suppress(ConnectionClosed):
                await ws.send(json.dumps(START))
            message = await told(ws)
            if message["type"] == "ready":
                yield ws
                return
            assert message["code"] == "too_many_sessions"
            assert time.monotonic() < deadline, "the seat was never given free"


async def test_one_session_more_than_there_may_be_is_refused_until_one_ends(narrow):
    async with seated(narrow) as first:
        async with connect(f"{narrow}/stream", proxy=None) as second:
            error = await told(second)
            assert (error["code"], error["fatal"]) == ("too_many_sessions", True)
            with pytest.raises(ConnectionClosed):
                await told(second)
            assert second.close_code == 1013
        await first.send('{"type": "stop"}')
        await until(first, "done")
    async with seated(narrow):
        pass


async def test_a_session_that_the_model_has_no_time_for_is_refused_until_one_ends(start_server, cache):
    client = start_server(model="toy", max_live_step_s=2.0)
    url, app = str(client.base_url).replace("http", "ws", 1).rstrip("/"), client.server.config.app
    async with seated(url) as first:
        # As if the model were so slow: a third of its time for one session.
        for _ in range(WARM_UP + LOOKS):
            app.state.live.note(LookCost(0.7, 0.4, last=False))
        async with seated(url) as second:
            for refused in (f"{url}/stream", f"{url}/v1/realtime"):
                async with connect(refused, proxy=None) as third:
                    error = await told(third)
                    assert (error.get("code") or error["error"]["code"]) == "too_many_sessions"
                    with pytest.raises(ConnectionClosed):
                        await told(third)
                    assert third.close_code == 1013
                    assert "too busy for another live session" in (third.close_reason or "")
            shown = dict(re.findall(r"^(canary_live_\w+) (\S+)$", client.get("/metrics").text, re.MULTILINE))
            assert float(shown["canary_live_load_of_one"]) == pytest.approx(0.35)
            assert float(shown["canary_live_load"]) == pytest.approx(0.7)
            assert float(shown["canary_live_sessions"]) == 2.0
            await second.send('{"type": "stop"}')
            await until(second, "done")
        await first.send('{"type": "stop"}')
        await until(first, "done")
    async with seated(url):
        pass


async def test_a_session_without_a_message_is_closed_with_a_reason(narrow):
    async with seated(narrow) as ws:
        for _ in range(6):
            await asyncio.sleep(0.4)
            await ws.send('{"type": "keepalive"}')
        error = await told(ws)
        assert (error["code"], error["fatal"]) == ("idle", True)
        with pytest.raises(ConnectionClosed):
            await told(ws)
        assert "No message for 2 s" in (ws.close_reason or "")


@pytest.mark.parametrize("state", ["connected", "started", "speaking", "finalizing", "stopping", "mid frame"])
async def test_who_hangs_up_in_any_state_leaves_a_free_seat_behind(narrow, pcm, state):
    if state == "connected":
        async with connect(f"{narrow}/stream", proxy=None) as ws:
            ws.transport.abort()
    else:
        async with seated(narrow) as ws:
            for piece in cut(pcm(), 3200) if state != "started" else []:
                await ws.send(piece)
            if state in ("finalizing", "stopping"):
                await ws.send(json.dumps({"type": "finalize" if state == "finalizing" else "stop"}))
            if state == "mid frame":
                ws.transport.write(b"\x82\xfe\x10\x00only the beginning")
            ws.transport.abort()
    async with seated(narrow) as ws:
        await ws.send(pcm())
        await ws.send('{"type": "stop"}')
        assert any(message.get("is_final") for message in await until(ws, "done"))


@pytest.mark.parametrize("state", ["connected", "speaking", "committed"])
async def test_a_realtime_client_that_hangs_up_leaves_a_free_seat_behind(narrow, pcm, state):
    async with seated(narrow) as ws:
        await ws.send('{"type": "stop"}')
        await until(ws, "done")
    async with connect(f"{narrow}/v1/realtime", proxy=None) as ws:
        assert (await told(ws))["type"] in ("session.created", "error")
        with suppress(ConnectionClosed):
            if state != "connected":
                audio = base64.b64encode(pcm(rate=24_000)).decode()
                await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            if state == "committed":
                await ws.send('{"type": "input_audio_buffer.commit"}')
        ws.transport.abort()
    async with seated(narrow) as ws:
        await ws.send('{"type": "stop"}')
        await until(ws, "done")
