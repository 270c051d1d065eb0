"""WS /v1/realtime: transcription sessions in OpenAI's realtime protocol.

Audio comes as base64 in `input_audio_buffer.append`. Every turn is an item; its deltas carry text once it is stable.
With server_vad a turn ends at a pause, without it when the client commits.
"""

import asyncio
import base64
import binascii
import json
import secrets
from collections import deque
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from model.task import TaskError
from server.engine.registry import Engines
from server.errors import (
    EngineStopped,
    ModelFailed,
    ModelLoading,
    ModelNotFound,
    RequestError,
    ServiceError,
    TranscriptionFailed,
    invalid_field,
)
from server.live.capacity import Seat
from server.live.connection import LiveConnection
from server.live.events import Event, Finalized, LiveResult, SpeechStarted, SpeechStopped
from server.live.sound import RawSound
from server.settings import Settings
from server.web.routes.openai_session import Session, TranscriptionSettings
from server.web.routes.websockets import Fatal, Outbox, converse, seat

router = APIRouter()
T = TypeVar("T")

SUBPROTOCOL = "realtime"
# Codes of errors that the client did not cause.
SERVER_ERRORS = {kind.code for kind in (ServiceError, TranscriptionFailed, ModelLoading, ModelFailed, EngineStopped)}
SERVER_ERRORS.add("internal_error")
MAX_MISTAKES = 100
# The longest client event_id that is repeated in an answer.
MAX_EVENT_ID = 512
# The least audio that can be committed.
SHORTEST_COMMIT_S = 0.1
TRANSCRIPTION = "conversation.item.input_audio_transcription"


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Transcription sessions of OpenAI's realtime protocol."""
    asked = websocket.scope.get("subprotocols", ())
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in asked else None)

    async def talk(outbox: Outbox) -> None:
        async with seat(websocket) as taken:
            await Conversation(websocket, outbox, taken).run()

    await converse(websocket, talk, lambda code, message: _error(code, message))


class Mistake(Exception):
    """An invalid message; the session continues."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


class Item:
    """A turn's text, sent as it grows. before_s: its audio from before the last change of settings."""

    def __init__(self) -> None:
        self.id = f"item_{secrets.token_hex(10)}"
        self.committed = False
        self.sent = ""
        self.language: str | None = None
        self.seconds = self.before_s = 0.0
        self._finals: list[str] = []

    def delta(self, result: LiveResult) -> str:
        """The stable text that has not been sent yet."""
        certain = [*self._finals, result.text[: result.stable]]
        if result.is_final:
            self._finals.append(result.text)
            self.seconds += result.end - result.start
            self.language = self.language or result.language
        text = " ".join(part for part in certain if part)
        new, self.sent = text[len(self.sent) :], text
        return new


class Conversation:
    """One client's session: its settings, and the audio that is transcribed under them."""

    def __init__(self, websocket: WebSocket, outbox: Outbox, taken: Seat):
        self._websocket = websocket
        self._outbox = outbox
        self._seat = taken
        self._settings: Settings = websocket.app.state.settings
        self._id = f"sess_{secrets.token_hex(10)}"
        self._session = Session()
        self._hearing: Hearing | None = None
        self._open: Item | None = None
        self._mistakes = 0
        self._heard_before_s = 0.0
        self._last_item: str | None = None

    def send(self, kind: str, **fields: Any) -> None:
        self._outbox.put({"type": kind, "event_id": f"event_{secrets.token_hex(10)}", **fields})

    async def run(self) -> None:
        """Run until the client disconnects. Raises Fatal, WebSocketDisconnect, or what a step raises."""
        self.send("session.created", session=self._described())
        try:
            while True:
                message = await self._next()
                try:
                    await self._handle(message)
                except Mistake as mistake:
                    self._answer(mistake, message.get("event_id"))
        finally:
            if self._hearing:
                await self._hearing.stop()

    async def _next(self) -> dict[str, Any]:
        while True:
            try:
                async with asyncio.timeout(self._settings.live_idle_s):
                    # Messages that arrived together are received without waiting: let other tasks run in between.
                    await asyncio.sleep(0)
                    receiving = self._websocket.receive()
                    # An error in the session's steps is raised here.
                    received = await (self._hearing.beside(receiving) if self._hearing else receiving)
            except TimeoutError:
                raise Fatal(
                    "idle", f"No message for {self._settings.live_idle_s:g} s; the session is closed."
                ) from None
            if received["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(received.get("code", 1000))
            try:
                message = json.loads(received.get("text") or "")
            except (ValueError, RecursionError):
                self._answer(
                    Mistake("invalid_json", "The message is not valid JSON; send audio as base64 in JSON."), None
                )
                continue
            if isinstance(message, dict):
                return message
            self._answer(Mistake("invalid_message", "The message is not a JSON object."), None)

    async def _handle(self, message: dict[str, Any]) -> None:
        match message.get("type"):
            case "session.update":
                await self._update(message.get("session"))
            case "input_audio_buffer.append":
                await (await self._listening()).write(_sound(message.get("audio")))
            case "input_audio_buffer.commit":
                await (await self._listening()).commit()
            case "input_audio_buffer.clear":
                await (await self._listening()).clear()
                self.send("input_audio_buffer.cleared")
            case kind:
                supported = "session.update, input_audio_buffer.append, .commit, .clear"
                raise Mistake("unknown_event", f"unknown type {kind!r:.60}; must be one of {supported}", "type")

    async def _update(self, change: Any) -> None:
        if not isinstance(change, dict):
            raise Mistake("invalid_value", "session must be an object", "session")
        try:
            updated = self._session.updated(change)
            transcription = updated.audio.input.transcription
            if transcription and transcription.model:
                self._websocket.app.state.engines.named(transcription.model)
        except (ValidationError, RequestError, ModelNotFound) as error:
            wrong = invalid_field(error) if isinstance(error, ValidationError) else error
            raise Mistake("invalid_value", str(wrong), f"session.{wrong.param}") from None
        if self._hearing and updated != self._session:
            # Finish the audio so far with the settings it was sent under.
            self._heard_before_s += await self._hearing.finish()
            # Not earlier: if the client disconnects meanwhile, `run` still has to stop it.
            self._open, self._hearing = self._hearing.open, None
        self._session = updated
        self.send("session.updated", session=self._described())

    async def _listening(self) -> "Hearing":
        if self._hearing is None:
            hearing = Hearing(self, self._session, self._heard_before_s, self._open)
            await hearing.start(self._websocket, self._seat)
            self._hearing, self._open = hearing, None
        return self._hearing

    def committed(self, item: Item) -> None:
        self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=self._last_item)
        self._last_item, item.committed = item.id, True

    def completed(self, item: Item) -> None:
        usage = {"type": "duration", "seconds": round(item.seconds, 3)}
        fields = {
            "transcript": item.sent,
            "languages": [{"code": item.language}] if item.language else [],
            "usage": usage,
        }
        self.send(f"{TRANSCRIPTION}.completed", item_id=item.id, content_index=0, **fields)

    def _described(self) -> dict[str, Any]:
        about = {"id": self._id, "object": "realtime.transcription_session", "expires_at": 0, "include": None}
        return about | self._session.model_dump()

    def _answer(self, mistake: "Mistake", event_id: Any) -> None:
        self._mistakes += 1
        if self._mistakes > MAX_MISTAKES:
            raise Fatal("too_many_errors", f"Too many invalid messages ({MAX_MISTAKES}). The last error: {mistake}")
        self._outbox.put(_error(mistake.code, str(mistake), mistake.param, event_id))


class Hearing:
    """The audio under one version of the settings: a live session whose turns are items."""

    def __init__(self, conversation: Conversation, session: Session, offset_s: float, item: Item | None):
        self._conversation = conversation
        self._session = session
        self._offset_s = offset_s
        self._by_turn = session.audio.input.turn_detection is not None
        self._stack = AsyncExitStack()
        # With server_vad, the items of incomplete turns; without it, `open` is the item in progress.
        self._turns: dict[int, Item] = {}
        self.open = item or Item()
        # What each pending Finalized is for: an item to complete, a waiter to wake, or nothing.
        self._awaited: deque[Item | asyncio.Event | None] = deque()
        self._last_commit_s = 0.0

    async def start(self, websocket: WebSocket, taken: Seat) -> None:
        """Raises Mistake for a language or a model that is not supported, ServiceError if there is no model."""
        settings: Settings = websocket.app.state.settings
        wanted = self._session.audio.input
        asked = wanted.transcription or TranscriptionSettings()
        model = asked.model or websocket.query_params.get("model")
        engines: Engines = websocket.app.state.engines
        engine = await self._stack.enter_async_context(engines.use(model))
        try:
            self._live = LiveConnection.open(
                engine,
                settings,
                self._emit,
                taken,
                language=asked.language,
                endpointing=self._session.endpointing,
                word_times=False,
            )
        except TaskError as error:
            await self._stack.aclose()
            message = f"{engines.with_suggestion(error)}."
            raise Mistake("invalid_value", message, f"session.audio.input.transcription.{error.param}") from None
        self._sound = RawSound(*wanted.format.encoding, self._live.hear)
        self._stepping = asyncio.ensure_future(self._live.run())

    async def beside(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; raises what stepping the session raises meanwhile."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait({working, self._stepping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stepping.done():
                self._stepping.result()
            return working.result()
        finally:
            working.cancel()

    async def write(self, sound: bytes) -> None:
        await self.beside(self._sound.write(sound))

    async def commit(self) -> None:
        """End the turn here. Without server_vad an empty buffer is an error; with it there may simply be no turn."""
        await self.beside(self._sound.flush())
        heard_s = self._live.session.heard_s
        if self._by_turn:
            self._awaited.append(None)
        elif round(self.open.before_s + heard_s - self._last_commit_s, 3) < SHORTEST_COMMIT_S:
            raise Mistake(
                "input_audio_buffer_commit_empty", f"The buffer has less than {SHORTEST_COMMIT_S} s of audio."
            )
        else:
            self._conversation.committed(self.open)
            self._awaited.append(self.open)
            self.open = Item()
        self._last_commit_s = heard_s
        await self.beside(self._live.finalize())

    async def clear(self) -> None:
        """Drop the audio that was not committed."""
        self._turns = {turn: item for turn, item in self._turns.items() if item.committed}
        self.open = Item()
        self._sound.clear()
        await self._live.clear(ended_turns=not self._by_turn)
        self._last_commit_s = self._live.session.heard_s

    async def finish(self) -> float:
        """Finish the text of the audio so far; returns its seconds."""
        await self.beside(self._sound.flush())
        self._awaited.append(finished := asyncio.Event())
        await self.beside(self._live.finalize())
        await self.beside(_waited(finished))
        await self.stop()
        heard_s = self._live.session.heard_s
        if not self._by_turn:
            self.open.before_s += heard_s - self._last_commit_s
        return heard_s

    async def stop(self) -> None:
        self._stepping.cancel()
        await asyncio.gather(self._stepping, return_exceptions=True)
        await self._stack.aclose()

    async def _emit(self, event: Event) -> None:
        match event:
            case SpeechStarted() if self._by_turn:
                item = self._turns[event.turn] = Item()
                at = self._milliseconds(event.start)
                self._conversation.send("input_audio_buffer.speech_started", audio_start_ms=at, item_id=item.id)
            case SpeechStopped() if self._by_turn and event.turn in self._turns:
                item, at = self._turns[event.turn], self._milliseconds(event.end)
                self._conversation.send("input_audio_buffer.speech_stopped", audio_end_ms=at, item_id=item.id)
                self._conversation.committed(item)
            case LiveResult():
                self._write_down(event)
            case Finalized():
                match self._awaited.popleft():
                    case Item() as item:
                        self._conversation.completed(item)
                    case asyncio.Event() as finished:
                        finished.set()

    def _write_down(self, result: LiveResult) -> None:
        if self._by_turn:
            item = self._turns.get(result.turn)
        else:
            item = next((awaited for awaited in self._awaited if isinstance(awaited, Item)), self.open)
        if item is None:
            return
        if delta := item.delta(result):
            self._conversation.send(f"{TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=delta)
        if self._by_turn and result.is_final and result.ends_turn:
            del self._turns[result.turn]
            self._conversation.completed(item)

    def _milliseconds(self, seconds: float) -> int:
        return round((self._offset_s + seconds) * 1000)


async def _waited(event: asyncio.Event) -> None:
    await event.wait()


def _sound(audio: Any) -> bytes:
    if not isinstance(audio, str):
        raise Mistake("invalid_value", "audio must be a base64 string", "audio")
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise Mistake("invalid_value", "audio is not valid base64", "audio") from None


def _error(code: str, message: str, param: str | None = None, event_id: Any = None) -> dict[str, Any]:
    """event_id: the client's ID for the message at fault."""
    kind = "server_error" if code in SERVER_ERRORS else "invalid_request_error"
    named = isinstance(event_id, str) and len(event_id) <= MAX_EVENT_ID
    event_id = event_id.encode(errors="replace").decode() if named else None
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": event_id}
    return {"type": "error", "event_id": f"event_{secrets.token_hex(10)}", "error": error}
