"""A realtime conversation without a socket or a model: what is left of it, whoever ends it, and when."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from server.live import connection
from server.live.outbox import Outbox
from server.live.session import Heard
from server.routes import realtime
from server.routes.realtime import Conversation
from server.settings import Settings


class Client:
    """Whoever talks, and the server's engines, of which `users` are in use. The decoder hears nothing.

    ending: a segment is looked at for the last time, which goes on as `may_end` does.
    """

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict] = asyncio.Queue()
        self.told: list[dict] = []
        self.users = 0
        self.ending, self.may_end = asyncio.Event(), asyncio.Future()
        self.query_params: dict[str, str] = {}
        settings = Settings(_env_file=None, default_language="en", max_live_rate=1000.0)  # type: ignore[call-arg]
        self.app = SimpleNamespace(state=SimpleNamespace(settings=settings, engines=self))

    def send(self, kind: str, **fields) -> None:
        self.messages.put_nowait({"type": "websocket.receive", "text": json.dumps({"type": kind, **fields})})

    def speak(self, sound: bytes) -> None:
        self.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())

    async def receive(self) -> dict:
        return await self.messages.get()

    async def send_json(self, message: dict) -> None:
        self.told.append(message)

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[SimpleNamespace]:
        self.users += 1
        try:
            yield SimpleNamespace(check=lambda task: None)
        finally:
            self.users -= 1

    async def decode(self, window, tasks, given, last) -> Heard:
        if last:
            self.ending.set()
            await self.may_end
        return Heard(((),) * len(tasks), "en")


@pytest.fixture
async def client(monkeypatch) -> Client:
    client = Client()
    monkeypatch.setattr(realtime, "EngineDecoder", lambda engine, word_times: client.decode)
    return client


@pytest.mark.parametrize("end", ["hangs up", "is failed by the model"])
async def test_who_leaves_while_settings_change_leaves_no_engine_in_use_and_no_task(client, pcm, end):
    conversation = asyncio.create_task(Conversation(client, Outbox(client.send_json)).run())
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
    conversation = asyncio.create_task(Conversation(client, Outbox(client.send_json)).run())
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
