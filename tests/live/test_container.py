"""Live audio in containers: decoded as it arrives, by a process that may crash or hang, and that never outlives it."""

import asyncio
import json
import os
import random
import runpy
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from server.audio import workers
from server.audio.decode import AudioLimits
from server.errors import AudioError, Unavailable
from server.live import container
from server.live.container import ContainerSound
from tests.decoders import cold_pool, use_worker
from tests.live.recorded import contained, tone
from tests.live.test_captions import captioned, cut, opened, told, until

ENCODINGS = pytest.mark.parametrize("encoding", ["webm", "mp4", "ogg"])
# An EBML element of 64 KiB that demuxers skip.
VOID = b"\xec\x01\0\0\0\0\1\0\0" + bytes(1 << 16)


@pytest.fixture
def decoders(monkeypatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Every decoder that is started. None is warm."""
    with cold_pool(monkeypatch) as started:
        yield started


async def is_gone(decoder: subprocess.Popen[bytes]) -> None:
    """Waits until it has exited and been reaped. Fails if that takes long."""
    async with asyncio.timeout(20):
        while decoder.returncode is None:
            await asyncio.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(decoder.pid, 0)


class Decoded:
    """A stream that is being decoded, and how much of it has been."""

    def __init__(self, encoding: str, limits: AudioLimits = AudioLimits()):
        self.samples = 0
        self.taking = asyncio.Event()
        self.taking.set()
        self.sound = ContainerSound(encoding, self._take, limits)
        self.running = asyncio.ensure_future(self.sound.run())

    async def _take(self, samples: np.ndarray) -> None:
        await self.taking.wait()
        self.samples += len(samples)

    @property
    def seconds(self) -> float:
        return self.samples / 16_000

    async def write(self, data: bytes, end: bool = False) -> None:
        """Raises the errors of `write` and of `run`."""
        async with asyncio.timeout(60):
            writing = asyncio.ensure_future(self._write(data, end))
            try:
                await asyncio.wait({writing, self.running}, return_when=asyncio.FIRST_COMPLETED)
                if self.running.done():
                    self.running.result()
                await writing
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, data: bytes, end: bool) -> None:
        for piece in cut(data, 4001):
            await self.sound.write(piece)
        if end:
            await self.sound.end()

    async def heard(self, seconds: float) -> None:
        async with asyncio.timeout(60):
            while self.seconds < seconds:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def decoding(encoding: str, limits: AudioLimits = AudioLimits()) -> AsyncIterator[Decoded]:
    decoded = Decoded(encoding, limits)
    try:
        yield decoded
    finally:
        decoded.running.cancel()
        await asyncio.gather(decoded.running, return_exceptions=True)


@ENCODINGS
async def test_audio_is_passed_on_before_more_arrives(decoders, encoding):
    data = contained(tone(10.0), encoding)
    async with decoding(encoding) as decoded:
        await decoded.write(data[: len(data) // 2])
        # A page of Ogg holds a second, and is complete when the next one begins.
        await decoded.heard(3.9 if encoding == "ogg" else 4.6)
        await decoded.write(data[len(data) // 2 :], end=True)
        assert decoded.seconds == pytest.approx(10, abs=0.05)
    await is_gone(decoders[0])


async def test_a_stream_without_a_byte_is_no_error(decoders):
    async with decoding("ogg") as decoded:
        await decoded.write(b"", end=True)
        assert decoded.samples == 0


@ENCODINGS
async def test_a_damaged_stream_is_decoded_up_to_the_damage(decoders, encoding):
    data = contained(tone(10.0), encoding)
    half = len(data) // 2
    junk = random.Random(1).randbytes(2_000_000)
    async with decoding(encoding) as decoded:
        # The decoder may skip the junk, or give up at it.
        with suppress(AudioError):
            await decoded.write(data[:half] + junk, end=True)
        assert 3.9 <= decoded.seconds <= 6
    await is_gone(decoders[0])


@ENCODINGS
async def test_a_stream_in_another_format_is_refused_by_the_name_of_the_expected_one(decoders, encoding):
    async with decoding(encoding) as decoded:
        with pytest.raises(AudioError, match=encoding):
            await decoded.write(b"this is no container" * 10_000, end=True)
    await is_gone(decoders[0])


async def test_data_after_the_end_of_the_stream_is_refused(decoders, monkeypatch, tmp_path):
    use_worker(monkeypatch, tmp_path, "file.read(10)\nsend(b'A', bytes(64_000))\nend()\n")
    async with decoding("webm") as decoded:
        await decoded.write(bytes(10))
        await is_gone(decoders[0])
        # What it wrote may still have to be read.
        async with asyncio.timeout(20):
            await decoded.sound._done.wait()
        assert decoded.seconds == 1
        with pytest.raises(AudioError, match="webm stream has already ended"):
            await decoded.write(bytes(10))


@pytest.mark.parametrize(
    ("limits", "named"), [(AudioLimits(max_rate=44_100), "48000 Hz"), (AudioLimits(max_channels=0), "1 channels")]
)
async def test_the_limits_for_files_hold_here_too(limits, named):
    async with decoding("webm", limits) as decoded:
        with pytest.raises(AudioError, match=named):
            await decoded.write(contained(tone(1.0), "webm"), end=True)


async def test_endless_bytes_without_audio_end_the_stream(monkeypatch):
    monkeypatch.setattr(container, "MAX_SILENT_BYTES", 1 << 20)
    recorded = contained(tone(1.0), "webm")
    # What comes before the first cluster.
    head = recorded[: recorded.index(b"\x1f\x43\xb6\x75")]
    async with decoding("webm") as decoded:
        with pytest.raises(AudioError, match="No audio found in 1 MiB of webm"):
            await decoded.write(head + VOID * 100)


async def test_a_client_that_sends_faster_than_the_model_listens_has_to_wait():
    async with decoding("ogg") as decoded:
        decoded.taking.clear()
        data = contained(tone(80.0), "ogg")
        assert len(data) > 700_000
        written = 0

        async def write() -> None:
            nonlocal written
            for piece in cut(data, 10_000):
                await decoded.sound.write(piece)
                written += len(piece)

        writing = asyncio.ensure_future(write())
        # The pipes are full when nothing moves any more.
        before = -1
        while written != before or not written:
            before = written
            await asyncio.sleep(0.2)
        assert not writing.done()
        assert written < 400_000
        decoded.taking.set()
        await asyncio.wait_for(writing, 60)
        await decoded.write(b"", end=True)
        assert decoded.seconds == pytest.approx(80, abs=0.1)


@pytest.mark.parametrize("state", ["taking nothing", "after the end"])
async def test_a_decoder_that_stands_still_is_stopped_and_its_stream_is_not_called_invalid(
    decoders, monkeypatch, tmp_path, state
):
    use_worker(monkeypatch, tmp_path, "time.sleep(600)\n")
    monkeypatch.setattr(workers, "STALL_S", 0.3)
    async with decoding("webm") as decoded:
        data = bytes(10 if state == "after the end" else 1 << 20)
        with pytest.raises(Unavailable, match=r"made no progress for 0\.3 s"):
            await asyncio.gather(decoded.running, decoded.write(data, end=state == "after the end"))
    await is_gone(decoders[0])
    assert decoders[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("time.sleep(600)\n", r"did not start within 0\.3 s"),
        ("sys.exit('no such library')\n", "could not be started"),
    ],
    ids=["hangs", "ends"],
)
async def test_a_decoder_that_does_not_start_is_not_the_streams_fault(decoders, monkeypatch, tmp_path, code, message):
    use_worker(monkeypatch, tmp_path, code, starts=False)
    monkeypatch.setattr(workers, "START_S", 0.3 if code.startswith("time") else 60.0)
    async with decoding("webm") as decoded:
        with pytest.raises(Unavailable, match=message):
            await decoded.write(bytes(1 << 20))
    await is_gone(decoders[0])


async def test_the_time_that_a_decoder_takes_to_start_is_not_the_streams(monkeypatch, tmp_path):
    # Its output follows its start at once, in one piece, however busy this machine is.
    code = "time.sleep(1)\ncontrol.sendall(b'R' + frame(b'A', bytes(64_000)) + END)\nwait()\n"
    use_worker(monkeypatch, tmp_path, code, starts=False)
    monkeypatch.setattr(workers, "STALL_S", 0.2)
    async with decoding("webm") as decoded:
        await decoded.write(bytes(10), end=True)
        assert decoded.seconds == 1


async def test_a_decoder_that_waits_for_audio_is_left_alone(monkeypatch):
    monkeypatch.setattr(workers, "STALL_S", 0.1)
    data = contained(tone(2.0), "webm")
    async with decoding("webm") as decoded:
        await decoded.write(data[:5000])
        await decoded.heard(0.2)
        await asyncio.sleep(0.5)
        monkeypatch.undo()
        await asyncio.sleep(0.2)
        await decoded.write(data[5000:], end=True)
        assert decoded.seconds == pytest.approx(2, abs=0.05)


async def test_ctrl_c_stops_the_server_and_not_its_decoders(decoders):
    data = contained(tone(2.0), "webm")
    async with decoding("webm") as decoded:
        await decoded.write(data[:5000])
        await decoded.heard(0.2)
        decoders[0].send_signal(signal.SIGINT)
        await decoded.write(data[5000:], end=True)
        assert decoded.seconds == pytest.approx(2, abs=0.05)


def test_a_decoder_that_computes_for_ever_is_ended_by_the_system():
    code = (
        f"import runpy; decoding = runpy.run_path({str(workers.SCRIPT)!r}); limit = decoding['_limit_computing']\n"
        "limit.__globals__['MAX_COMPUTING_S'] = 0.1; limit()\n"
        "while True: pass"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGPROF


def test_a_decoder_of_live_audio_may_use_less_memory_than_one_of_files():
    decoder = runpy.run_path(str(workers.SCRIPT))
    code = (
        "import runpy, time\n"
        f"runpy.run_path({str(workers.SCRIPT)!r})['_limit_memory']({decoder['LIVE_MEMORY']})\n"
        "held = [b'x' * (1 << 20) for _ in range(3 << 10)]\n"
        "time.sleep(10)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert "MemoryError" in done.stderr
    assert decoder["LIVE_MEMORY"] < decoder["FILE_MEMORY"]


async def test_a_decoder_that_is_killed_ends_its_own_session_alone_with_an_error(url, pcm, samples, decoders):
    data = contained(pcm(rate=48_000), "webm")
    async with opened(url, encoding="webm", sample_rate=None) as ws, opened(url) as other:
        await ws.send(data[: len(data) * 2 // 3])
        early = await until(ws, "result")
        (decoder,) = decoders
        decoder.kill()
        messages = early + await until(ws, "error")
        assert (messages[-1]["code"], messages[-1]["fatal"]) == ("invalid_audio", True)
        # The text of what was heard comes before that.
        assert [m["is_final"] for m in messages if m["type"] == "result"][-1]
        assert not messages[-1]["message"].endswith(":")
        await is_gone(decoder)
        await other.send(pcm())
        await other.send('{"type": "stop"}')
        finals = [m["text"] for m in await until(other, "done") if m["type"] == "result" and m["is_final"]]
        assert " ".join(finals) == samples["en"].text


async def test_a_decoder_without_processor_time_ends_its_session_with_an_error_that_says_to_try_again(
    url, pcm, samples, decoders, monkeypatch, tmp_path
):
    heard = tmp_path / "heard"
    heard.write_bytes((np.frombuffer(pcm(), np.int16) / np.float32(32_768)).tobytes())
    code = f"send(b'A', open({str(heard)!r}, 'rb').read())\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    use_worker(monkeypatch, tmp_path, code)
    monkeypatch.setattr(workers, "STALL_S", 2.0)
    async with opened(url, encoding="webm", sample_rate=None) as ws:
        await ws.send(b"something")
        await ws.send('{"type": "stop"}')
        messages = await until(ws, "error")
        assert (messages[-1]["code"], messages[-1]["fatal"]) == ("unavailable", True)
        assert "try again" in messages[-1]["message"].lower()
        # The text of what was heard comes before that.
        finals = [m["text"] for m in messages if m["type"] == "result" and m["is_final"]]
        assert " ".join(finals) == samples["en"].text
        await ws.wait_closed()
        assert ws.close_code == 1013
    await is_gone(decoders[0])


@pytest.mark.parametrize("ending", ["stop", "hang up", "start only"])
async def test_no_decoder_is_left_after_its_session(url, pcm, decoders, ending):
    async with opened(url, encoding="ogg", sample_rate=None) as ws:
        async with asyncio.timeout(20):
            while not decoders:
                await asyncio.sleep(0.01)
        if ending != "start only":
            await ws.send(contained(pcm(rate=48_000), "ogg"))
        if ending == "stop":
            await ws.send(json.dumps({"type": "stop"}))
            await until(ws, "done")
        ws.transport.abort()
    await is_gone(decoders[0])


async def test_raw_audio_needs_no_process(url, pcm, decoders):
    await captioned(url, cut(pcm(), 32_000))
    assert decoders == []


async def test_an_error_in_the_audio_is_sent_even_if_the_client_sends_nothing_more(url):
    async with opened(url, encoding="webm", sample_rate=None) as ws:
        await ws.send(b"this is no webm" * 10_000)
        error = await told(ws)
        assert (error["code"], error["fatal"]) == ("invalid_audio", True)
        assert "webm" in error["message"]
