"""Audio in a recorder's container, decoded as it arrives in a separate process (`audio/decoder_process.py`).

A demuxer that crashes, hangs or grows takes its own session's sound with it, and nothing else.
"""

import asyncio
import logging
import math
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import replace

import numpy as np

from server.audio.decode import AudioLimits, decoder_command, decoder_environment, decoder_refusal, within_full_scale
from server.errors import AudioError
from server.live.sound import Sink

log = logging.getLogger(__name__)

# The demuxer for each container; nothing else is tried.
CONTAINERS = {"webm": "matroska", "mp4": "mov", "ogg": "ogg"}
# A decoder that takes nothing of what waits for it, or gives nothing after the end, for so long is taken for hung.
STALL_S = 15.0
# Bytes without any sound in them that are read before the container is given up.
MAX_SILENT_BYTES = 8 << 20
# Of the decoder's output: half a second.
READ_BYTES = 1 << 15


class ContainerSound:
    """webm, mp4 or ogg. `run` beside `write` and `end`; the process lives as long as `run` does.

    limits: all but the length, which has no end here.
    What waits to be decoded, and what waits for the sink, is what fits into the pipes: about 200 kB each way.
    """

    def __init__(self, encoding: str, sink: Sink, limits: AudioLimits = AudioLimits()):
        self._encoding = encoding
        self._sink = sink
        self._command = decoder_command(CONTAINERS[encoding], replace(limits, max_s=math.inf), live=True)
        self._decoder: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._received = False
        self._silent_bytes = 0
        self._ended = False
        self._handed_on = asyncio.Event()

    async def run(self) -> None:
        """Hand on what is decoded; goes on after the sound's end. Raises AudioError for what cannot be decoded."""
        decoder = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd="/", env=decoder_environment()
        )
        try:
            self._decoder.set_result(decoder)
            await self._hand_on(decoder)
        finally:
            said = await _ended(decoder)
        # 0 is the end of the sound; nothing at all is not a fault either
        if decoder.returncode and self._received:
            raise self._refusal(decoder.returncode, said)
        self._handed_on.set()
        await asyncio.Event().wait()

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. Raises AudioError for what holds no sound, or comes after its end."""
        decoder = await asyncio.shield(self._decoder)
        if not data:
            return
        if self._handed_on.is_set():
            raise AudioError(f"The {self._encoding} ended or broke off; what came then cannot be heard.", "encoding")
        self._received = True
        self._silent_bytes += len(data)
        if self._silent_bytes > MAX_SILENT_BYTES:
            raise AudioError(f"There is no sound in {MAX_SILENT_BYTES >> 20} MiB of {self._encoding}.", "encoding")
        assert decoder.stdin
        # A decoder that is gone is for `run` to tell of.
        if decoder.stdin.is_closing():
            return
        with suppress(ConnectionError):
            decoder.stdin.write(data)
            await decoder.stdin.drain()

    async def flush(self) -> None:
        """Nothing: a decoder tells at the end alone what it holds back."""

    async def end(self) -> None:
        """Returns when all sound has been handed on; not at all where `run` raises."""
        decoder = await asyncio.shield(self._decoder)
        assert decoder.stdin
        self._ended = True
        decoder.stdin.close()
        await self._handed_on.wait()

    async def _hand_on(self, decoder: Process) -> None:
        """Until the decoder closes its output and ends."""
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
        """What there is of samples; b"" is their end. Waits as long as the decoder itself waits for more."""
        assert decoder.stdin
        assert decoder.stdout
        while True:
            try:
                async with asyncio.timeout(STALL_S):
                    return await decoder.stdout.read(READ_BYTES)
            except TimeoutError:
                if self._ended or decoder.stdin.transport.get_write_buffer_size():
                    log.warning("the decoder of live %s hung for %g s and was ended", self._encoding, STALL_S)
                    raise AudioError(f"The {self._encoding} could not be decoded in time.", "encoding") from None

    def _refusal(self, code: int, said: bytes) -> AudioError:
        told = decoder_refusal(code, said.decode(errors="replace"), f"live {self._encoding}")
        return told or AudioError(f"The sound is not {self._encoding} that can be read.", "encoding")


async def _ended(decoder: Process) -> bytes:
    """End it, if it has not ended; what it said. Nothing of it is left after that."""
    assert decoder.stdin
    with suppress(ProcessLookupError):
        decoder.kill()
    decoder.stdin.close()
    _, said = await decoder.communicate()
    return said
