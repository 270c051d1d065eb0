"""WS /stream: audio in, captions out while people speak.

    client  start ─▶ audio, finalize, keepalive … ─▶ stop
    server  ready ─▶ speech_started, result, speech_stopped, lag, error … ─▶ done

Audio is sent as binary messages: mono Int16LE samples, or a recorder's container in pieces. Everything else is JSON
with a `type`. Times are seconds from the start of the audio.

    start           encoding (pcm_s16le, webm, mp4, ogg), sample_rate (required for pcm_s16le), language (a code or
                    auto), target_language, interim_results, endpointing_ms, model; all optional unless noted
    finalize        finish the text of the audio so far without waiting for a pause
    keepalive       keeps the session from being closed as idle
    stop            finalize, answer with done, and close

    ready           session_id, model, language, target_language
    speech_started  start                      speech_stopped  end
    result          segment_id; text; stable_chars: how many of its first characters are final; is_final: all of
                    them are; speech_final: the speaker stopped after it; start, end; language; words (if is_final);
                    translation (if a target_language was set): language, text, stable_chars, or null
    lag             seconds: how far the captions are behind; 0 when they have caught up
    error           code, message, fatal (the session ends), param (the field at fault)
    done            duration
"""

import asyncio
import json
import secrets
from typing import Any, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.task import TaskError
from server.audio.decode import AudioLimits
from server.engine.registry import Engines
from server.engine.thread import Engine
from server.errors import AudioError, RequestError, ServiceError, invalid_field
from server.live.capacity import Seat
from server.live.connection import LiveConnection
from server.live.container import CONTAINERS, ContainerSound
from server.live.endpointing import Endpointing
from server.live.events import Event, Finalized, Lag, LiveResult, Problem, SpeechStarted, SpeechStopped
from server.live.sound import RawSound, Sound
from server.settings import Settings
from server.text.languages import Language
from server.web.routes.websockets import NORMAL, Fatal, Outbox, converse, first_of, seat

router = APIRouter()

SUBPROTOCOL = "captions"
MESSAGES = ("start", "finalize", "keepalive", "stop")
# How long the first message may take, and how many invalid messages are answered before the session ends.
START_S = 15.0
MAX_MISTAKES = 20


class Start(BaseModel):
    """The first message. sample_rate is required for pcm_s16le; containers hold their own."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["start"]
    encoding: Literal["pcm_s16le", "webm", "mp4", "ogg"] = "pcm_s16le"
    sample_rate: int | None = Field(None, ge=8_000, le=192_000)
    language: Language = None
    target_language: Language = None
    interim_results: bool = True
    endpointing_ms: int = Field(500, ge=100, le=5_000)
    model: str | None = None


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """Live captions. The top of this file describes the messages."""
    # A browser that sends its API key as a subprotocol only connects if another one is accepted.
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)

    async def talk(outbox: Outbox) -> None:
        async with seat(websocket) as taken:
            inbox = Inbox(websocket, outbox)
            start = await _started(inbox)
            engines: Engines = websocket.app.state.engines
            async with engines.use(start.model) as engine:
                try:
                    captions = Captions(start, engine, websocket.app.state.settings, taken, inbox, outbox)
                except TaskError as error:
                    raise RequestError(f"{engines.with_suggestion(error)}.", error.param) from None
                await captions.run()

    await converse(websocket, talk, lambda code, message: _error(code, message, fatal=True))


class Inbox:
    """The client's messages. Each invalid one is answered with an error and skipped."""

    def __init__(self, websocket: WebSocket, outbox: Outbox):
        self._websocket = websocket
        self._outbox = outbox
        self._mistakes = 0

    async def next(self, timeout_s: float) -> bytes | dict[str, Any]:
        """Audio bytes, or a message of a known type. Raises TimeoutError, WebSocketDisconnect, Fatal."""
        async with asyncio.timeout(timeout_s):
            while True:
                # Messages that arrived together are received without waiting: let other tasks run in between.
                await asyncio.sleep(0)
                received = await self._websocket.receive()
                if received["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(received.get("code", NORMAL))
                if (data := received.get("bytes")) is not None:
                    return data
                if message := self._message(received["text"]):
                    return message

    def _message(self, text: str) -> dict[str, Any] | None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return self.mistake("invalid_json", f"{_short(text)} is not valid JSON")
        if not isinstance(message, dict):
            return self.mistake("invalid_message", f"{_short(text)} is not a JSON object")
        if message.get("type") not in MESSAGES:
            problem = f"unknown type {message['type']!r:.60}" if "type" in message else "the message has no type"
            return self.mistake("unknown_message", f"{problem}; must be one of {', '.join(MESSAGES)}")
        return message

    def mistake(self, code: str, message: str, param: str | None = None) -> None:
        """Report an invalid message. One too many ends the session."""
        self._mistakes += 1
        if self._mistakes > MAX_MISTAKES:
            raise Fatal("too_many_errors", f"Too many invalid messages ({MAX_MISTAKES}). The last error: {message}")
        self._outbox.put(_error(code, message, param=param))


async def _started(inbox: Inbox) -> Start:
    """The start message. Other messages before it are refused."""
    while True:
        try:
            message = await inbox.next(START_S)
        except TimeoutError:
            raise Fatal("no_start", f"No start message within {START_S:g} s.") from None
        if isinstance(message, bytes) or message["type"] != "start":
            received = "audio" if isinstance(message, bytes) else message["type"]
            inbox.mistake("not_started", f"received {received} before the start message")
            continue
        try:
            start = Start.model_validate(message)
            if start.sample_rate is None and start.encoding == "pcm_s16le":
                raise RequestError("sample_rate is required for pcm_s16le", "sample_rate")
            return start
        except (ValidationError, RequestError) as error:
            wrong = invalid_field(error) if isinstance(error, ValidationError) else error
            inbox.mistake("invalid_start", str(wrong), wrong.param)


class Captions:
    """A started session: audio and commands from `inbox`, captions to `outbox`."""

    def __init__(self, start: Start, engine: Engine, settings: Settings, taken: Seat, inbox: Inbox, outbox: Outbox):
        """Raises TaskError for what the model does not support."""
        assert engine.info
        self._start = start
        self._inbox = inbox
        self._outbox = outbox
        self._settings = settings
        self._model = engine.info.name
        self._shown: int | None = None
        self._connection = LiveConnection.open(
            engine,
            settings,
            self._emit,
            taken,
            language=start.language,
            target_language=start.target_language,
            endpointing=Endpointing(silence_s=start.endpointing_ms / 1000),
            word_times=True,
        )
        # Finalize requests in progress.
        self._ends = 0
        self._all_final = asyncio.Event()
        self._sound: Sound = (
            ContainerSound(start.encoding, self._connection.hear, AudioLimits.from_settings(settings))
            if start.encoding in CONTAINERS
            else RawSound(start.encoding, start.sample_rate or 0, self._connection.hear)
        )

    async def run(self) -> None:
        """Run until the client stops. Raises Fatal, WebSocketDisconnect, or what a step raises."""
        self._outbox.put(
            {
                "type": "ready",
                "session_id": secrets.token_hex(8),
                "model": self._model,
                "language": self._connection.session.options.language,
                "target_language": self._start.target_language,
            }
        )
        await first_of(self._connection.run(), self._hear(), self._listen())

    async def _hear(self) -> None:
        try:
            await self._sound.run()
        except ServiceError as error:
            await self._break_off(error)

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._inbox.next(self._settings.live_idle_s)
            except TimeoutError:
                raise Fatal(
                    "idle", f"No message for {self._settings.live_idle_s:g} s; the session is closed."
                ) from None
            if isinstance(message, bytes):
                await self._write(message)
            elif message["type"] == "finalize":
                await self._sound.flush()
                await self._finalize()
            elif message["type"] == "stop":
                return await self._stop()
            elif message["type"] == "start":
                self._inbox.mistake("already_started", "the session has already started")

    async def _write(self, sound: bytes) -> None:
        try:
            await self._sound.write(sound)
        except AudioError as error:
            await self._break_off(error)

    async def _finalize(self) -> None:
        self._ends += 1
        self._all_final.clear()
        await self._connection.finalize()

    async def _break_off(self, error: ServiceError) -> None:
        """The rest of the audio cannot be read: finish the text so far, then end the session with the reason."""
        await self._finalize()
        await self._all_final.wait()
        raise error

    async def _stop(self) -> None:
        """Finish the text, and confirm it with `done`."""
        await self._sound.end()
        await self._finalize()
        await self._all_final.wait()
        self._outbox.put({"type": "done", "duration": round(self._connection.session.heard_s, 3)})

    async def _emit(self, event: Event) -> None:
        match event:
            case LiveResult():
                self._show(event)
            case SpeechStarted():
                self._outbox.put({"type": "speech_started", "start": round(event.start, 3)})
            case SpeechStopped():
                self._outbox.put({"type": "speech_stopped", "end": round(event.end, 3)})
            case Lag():
                self._outbox.put({"type": "lag", "seconds": round(event.seconds, 1)}, replaces="lag")
            case Problem():
                self._outbox.put(_error(event.code, event.message))
            case Finalized():
                self._ends -= 1
                if not self._ends:
                    self._all_final.set()

    def _show(self, result: LiveResult) -> None:
        if not result.is_final and not self._start.interim_results:
            return
        # Send an empty final only if it retracts an interim text that the client has seen.
        if not (result.text or result.segment == self._shown):
            return
        self._shown = result.segment
        replaces = None if result.is_final else result.segment
        self._outbox.put(_result(result, self._start.target_language is not None), replaces)


def _result(result: LiveResult, translated: bool) -> dict[str, Any]:
    message: dict[str, Any] = {
        "type": "result",
        "segment_id": result.segment,
        "text": result.text,
        "stable_chars": result.stable,
        "is_final": result.is_final,
        "speech_final": result.ends_turn,
        "start": round(result.start, 3),
        "end": round(result.end, 3),
        "language": result.language,
    }
    if result.is_final:
        message["words"] = [
            {"word": word.word, "start": round(word.start, 3), "end": round(word.end, 3)} for word in result.words
        ]
    if translated:
        translation = result.translation
        message["translation"] = translation and {
            "language": translation.language, "text": translation.text, "stable_chars": translation.stable
        }  # fmt: skip
    return message


def _error(code: str, message: str, fatal: bool = False, param: str | None = None) -> dict[str, Any]:
    error = {"type": "error", "code": code, "message": message, "fatal": fatal}
    return error | {"param": param} if param else error


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
