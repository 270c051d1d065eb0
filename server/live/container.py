"""Live audio in a container, decoded as it arrives by a worker of the pool (`audio/workers.py`).

The worker is the session's own and ends with it. A demuxer that crashes, hangs or uses too much memory ends its own
session and no other.
"""

import asyncio
import math
import socket
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from dataclasses import replace

import numpy as np

from server.audio import workers
from server.audio.decode import AudioLimits, decoder_job, within_full_scale
from server.audio.workers import HEADER_BYTES, POOL, READY, Worker, stalled, start_timed_out, unpacked_header
from server.errors import AudioError
from server.live.sound import Sink

# ffmpeg's demuxer for each encoding; no other is tried.
CONTAINERS = {"webm": "matroska", "mp4": "mov", "ogg": "ogg"}
# How many bytes may arrive without any audio in them before the session is ended.
MAX_SILENT_BYTES = 8 << 20


class ContainerSound:
    """A webm, mp4 or ogg stream. `run` owns the decoder, and must run while `write` and `end` are called.

    limits: for channels and rate; the length is not limited here.
    Each direction buffers what fits into a socket, about 200 kB; after that, `write` waits.
    """

    def __init__(self, encoding: str, sink: Sink, limits: AudioLimits = AudioLimits()):
        self._encoding = encoding
        self._sink = sink
        self._job = decoder_job(CONTAINERS[encoding], replace(limits, max_s=math.inf), live=True)
        self._input: asyncio.Future[StreamWriter] = asyncio.get_running_loop().create_future()
        self._received = False
        self._silent_bytes = 0
        self._ended = False
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Pass decoded audio to the sink, until cancelled.

        Raises AudioError for a stream that cannot be decoded, and Unavailable for a decoder that does not start or run.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            worker = POOL.take(self._job, theirs.fileno())
        try:
            _, stream = await asyncio.open_connection(sock=ours)
            output, control = await asyncio.open_connection(sock=worker.socket)
            try:
                await _wait_until_ready(worker, output)
                self._input.set_result(stream)
                error = await self._pass_on(worker, output, stream)
            finally:
                stream.close()
                control.close()
        finally:
            worker.kill()
        # A stream without a single byte is not an error.
        if error and self._received:
            raise error
        self._done.set()
        await asyncio.Event().wait()

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. Raises AudioError if no audio is found, or after the stream's end."""
        stream = await asyncio.shield(self._input)
        if not data:
            return
        if self._done.is_set():
            raise AudioError(f"The {self._encoding} stream has already ended.", "encoding")
        self._received = True
        self._silent_bytes += len(data)
        if self._silent_bytes > MAX_SILENT_BYTES:
            raise AudioError(f"No audio found in {MAX_SILENT_BYTES >> 20} MiB of {self._encoding}.", "encoding")
        # If the decoder has ended, `run` raises the error.
        if stream.is_closing():
            return
        with suppress(ConnectionError):
            stream.write(data)
            await stream.drain()

    async def flush(self) -> None:
        """Nothing to do: a decoder releases what it buffers only at the end."""

    async def end(self) -> None:
        """Returns when all audio has been passed on. Waits for ever if `run` raises."""
        stream = await asyncio.shield(self._input)
        self._ended = True
        stream.close()
        await self._done.wait()

    async def _pass_on(self, worker: Worker, output: StreamReader, stream: StreamWriter) -> AudioError | None:
        """Returns when the decoder has ended, with the error if it failed."""
        try:
            while True:
                letter, length = unpacked_header(await self._next(output, HEADER_BYTES, stream))
                content = await self._next(output, length, stream)
                if letter == b"E":
                    code, error = worker.end_of_job(content, f"live {self._encoding}")
                    return error or (self._damaged() if code else None)
                self._silent_bytes = 0
                await self._sink(within_full_scale(np.frombuffer(content, np.float32)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return await asyncio.to_thread(worker.error_at_exit, f"live {self._encoding}", self._damaged())

    async def _next(self, output: StreamReader, count: int, stream: StreamWriter) -> bytes:
        """The next bytes of a frame. Waits as long as the decoder itself waits for input.

        Raises Unavailable if it neither takes pending input nor, after the end of it, gives output for `STALL_S`.
        """
        reading = asyncio.ensure_future(output.readexactly(count))
        try:
            while not (await asyncio.wait({reading}, timeout=workers.STALL_S))[0]:
                if self._ended or stream.transport.get_write_buffer_size():
                    raise stalled(f"live {self._encoding}")
            return reading.result()
        finally:
            reading.cancel()

    def _damaged(self) -> AudioError:
        return AudioError(f"Unsupported or damaged {self._encoding} stream.", "encoding")


async def _wait_until_ready(worker: Worker, output: StreamReader) -> None:
    """Raises Unavailable if the worker does not start."""
    if worker.is_ready:
        return
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        try:
            async with asyncio.timeout(workers.START_S):
                worker.is_ready = await output.readexactly(len(READY)) == READY
        except TimeoutError:
            raise start_timed_out() from None
    if not worker.is_ready:
        raise await asyncio.to_thread(worker.failed_to_start)
