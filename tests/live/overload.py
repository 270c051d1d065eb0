"""Live sessions and files together, twice as many as the model has time for.

    python -m tests.live.overload                  # a stand-in of known speed, then the toy; five minutes each
    python -m tests.live.overload --seconds 30 --models stand-in

Sessions are opened one after the other until one is refused: that is the capacity. Then as many again go on asking for
a seat, and clients send files as fast as they are answered, long and short ones. Whoever has a seat speaks in real time
to the end.

A caption's delay is counted when it arrives: from the end of the audio that the caption before it was from. "Untold" is
the part of it that the last `lag` had not announced.
"""

import argparse
import asyncio
import io
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.serving import CANARY, serving

SAMPLE = Path(__file__).parents[2] / "convert" / "toy" / "samples" / "en.flac"
SAMPLE_RATE = 16_000
FRAME_S = 0.1
# Of the stand-in: the time for a look, and for each second of a file.
LOOK_S, FILE_S = 0.2, 0.05
# How often a seat is asked for, at first and after a refusal.
OPEN_EVERY_S, RETRY_S = 1.0, 2.0
# Clients with files, and how often the recording is repeated in a long file.
CLIENTS, REPEATS = 8, 16

STAND_IN = """
from server.__main__ import main
from server.engine import thread
from tests.live.overload import StandIn

thread.Batcher = StandIn
main()
"""


class StandIn:
    """In place of the engine's Batcher: each pass takes a known time, and its text is a word for each half-second.

    The model beside it only gives its tokenizer.
    """

    rows, running = 0, ()

    def __init__(self, model, max_rows, beat, between_layers):
        self._tokenizer = model.tokenizer
        self._tokens = model.tokenizer.encode("The woman sees ten new houses at school every day", "en")

    def has_room_for(self, wanted, beside=()):
        return not beside

    def join(self, passes):
        return [(ticket, self._result(wanted)) for ticket, wanted in passes]

    def step(self):
        return []

    def cancel(self, ticket):
        pass

    def _result(self, wanted):
        from model.decoding import Generated
        from model.transcript import Segment, Transcript
        from server.engine.passes import PassResult, Timing

        # Only live passes go on from a text, be it empty.
        time.sleep(LOOK_S if wanted.prefixes else FILE_S * wanted.length_s)
        count, steps = int(wanted.length_s / 0.5), int(wanted.length_s / 0.08) + 1
        tokens = list(itertools.islice(itertools.cycle(self._tokens), count))
        text = self._tokenizer.decode(tokens)
        segment = Segment(0.0, wanted.length_s, text, tuple(tokens))
        begins = [len(prefix) for prefix in wanted.prefixes or ((),) * len(wanted.tasks)]
        # Each token attends to its own time.
        attention = np.eye(steps)[np.arange(count) * steps // max(count, 1)]
        return PassResult(
            tuple(Transcript(text, task.language, task.target, wanted.length_s, (segment,)) for task in wanted.tasks),
            tuple(Generated(0, tokens[begin:], [0.0] * (count - begin)) for begin in begins),
            tuple(attention[begin:] for begin in begins),
            None,
            Timing(),
        )


@dataclass
class Seen:
    """What one session that had a seat saw. Times in seconds."""

    delays: list[float] = field(default_factory=list)
    untold: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    words: int = 0
    ended: str = ""
    """"done", or why it ended earlier: the code of an error, or of the connection's end."""


@dataclass
class Outcome:
    """What became of the load. refused: how often a seat was; spent: the model's time for live sessions and files."""

    model: str
    seconds: float
    capacity: int = 0
    refused: int = 0
    seen: list[Seen] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    files_s: float = 0.0
    short: list[float] = field(default_factory=list)
    """How long each answer to a short file took."""
    failed: list[str] = field(default_factory=list)
    """Answers to files that are neither a text nor 503."""

    @property
    def delays(self) -> np.ndarray:
        return np.array([delay for seen in self.seen for delay in seen.delays])

    @property
    def longest_untold_s(self) -> float:
        return max(untold for seen in self.seen for untold in seen.untold)

    @property
    def busy(self) -> float:
        """The share of the time that the model worked. Less than 1 if other programs keep the server from its work."""
        return sum(self.spent.values()) / self.seconds

    @property
    def files_share(self) -> float:
        """The share of the model's time that files had."""
        return self.spent["files"] / sum(self.spent.values())


def recording(repeats: int) -> bytes:
    waveform = np.tile(soundfile.read(SAMPLE, dtype="float32")[0], repeats)
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE, format="FLAC")
    return file.getvalue()


@contextmanager
def server(model: str) -> Iterator[str]:
    """Serves "stand-in" or "toy"; yields the URL once the model is loaded."""
    program = ("-c", STAND_IN) if model == "stand-in" else CANARY
    with serving("--model", "toy", "--default-language", "en", program=program) as served:
        yield served.url


class Load:
    """One run against a server. seed: of where in the recording each session begins to speak."""

    def __init__(self, url: str, model: str, seconds: float, seed: int = 0):
        self._url = url
        self._random = np.random.default_rng(seed)
        self._speech = soundfile.read(SAMPLE, dtype="int16")[0]
        self._files = {repeats: recording(repeats) for repeats in (1, REPEATS)}
        self._answered, self._over = asyncio.Event(), asyncio.Event()
        self.outcome = Outcome(model, seconds)

    async def run(self) -> Outcome:
        outcome = self.outcome
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=self._url, limits=limits, timeout=300, trust_env=False) as client,
            asyncio.TaskGroup() as everybody,
        ):
            while socket := await self._seat():
                everybody.create_task(self._speak(socket))
                outcome.capacity += 1
                await asyncio.sleep(OPEN_EVERY_S)
            for _ in range(outcome.capacity):
                everybody.create_task(self._ask_again_and_again())
            senders = [asyncio.create_task(self._send(client, REPEATS if i % 2 else 1)) for i in range(CLIENTS)]
            # From here on, files wait all the time.
            await self._answered.wait()
            before, outcome.files_s = await _spent(client), 0.0
            await asyncio.sleep(outcome.seconds)
            after, files_s = await _spent(client), outcome.files_s
            for sender in senders:
                sender.cancel()
            await asyncio.wait(senders)
            self._over.set()
        outcome.spent, outcome.files_s = {work: after[work] - before[work] for work in after}, files_s
        return outcome

    async def _seat(self) -> ClientConnection | None:
        """A session that has started; None if it was refused."""
        # Without pings: a machine that is too busy to answer them in time is none of the server's.
        url = f"{self._url.replace('http', 'ws', 1)}/stream"
        socket = await connect(url, max_queue=None, proxy=None, ping_interval=None, open_timeout=60)
        # Refused, it may be closed before the start is sent.
        with suppress(ConnectionClosed):
            await socket.send(json.dumps({"type": "start", "sample_rate": SAMPLE_RATE, "language": "en"}))
        message = json.loads(await socket.recv())
        if message["type"] == "ready":
            return socket
        assert message["code"] == "too_many_sessions", message
        self.outcome.refused += 1
        await socket.close()
        return None

    async def _ask_again_and_again(self) -> None:
        while not self._over.is_set():
            if socket := await self._seat():
                await self._speak(socket)
            await asyncio.sleep(RETRY_S * self._random.uniform(0.5, 1.5))

    async def _speak(self, socket: ClientConnection) -> None:
        """Speak until all is over, and note when each caption comes."""
        seen = Seen()
        self.outcome.seen.append(seen)
        began = time.monotonic()
        speaking = asyncio.create_task(self._send_speech(socket, began))
        segment, covered_s, told_s = None, 0.0, 0.0
        with suppress(ConnectionClosed):
            async for text in socket:
                message = json.loads(text)
                match message["type"]:
                    case "lag":
                        told_s = message["seconds"]
                        seen.lags.append(told_s)
                    case "result":
                        if message["segment_id"] != segment:
                            segment, covered_s = message["segment_id"], message["start"]
                        seen.delays.append(time.monotonic() - began - covered_s)
                        seen.untold.append(seen.delays[-1] - told_s)
                        covered_s = message["end"]
                    case "error":
                        seen.ended = message["code"]
                    case "done":
                        seen.ended = "done"
        seen.ended = seen.ended or f"closed with {socket.close_code}"
        speaking.cancel()

    async def _send_speech(self, socket: ClientConnection, began: float) -> None:
        size = round(FRAME_S * SAMPLE_RATE)
        speech = np.roll(self._speech, self._random.integers(len(self._speech)))
        for n in itertools.count():
            if self._over.is_set():
                break
            # A frame is there when its last sample has been spoken.
            await asyncio.sleep(max(0.0, began + (n + 1) * FRAME_S - time.monotonic()))
            await socket.send(speech.take(range(n * size, (n + 1) * size), mode="wrap").tobytes())
        await socket.send('{"type": "stop"}')

    async def _send(self, client: httpx.AsyncClient, repeats: int) -> None:
        """Send a file, again and again."""
        while True:
            began = time.monotonic()
            response = await client.post("/transcribe?language=en", content=self._files[repeats])
            if response.status_code == 200:
                self._answered.set()
                self.outcome.files_s += response.json()["duration"]
                if repeats == 1:
                    self.outcome.short.append(time.monotonic() - began)
            elif response.status_code == 503:
                await asyncio.sleep(RETRY_S)
            else:
                self.outcome.failed.append(response.text)


async def _spent(client: httpx.AsyncClient) -> dict[str, float]:
    """The model's time so far, by work."""
    text = (await client.get("/metrics")).text
    found = re.findall(r'^canary_model_seconds_total{.*work="(\w+)"} (\S+)$', text, re.MULTILINE)
    return {work: float(seconds) for work, seconds in found}


def table(outcomes: list[Outcome]) -> str:
    """In Markdown."""
    rows = [
        "| model | sessions at a time | refused | captions | delay: median, 95 %, longest | longest untold | "
        "lag told, longest | files' share of the model's time | of files, audio s/s | a short file: median, longest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        delays = outcome.delays
        cells = [
            outcome.model,
            str(outcome.capacity),
            str(outcome.refused),
            str(len(delays)),
            f"{np.median(delays):.1f}, {np.percentile(delays, 95):.1f}, {delays.max():.1f} s",
            f"{outcome.longest_untold_s:.1f} s",
            f"{max((lag for seen in outcome.seen for lag in seen.lags), default=0.0):.1f} s",
            f"{outcome.files_share:.0%}",
            f"{outcome.files_s / outcome.seconds:.1f}",
            f"{np.median(outcome.short):.1f}, {max(outcome.short):.1f} s",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


async def measured(model: str, seconds: float, seed: int = 0) -> Outcome:
    with server(model) as url:
        return await Load(url, model, seconds, seed).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="stand-in,toy")
    parser.add_argument("--seconds", type=float, default=300.0, help="for each model")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    outcomes = []
    for model in given.models.split(","):
        outcomes.append(asyncio.run(measured(model, given.seconds, given.seed)))
        seen = outcomes[-1].seen
        early = [each.ended for each in seen if each.ended != "done"]
        print(f"{model}: {len(seen)} sessions, ended early: {early}, files: {outcomes[-1].failed}", file=sys.stderr)
        print(table(outcomes[-1:]), file=sys.stderr)
    print(table(outcomes))


if __name__ == "__main__":
    main()
