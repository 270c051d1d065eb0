"""Toy speech, and a client that speaks it to a server and notes what it is shown."""

import asyncio
import io
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import numpy as np
import soundfile
import websockets

from tests.toy.grammar import sentence
from tests.toy.speech import VOICES, WordTime, speak

SAMPLE_RATE = 16_000
FRAME_S = 0.1


@dataclass
class Speech:
    """Sentences one after the other, and when each word is said."""

    waveform: np.ndarray
    words: list[WordTime]

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / SAMPLE_RATE

    def until(self, seconds: float) -> "Speech":
        """The sentences that end before then, and silence up to then."""
        ends = [i for i, (word, _, end) in enumerate(self.words, 1) if word[-1] in ".?!" and end <= seconds]
        words = self.words[: ends[-1]] if ends else []
        waveform = self.waveform[: round(seconds * SAMPLE_RATE)].copy()
        waveform[round(words[-1][2] * SAMPLE_RATE) if words else 0 :] = 0
        return Speech(waveform, words)


@dataclass
class Shown:
    """What a client saw: (seconds since the sound began, a `result` message) in order. refused: no session began."""

    results: list[tuple[float, dict]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    refused: bool = False

    @property
    def finals(self) -> list[dict]:
        return [message for _, message in self.results if message["is_final"]]

    @property
    def words(self) -> list[str]:
        return [word for message in self.finals for word in message["text"].split()]

    def add(self, at_s: float, message: dict) -> None:
        """Raises AssertionError if text that was certain is not any more."""
        if message["type"] == "lag":
            self.lags.append(message["seconds"])
        if message["type"] == "error":
            raise RuntimeError(message["message"])
        if message["type"] != "result":
            return
        former = next((m for _, m in reversed(self.results) if m["segment_id"] == message["segment_id"]), None)
        if former:
            assert not former["is_final"], "a result after the final one"
            kept = former["text"][: former["stable_chars"]]
            assert message["text"][: message["stable_chars"]].startswith(kept), (former, message)
        self.results.append((at_s, message))


def speech(language: str, seconds: float, seed: int) -> Speech:
    """Held-out sentences by one voice after another, with the pauses of ordinary speech."""
    rng = random.Random(f"live {language} {seed}")
    parts, words, at = [], [], 0.0
    while at < seconds:
        said = [word for _ in range(rng.randint(1, 6)) for word in sentence(rng, "test").words(language)]
        waveform, times = speak(said, language, rng.choice(VOICES[language]), rng, noise=0.002)
        words += [(word, start + at, end + at) for word, start, end in times]
        parts.append(waveform)
        at += len(waveform) / SAMPLE_RATE
    return Speech(np.concatenate(parts), words)


async def streamed(url: str, said: Speech, speed: float, start: dict, wait_s: float = 0.0) -> Shown:
    """Speak to a server, frame by frame, `speed` times as fast as in life. Times are of the sound: wall × speed."""
    shown = Shown()
    await asyncio.sleep(wait_s)
    # Without pings: a machine that is too busy to answer them in time is none of the server's.
    url = f"{url.replace('http', 'ws', 1)}/stream"
    async with websockets.connect(url, max_queue=None, ping_interval=None, open_timeout=60) as socket:
        # Refused, it may be closed before the start is sent.
        with suppress(websockets.ConnectionClosed):
            await socket.send(json.dumps({"type": "start", "sample_rate": SAMPLE_RATE, **start}))
        first = json.loads(await socket.recv())
        if first.get("code") == "too_many_sessions":
            shown.refused = True
            return shown
        assert first["type"] == "ready", first
        began = time.monotonic()
        sending = asyncio.create_task(_send(socket, said, speed, began))
        async for text in socket:
            shown.add((time.monotonic() - began) * speed, message := json.loads(text))
            if message["type"] == "done":
                break
        await sending
    return shown


async def _send(socket, said: Speech, speed: float, began: float) -> None:
    pcm = (said.waveform.clip(-1, 1) * 32767).astype("<i2").tobytes()
    size = round(FRAME_S * SAMPLE_RATE) * 2
    for n, at in enumerate(range(0, len(pcm), size)):
        # a frame is there when its last sample has been spoken
        await asyncio.sleep(max(0.0, began + (n + 1) * FRAME_S / speed - time.monotonic()))
        await socket.send(pcm[at : at + size])
    await socket.send('{"type": "stop"}')


def offline(url: str, said: Speech, language: str) -> list[str]:
    """The same sound as a file."""
    file = io.BytesIO()
    soundfile.write(file, said.waveform, SAMPLE_RATE, format="FLAC")
    answer = httpx.post(
        f"{url}/transcribe", params={"language": language}, files={"file": file.getvalue()}, timeout=None
    )
    return answer.raise_for_status().json()["text"].split()
