"""A client's bytes → 16 kHz mono float32, as they come: raw samples, or a container that a recorder writes."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Protocol

import av
import numpy as np
import soxr
from av.audio.resampler import AudioResampler
from av.error import FFmpegError

from ..errors import AudioError
from .endpointing import SAMPLE_RATE

MIN_RATE, MAX_RATE = 8_000, 192_000
# The demuxer for each container; nothing else is tried.
CONTAINERS = {"webm": "matroska", "mp4": "mov", "ogg": "ogg"}
# Of a container, what may wait to be decoded; of its header, what is read before sound must come.
MAX_WAITING_BYTES = 1 << 20
PROBED_BYTES = 1 << 16

# Nothing but what is written to us is opened, and only what recorders write is decoded.
OPTIONS = {
    "probesize": str(PROBED_BYTES),
    "analyzeduration": "0",
    "fflags": "nobuffer",
    "protocol_whitelist": "none",
    "codec_whitelist": "opus,libopus,vorbis,aac,flac,mp3,mp3float,pcm_s16le,pcm_f32le",
    "max_streams": "8",
}

Sink = Callable[[np.ndarray], Awaitable[None]]


class Sound(Protocol):
    """Bytes in any pieces go to `write`; what they hold goes on to a sink, which may make both wait."""

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None:
        """All of it has been written: hand on what is left."""

    def close(self) -> None:
        """Nothing more is wanted."""


class RawSound:
    """Samples without a container: pcm_s16le, or G.711's ulaw and alaw."""

    def __init__(self, encoding: str, rate: int, sink: Sink):
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(f"sample_rate {rate} is not possible: {MIN_RATE} to {MAX_RATE}", "sample_rate")
        self._decode = {"pcm_s16le": _pcm, "ulaw": _ulaw, "alaw": _alaw}[encoding]
        self._width = 2 if encoding == "pcm_s16le" else 1
        self._sink = sink
        self._rest = b""
        self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32") if rate != SAMPLE_RATE else None

    async def write(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % self._width
        self._rest = data[whole:]
        await self._pass_on(self._decode(data[:whole]), last=False)

    async def end(self) -> None:
        await self._pass_on(np.zeros(0, np.float32), last=True)
        if self._resampler:
            self._resampler.clear()

    def close(self) -> None:
        pass

    async def _pass_on(self, samples: np.ndarray, last: bool) -> None:
        if self._resampler:
            samples = self._resampler.resample_chunk(samples, last=last)
        if len(samples):
            await self._sink(samples)


class ContainerSound:
    """webm, mp4 or ogg, decoded in a thread of its own while it is being written."""

    def __init__(self, encoding: str, sink: Sink):
        self._demuxer = CONTAINERS[encoding]
        self._encoding = encoding
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._pipe = _Pipe()
        self._error: AudioError | None = None
        self._done = asyncio.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="live sound", daemon=True)

    async def write(self, data: bytes) -> None:
        if not self._thread.ident:
            self._thread.start()
        self._pipe.put(data)
        while self._pipe.waiting > MAX_WAITING_BYTES and not self._done.is_set():
            await asyncio.to_thread(self._pipe.wait_for_room, MAX_WAITING_BYTES, 0.2)
        if self._error:
            raise self._error

    async def end(self) -> None:
        self._pipe.end()
        if self._thread.ident:
            await self._done.wait()
        if self._error:
            raise self._error

    def close(self) -> None:
        self._closed = True
        self._pipe.end()

    def _run(self) -> None:
        try:
            self._decode()
        except (FFmpegError, ValueError):
            self._error = AudioError(f"The sound is not {self._encoding} that can be read.", "encoding")
        except CancelledError:
            pass
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._done.set)

    def _decode(self) -> None:
        with av.open(self._pipe, "r", format=self._demuxer, container_options=OPTIONS) as container:
            if not container.streams.audio:
                raise ValueError("no sound")
            resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            for frame in container.decode(container.streams.audio[0]):
                for resampled in resampler.resample(frame):
                    self._pass_on(resampled.to_ndarray()[0])
            for resampled in resampler.resample(None):
                self._pass_on(resampled.to_ndarray()[0])

    def _pass_on(self, samples: np.ndarray) -> None:
        """Waits until the sink, in the event loop, has taken them."""
        if self._closed:
            raise CancelledError
        sinking = asyncio.run_coroutine_threadsafe(_taken(self._sink, samples), self._loop)
        while True:
            try:
                return sinking.result(timeout=0.5)
            except TimeoutError:
                if self._closed:
                    sinking.cancel()
                    raise CancelledError from None


async def _taken(sink: Sink, samples: np.ndarray) -> None:
    await sink(samples)


class _Pipe:
    """A file that is read in one thread while it is written in another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data = bytearray()
        self._ended = False

    @property
    def waiting(self) -> int:
        return len(self._data)

    def put(self, data: bytes) -> None:
        with self._changed:
            self._data += data
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for_room(self, most: int, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._data) <= most, timeout_s)

    def read(self, size: int) -> bytes:
        """What is there, up to `size` bytes; waits for the first of them. b"" is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._data or self._ended)
            data = bytes(self._data[:size])
            del self._data[:size]
            self._changed.notify_all()
            return data


def _pcm(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def _ulaw(data: bytes) -> np.ndarray:
    return _ULAW[np.frombuffer(data, np.uint8)]


def _alaw(data: bytes) -> np.ndarray:
    return _ALAW[np.frombuffer(data, np.uint8)]


def _ulaw_table() -> np.ndarray:
    """ITU-T G.711, table 2a: sign, three bits of exponent, four of mantissa, all inverted; biased by 33."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4).astype(int) & 7, code.astype(int) & 15
    size = ((2 * mantissa + 33) << exponent) - 33
    return (np.where(code & 128, -size, size) / 8192).astype(np.float32)


def _alaw_table() -> np.ndarray:
    """ITU-T G.711, table 1a: as above, every other bit inverted, no bias but a half step."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4).astype(int) & 7, code.astype(int) & 15
    size = np.where(exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0))
    return (np.where(code & 128, size, -size) / 4096).astype(np.float32)


_ULAW, _ALAW = _ulaw_table(), _alaw_table()
