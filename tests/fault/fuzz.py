"""Damaged and hostile input by the thousand: archives, recordings, messages of live sessions.

    python -m tests.fault.fuzz --what nemo --count 2000
    python -m tests.fault.fuzz --what media --count 3000        # of each format
    python -m tests.fault.fuzz --what websocket --count 3000

Every input is made from a seed. Each must end as it should: with a result or with the error for it, and nothing else.
Prints a table with how often each end was seen and how much memory grew after the first quarter. Exits with 1 if an
input ended otherwise, a traceback was logged, or memory grew by more than `--growth` MB.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
import psutil
from tqdm import tqdm
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from convert.convert import ConversionConfig, convert
from convert.errors import ConversionError
from server.audio.decode import AudioLimits, decode
from server.errors import AudioError
from tests import archives
from tests.live.recorded import contained
from tests.live.recorded import tone as recorded_tone
from tests.muxing import FRAGMENTS, caf_with_aac, encoded, tone, written_by_av
from tests.serving import serving

SEED = 1
# Boundary values of a byte.
EDGES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
# Messages in a live session, and sessions that are open at a time.
MESSAGES, TOGETHER = 20, 4


@dataclass
class Outcome:
    """ends: how often each was seen; wrong: those that should never be; megabytes: memory now and then."""

    what: str
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """In MB: the peak of memory, above its level after the first quarter."""
        first = len(self.megabytes) // 4
        return max(0.0, max(self.megabytes[first:]) - self.megabytes[first]) if self.megabytes else 0.0

    def row(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        return f"| {self.what} | {self.ends.total()} | {ends} | {len(self.wrong)} | {self.growth:.0f} MB |"


HEAD = "| what | inputs | ends | others | growth of memory |\n|---|---|---|---|---|"


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A copy with one to eight changes: bytes, numbers, pieces cut out, repeated or swapped, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        # Most structure is at the beginning.
        at = rng.randrange(min(len(data), rng.choice((64, 2000, len(data)))))
        length = rng.randrange(1, 64)
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice(EDGES)
            case 2:
                data[at : at + 4] = rng.randbytes(4)
            case 3:
                data[at : at + 4] = bytes([rng.choice(EDGES)]) * 4
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
            case 6 if rng.random() < 0.2:
                del data[at:]
        if not data:
            return b"\0"
    return bytes(data)


def resident(process: psutil.Process) -> float:
    """MB, without its children."""
    return process.memory_info().rss / 1e6


# ---- archives ----


@cache
def _members(variant: str) -> dict[str, bytes]:
    return archives.members(variant)


def damaged_archive(path: Path, rng: random.Random) -> None:
    """Damage to the archive itself, or to one of its members, which then has the right length in the archive."""
    files = dict(_members(rng.choice(tuple(archives.VARIANTS))))
    if rng.random() < 0.6:
        name = rng.choice(sorted(files))
        files[name] = damaged(files[name], rng)
    archives.write_archive(path, files, gzipped=rng.random() < 0.1)
    if rng.random() < 0.5:
        path.write_bytes(damaged(path.read_bytes(), rng))


def fuzz_nemo(count: int, seed: int = SEED) -> Iterator[Outcome]:
    outcome, rng, this = Outcome("archives"), random.Random(seed), psutil.Process()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in _counted(count, "archives"):
            source, output = folder / "m.nemo", folder / f"{number}"
            damaged_archive(source, rng)
            try:
                convert(ConversionConfig(source=source, output=output))
            except ConversionError as error:
                outcome.ends["refused"] += 1
                message = str(error)
                if "\n" in message or len(message) > 1000 or output.exists():
                    outcome.wrong.append(f"{number}: {message!r}")
            except Exception as error:
                outcome.ends[type(error).__name__] += 1
                outcome.wrong.append(f"{number}: {error!r}")
            else:
                outcome.ends["converted"] += 1
            outcome.megabytes.append(resident(this))
            for left in folder.iterdir():
                _remove(left)
    yield outcome


def _remove(path: Path) -> None:
    for inner in path.iterdir() if path.is_dir() else ():
        _remove(inner)
    path.rmdir() if path.is_dir() else path.unlink()


# ---- recordings ----


@cache
def recordings() -> dict[str, bytes]:
    """Two seconds in each format that is read."""
    mono, stereo = tone(2.0), tone(2.0, 48_000, 2)
    return {
        "wav": encoded(mono, 16_000, "WAV"),
        "wav with ADPCM": written_by_av(stereo, 48_000, "wav", "adpcm_ms"),
        "wav with MP3": written_by_av(stereo, 48_000, "wav", "libmp3lame"),
        "aiff": encoded(mono, 16_000, "AIFF"),
        "caf": encoded(mono, 16_000, "CAF"),
        "caf with AAC": caf_with_aac(stereo, 48_000, index_first=True),
        "flac": encoded(mono, 16_000, "FLAC"),
        "mp3": encoded(mono, 16_000, "MP3"),
        "m4a": written_by_av(stereo, 48_000, "ipod", "aac"),
        "mp4": written_by_av(stereo, 48_000, "mp4", "aac", **FRAGMENTS),
        "mov": written_by_av(stereo, 48_000, "mov", "alac"),
        "ogg": encoded(mono, 16_000, "OGG"),
        "ogg with Opus": encoded(stereo, 48_000, "OGG", "OPUS"),
        "webm": written_by_av(stereo, 48_000, "webm", "libopus"),
        "aac": written_by_av(stereo, 48_000, "adts", "aac"),
    }


class _LostWorkers(logging.Handler):
    """Counts the workers of the decoder pool that crashed or hung."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "exited with" in record.msg or "was stopped" in record.msg


def fuzz_media(count: int, seed: int = SEED) -> Iterator[Outcome]:
    this = psutil.Process()
    with _lost_workers() as lost:
        for name, whole in recordings().items():
            outcome, rng, before = Outcome(name), random.Random(f"{seed} {name}"), lost.count
            for number in _counted(count, name):
                try:
                    samples = decode(damaged(whole, rng), AudioLimits(max_s=60.0))
                    outcome.ends["decoded"] += 1
                    if not 0 < len(samples) <= 60 * 16_000 + 1:
                        outcome.wrong.append(f"{number}: {len(samples)} samples")
                except AudioError as error:
                    outcome.ends["refused"] += 1
                    if "\n" in str(error) or len(str(error)) > 400:
                        outcome.wrong.append(f"{number}: {str(error)!r}")
                except Exception as error:
                    outcome.ends[type(error).__name__] += 1
                    outcome.wrong.append(f"{number}: {error!r}")
                outcome.megabytes.append(resident(this))
            outcome.what += f" ({lost.count - before} workers lost)" if lost.count > before else ""
            yield outcome


@contextlib.contextmanager
def _lost_workers() -> Iterator[_LostWorkers]:
    logger, handler = logging.getLogger("server.audio.workers"), _LostWorkers()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# ---- messages ----


@cache
def _sound(encoding: str) -> bytes:
    return contained(recorded_tone(1.0), encoding)


CAPTIONS = (
    {"type": "start", "encoding": "pcm_s16le", "sample_rate": 16_000, "language": "en"},
    {"type": "start", "encoding": "webm", "target_language": "de", "interim_results": False},
    {"type": "start", "encoding": "ogg", "endpointing_ms": 300},
    {"type": "start", "encoding": "mp4", "language": "auto"},
    {"type": "finalize"},
    {"type": "keepalive"},
    {"type": "stop"},
)
_FORMAT = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": None}}}
REALTIME = (
    {"type": "session.update", "session": {"type": "transcription", **_FORMAT}},
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(9600)).decode()},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {"type": "transcription_session.update", "session": {}},
)
VALUES = (None, True, -1, 0, 1e308, 2**63, "", "\0", "�" * 200, [], [[]], {}, {"type": {}}, "<|endoftext|>", "a" * 5000)


def changed(message: dict, rng: random.Random) -> dict:
    """With another value at a random key, at any depth, or with another key."""
    copy = json.loads(json.dumps(message))
    at = copy
    while (inner := [value for value in at.values() if isinstance(value, dict) and value]) and rng.random() < 0.6:
        at = rng.choice(inner)
    at[rng.choice([*at, "other"])] = rng.choice(VALUES)
    return copy


def message(kinds: tuple[dict, ...], rng: random.Random) -> str | bytes:
    whole = rng.choice(kinds)
    match rng.randrange(6):
        case 0:
            return json.dumps(whole)
        case 1 | 2:
            return json.dumps(changed(whole, rng))
        case 3:
            return damaged(json.dumps(whole).encode(), rng).decode(errors="replace")
        case 4:
            return rng.randbytes(rng.choice((0, 1, 2, 3, 100, 32_000)))
    return damaged(_sound(rng.choice(("webm", "ogg", "mp4"))), rng)


async def _session(url: str, rng: random.Random, outcome: Outcome) -> None:
    """One session: a proper beginning or none, hostile messages, and one of several ends."""
    path, kinds = rng.choice((("/stream", CAPTIONS), ("/v1/realtime", REALTIME)))
    begin = rng.choice(kinds[:4]) if rng.random() < 0.7 else None
    end = rng.choice(("stop", "close", "abort"))
    async with connect(f"{url.replace('http', 'ws')}{path}", proxy=None, open_timeout=60, close_timeout=10) as ws:
        reading = asyncio.ensure_future(_read(ws, outcome))
        try:
            if begin:
                await ws.send(json.dumps(begin))
            for _ in range(MESSAGES):
                outcome.ends["sent"] += 1
                await ws.send(message(kinds, rng))
            if end == "stop":
                await ws.send('{"type": "stop"}')
                await asyncio.wait({reading}, timeout=2)
        except ConnectionClosed:
            pass
        finally:
            if end == "abort":
                ws.transport.abort()
            await ws.close()
            await reading
    outcome.ends[f"closed with {ws.close_code}"] += 1
    if ws.close_code == 1011:
        outcome.wrong.append(f"{path}: {ws.close_reason}")


async def _read(ws: ClientConnection, outcome: Outcome) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for told in ws:
            if "internal_error" in str(told):
                outcome.wrong.append(str(told)[:200])


async def _sessions(url: str, process: psutil.Process, count: int, seed: int, outcome: Outcome) -> None:
    numbers = iter(_counted(-(-count // MESSAGES), "sessions"))

    async def client() -> None:
        for number in numbers:
            await _session(url, random.Random(f"{seed} {number}"), outcome)
            outcome.megabytes.append(resident(process))

    await asyncio.gather(*(client() for _ in range(TOGETHER)))


def fuzz_websocket(count: int, seed: int = SEED) -> Iterator[Outcome]:
    outcome = Outcome("messages")
    with (
        tempfile.TemporaryDirectory() as cache,
        serving("--model", "toy", "--cache", cache, "--log-format", "json") as served,
    ):
        asyncio.run(_sessions(served.url, served.process, count, seed, outcome))
        with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as client:
            deadline = time.monotonic() + 30
            while "canary_live_sessions 0.0" not in client.get("/metrics").text:
                if time.monotonic() > deadline:
                    outcome.wrong.append("a session is left")
                    break
                time.sleep(0.1)
            sample = Path(archives.__file__).parents[1] / "convert/toy/samples/en.flac"
            answer = client.post("/transcribe?language=en", content=sample.read_bytes())
            if answer.status_code != 200:
                outcome.wrong.append(f"afterwards: {answer.text[:200]}")
        logged = [json.loads(line) for line in served.log.read_text().splitlines()]
        outcome.wrong += [str(event)[:2000] for event in logged if event["level"] in ("error", "critical")]
    # Of the ends, those of sessions are of interest.
    outcome.what = f"{outcome.ends.pop('sent')} messages, by session"
    yield outcome


FUZZ: dict[str, Callable[[int, int], Iterator[Outcome]]] = {
    "nemo": fuzz_nemo,
    "media": fuzz_media,
    "websocket": fuzz_websocket,
}


def _counted(count: int, what: str) -> Iterator[int]:
    yield from tqdm(range(count), desc=what, disable=None, leave=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--what", choices=FUZZ, required=True)
    parser.add_argument("--count", type=int, default=2000, help="inputs; of media, of each format")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--growth", type=float, default=100.0, help="MB that memory may grow by")
    given = parser.parse_args()
    is_well = True
    print(HEAD)
    for outcome in FUZZ[given.what](given.count, given.seed):
        print(outcome.row(), flush=True)
        for wrong in outcome.wrong[:20]:
            print(f"{outcome.what}: {wrong}", file=sys.stderr)
        is_well = is_well and not outcome.wrong and outcome.growth <= given.growth
    return int(not is_well)


if __name__ == "__main__":
    sys.exit(main())
