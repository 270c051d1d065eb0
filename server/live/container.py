"""Live audio in a container, decoded as it arrives in a separate process (`audio/decoder_process.py`).

A demuxer that crashes, hangs or uses too much memory ends its own session and no other.
"""

import asyncio
import logging
import math
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import replace

import numpy as np

from server.audio.decode import AudioLimits, decoder_command, decoder_environment, decoder_error, within_full_scale
from server.errors import AudioError
from server.live.sound import Sink

log = logging.getLogger(__name__)

# ffmpeg's demuxer for each encoding; no other is tried.
CONTAINERS = {"webm": "matroska", "mp4": "mov", "ogg": "ogg"}
# A decoder has hung if it takes none of its pending input, or gives no output after the end of it, for this long.
STALL_S = 15.0
# How many bytes may arrive without any audio in them before the session is ended.
MAX_SILENT_BYTES = 8 << 20
# Half a second of the decoder's output.
READ_BYTES = 1 << 15


class ContainerSound:
    """A webm, mp4 or ogg stream. `run` owns the decoder process, and must run while `write` and `end` are called.

    limits: for channels and rate; the length is not limited here.
    Each direction buffers what fits into a pipe, about 200 kB; after that, `write` waits.
    """

    def __init__(self, encoding: str, sink: Sink, limits: AudioLimits = AudioLimits()):
        self._encoding = encoding
        self._sink = sink
        self._command = decoder_command(CONTAINERS[encoding], replace(limits, max_s=math.inf), live=True)
        self._decoder: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._received = False
        self._silent_bytes = 0
        self._ended = False
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Pass decoded audio to the sink, until cancelled. Raises AudioError for a stream that cannot be decoded."""
        decoder = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd="/", env=decoder_environment()
        )
        try:
            self._decoder.set_result(decoder)
            await self._pass_on(decoder)
        finally:
            stderr = await _stopped(decoder)
        # A stream without a single byte is not an error.
        if decoder.returncode and self._received:
            raise self._error(decoder.returncode, stderr)
        self._done.set()
        await asyncio.Event().wait()

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. Raises AudioError if no audio is found, or after the stream's end."""
        decoder = await asyncio.shield(self._decoder)
        if not data:
            return
        if self._done.is_set():
            raise AudioError(f"The {self._encoding} stream has already ended.", "encoding")
        self._received = True
        self._silent_bytes += len(data)
        if self._silent_bytes > MAX_SILENT_BYTES:
            raise AudioError(f"No audio found in {MAX_SILENT_BYTES >> 20} MiB of {self._encoding}.", "encoding")
        assert decoder.stdin
        # If the decoder has exited, `run` raises the error.
        if decoder.stdin.is_closing():
            return
        with suppress(ConnectionError):
            decoder.stdin.write(data)
            await decoder.stdin.drain()

    async def flush(self) -> None:
        """Nothing to do: a decoder releases what it buffers only at the end."""

    async def end(self) -> None:
        """Returns when all audio has been passed on. Waits for ever if `run` raises."""
        decoder = await asyncio.shield(self._decoder)
        assert decoder.stdin
        self._ended = True
        decoder.stdin.close()
        await self._done.wait()

    async def _pass_on(self, decoder: Process) -> None:
        """Returns when the decoder has closed its output and exited."""
        rest = b""
        while data := await self._output(decoder):
            self._silent_bytes = 0
            data = rest + data
            whole = len(data) - len(data) % 4
            rest = data[whole:]
            await self._sink(within_full_scale(np.frombuffer(data[:whole], np.float32)))
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL_S):
                await decoder.wait()

    async def _output(self, decoder: Process) -> bytes:
        """The next bytes; b"" at the end. Waits as long as the decoder itself waits for input."""
        assert decoder.stdin
        assert decoder.stdout
        while True:
            try:
                async with asyncio.timeout(STALL_S):
                    return await decoder.stdout.read(READ_BYTES)
            except TimeoutError:
                if self._ended or decoder.stdin.transport.get_write_buffer_size():
                    log.warning("the decoder for live %s hung for %g s and was stopped", self._encoding, STALL_S)
                    raise AudioError(
                        f"Decoding the {self._encoding} stream was stopped: no progress in {STALL_S:g} s.",
                        "encoding",
                    ) from None

    def _error(self, code: int, stderr: bytes) -> AudioError:
        error = decoder_error(code, stderr.decode(errors="replace"), f"live {self._encoding}")
        return error or AudioError(f"Unsupported or damaged {self._encoding} stream.", "encoding")


async def _stopped(decoder: Process) -> bytes:
    """Kill the process and wait for its end. Returns what it wrote to standard error."""
    assert decoder.stdin
    with suppress(ProcessLookupError):
        decoder.kill()
    decoder.stdin.close()
    _, stderr = await decoder.communicate()
    return stderr
