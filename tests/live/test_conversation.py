"""A realtime conversation without a socket or a model: what is left of it, whoever ends it, and when."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from prometheus_client import Gauge

from server.errors import EngineStopped, ModelFailed, TranscriptionFailed
from server.live import connection
from server.live.capacity import LiveCapacity, Seat
from server.live.windows import Heard
from server.settings import Settings
from server.web.routes import realtime
from server.web.routes.realtime import Conversation


class Client:
    """Whoever talks and reads, and the server's engines, of which `users` are in use. The decoder hears nothing.

    ending: a segment is looked at for the last time, which goes on as `may_end` does.
    """

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict] = asyncio.Queue()
        self.told: list[dict] = []
        self.users = 0
        self.ending, self.may_end = asyncio.Event(), asyncio.Future()
        self.scope, self.query_params = {}, {}
        settings = Settings(_env_file=None, default_language="en", max_live_rate=1000.0)
        metrics = SimpleNamespace(live_sessions=Gauge("live_sessions", "", registry=None))
        self.live = LiveCapacity()
        state = SimpleNamespace(settings=settings, engines=self, metrics=metrics, live=self.live)
        self.app = SimpleNamespace(state=state)

    def send(self, kind: str, **fields) -> None:
        self.messages.put_nowait({"type": "websocket.receive", "text": json.dumps({"type": kind, **fields})})

    def speak(self, sound: bytes) -> None:
        self.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())

    async def receive(self) -> dict:
        return await self.messages.get()

    async def accept(self, protocol: str | None) -> None:
        pass

    async def send_json(self, message: dict) -> None:
        self.put(message)

    async def close(self, code: int, reason: str) -> None:
        self.closed = code, reason

    def put(self, message: dict) -> None:
        self.told.append(message)

    async def until(self, kind: str) -> dict:
        """The first message of this type."""
        async with asyncio.timeout(20):
            while not (found := [message for message in self.told if message["type"] == kind]):
                await asyncio.sleep(0.005)
        return found[0]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[SimpleNamespace]:
        self.users += 1
        try:
            yield SimpleNamespace(check=lambda task: None, info=None)
        finally:
            self.users -= 1

    def conversation(self) -> asyncio.Task[None]:
        return asyncio.create_task(Conversation(self, self, Seat(self.live)).run())

    async def decode(self, window, tasks, given, last, look=None, tails=()) -> Heard:
        if last:
            self.ending.set()
            await self.may_end
        return Heard(((),) * len(tasks), "en")


async def hung_up(conversation: asyncio.Task[None]) -> None:
    conversation.cancel()
    await asyncio.gather(conversation, return_exceptions=True)


@pytest.fixture
async def client(monkeypatch) -> Client:
    client = Client()
    monkeypatch.setattr(connection, "EngineDecoder", lambda engine, word_times: client.decode)
    return client


@pytest.mark.parametrize("end", ["hangs up", "is failed by the model"])
async def test_who_leaves_while_settings_change_leaves_no_engine_in_use_and_no_task(client, pcm, end):
    conversation = client.conversation()
    client.speak(pcm(rate=24_000)[: 24_000 * 2 * 3])
    client.send("session.update", session={"audio": {"input": {"transcription": {"language": "de"}}}})
    await asyncio.wait_for(client.ending.wait(), 20)
    assert client.users == 1
    if end == "hangs up":
        conversation.cancel()
    else:
        client.may_end.set_exception(RuntimeError("broken"))
    with pytest.raises(asyncio.CancelledError if end == "hangs up" else RuntimeError):
        await conversation
    assert client.users == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_model_that_fails_while_a_client_commits_again_and_again_ends_the_session(client, pcm):
    """More ends than may wait do: the last of them has to hear that it waits in vain."""
    conversation = client.conversation()
    client.speak(pcm(rate=24_000)[: 24_000 * 2 * 3])
    for _ in range(connection.MAX_WAITING):
        client.send("input_audio_buffer.commit")
    await asyncio.wait_for(client.ending.wait(), 20)
    while client.messages.qsize():
        await asyncio.sleep(0)
    for _ in range(10):  # the last one is handled
        await asyncio.sleep(0)
    client.may_end.set_exception(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(conversation, 20)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
async def test_what_is_committed_is_all_that_was_appended(client, rate):
    """A resampler holds up to a sixth of a second back."""
    conversation = client.conversation()
    format = {"type": "audio/pcm", "rate": rate}
    client.send("session.update", session={"audio": {"input": {"format": format, "turn_detection": None}}})
    for _ in range(20):
        client.speak(bytes(rate // 10 * 2))
        client.send("input_audio_buffer.commit")
    client.send("input_audio_buffer.commit", event_id="of nothing")
    error = await client.until("error")
    await hung_up(conversation)
    assert (error["error"]["code"], error["error"]["event_id"]) == ("input_audio_buffer_commit_empty", "of nothing")
    assert [message["type"] for message in client.told].count("input_audio_buffer.committed") == 20


async def test_no_time_is_lost_when_settings_change(client, pcm):
    conversation = client.conversation()
    for law in ("pcma", "pcmu") * 5:
        client.send("session.update", session={"audio": {"input": {"format": {"type": f"audio/{law}"}}}})
        client.speak(bytes([0xD5 if law == "pcma" else 0xFF]) * 1000)
    client.send("session.update", session={"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}})
    client.speak(pcm())
    started = await client.until("input_audio_buffer.speech_started")
    await hung_up(conversation)
    assert started["audio_start_ms"] == pytest.approx(10 * 125 + 320, abs=5)


@pytest.mark.parametrize(
    ("failure", "code", "close"),
    [
        (EngineStopped, "stopping", 1001),
        (ModelFailed, "model_failed", 1013),
        (TranscriptionFailed, "transcription_failed", 1013),
    ],
)
async def test_what_ends_a_session_is_told_as_what_it_is(client, pcm, failure, code, close):
    client.may_end.set_exception(failure("The reason."))
    client.speak(pcm(rate=24_000)[: 24_000 * 2 * 3])
    client.send("input_audio_buffer.commit")
    await asyncio.wait_for(realtime.realtime(client), 20)
    error = client.told[-1]["error"]
    assert (error["type"], error["code"], error["message"]) == ("server_error", code, "The reason.")
    assert client.closed == (close, "The reason.")


async def test_what_was_appended_before_settings_change_is_committed_after_it(client, pcm):
    conversation = client.conversation()
    client.may_end.set_result(None)
    client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
    client.speak(pcm(rate=24_000)[: 24_000 * 2 * 3])
    client.send("session.update", session={"audio": {"input": {"transcription": {"language": "de"}}}})
    client.send("input_audio_buffer.commit")
    client.send("input_audio_buffer.commit", event_id="of nothing")
    error = await client.until("error")
    await hung_up(conversation)
    assert error["error"]["event_id"] == "of nothing"
    assert "input_audio_buffer.committed" in [message["type"] for message in client.told]
