"""The decoder pool: warm processes that decode untrusted files (`decoder_process.py`).

A worker that crashes, hangs or takes too much memory fails one request and is replaced. Idle workers end after a while,
and all of them end with this process, even if it is killed.

Only a file that makes its worker crash, or compute for too long without output, is invalid. A worker that does not
start, or gets no processor time, says nothing about the file: the caller gets Unavailable and may try again.
"""

import atexit
import io
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from server.audio.containers import unreadable
from server.errors import AudioError, AudioTooLong, Unavailable

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("decoder_process.py")
# The codes with which a job ends, from that script, which is not imported, so that PyAV stays out of this process.
UNSUPPORTED, TOO_LONG, DAMAGED = 3, 4, 5
# A frame begins with its letter and its length in bytes. None is nearly as long as this.
_HEADER = struct.Struct("=cI")
HEADER_BYTES = _HEADER.size
_MAX_FRAME = 64 << 20
# The byte that a worker sends once it has started.
READY = b"R"
# How long a worker may take to start, and then go without sending anything. One that computes all the while is ended
# earlier, by its own limit on processor time.
START_S, STALL_S = 120.0, 60.0
# How long a worker may take to stop when its caller wants no more. One that takes longer is ended.
STOP_S = 1.0
# Idle workers: how many are kept, and for how long.
MAX_IDLE, IDLE_S = 4, 60.0


def unpacked_header(header: bytes | bytearray) -> tuple[bytes, int]:
    """The letter and the length of a frame. Raises ConnectionError for anything that no sound worker sends."""
    letter, length = _HEADER.unpack(header)
    if letter not in (b"A", b"E") or length > _MAX_FRAME or (letter == b"A" and length % 4):
        raise ConnectionError(f"the worker sent an invalid frame header: {bytes(header)!r}")
    return letter, length


def not_started() -> Unavailable:
    return Unavailable("The audio decoder could not be started; try again shortly.")


def start_timed_out() -> Unavailable:
    log.warning("a decoder did not start within %g s and was stopped", START_S)
    return Unavailable(
        f"The audio decoder did not start within {START_S:g} s; the server may be too busy. Try again shortly."
    )


def stalled(demuxer: str) -> Unavailable:
    log.warning("the decoder for %s gave no output for %g s and was stopped", demuxer, STALL_S)
    return Unavailable(f"Decoding made no progress for {STALL_S:g} s; the server may be too busy. Try again shortly.")


class Damaged(Exception):
    """The file cannot be decoded at all, or not beyond the blocks that were decoded."""


class Worker:
    """One process. It does one job at a time, for one thread at a time."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        # One thread for numpy: more would be idle, and each counts towards the process's memory limit.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", str(SCRIPT)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env=environment,
                )
            except BaseException:
                self.socket.close()
                raise
        self._content = bytearray()
        self.idle_since = 0.0
        self.is_ready = False
        """Whether it has started, as far as this process has read."""
        self.can_be_reused = False
        """Whether it has finished its last job and waits for the next."""

    def send(self, job: dict[str, Any], descriptor: int) -> None:
        """Begin a job. Raises OSError if the process has ended."""
        self.can_be_reused = False
        socket.send_fds(self.socket, [json.dumps(job).encode() + b"\n"], [descriptor])

    def samples(self, demuxer: str) -> Iterator[np.ndarray]:
        """The job's samples, (n,) float32 at 16 kHz. Raises AudioError, Damaged and Unavailable."""
        self._wait_until_ready()
        self.socket.settimeout(STALL_S)
        try:
            while (letter := self._frame()) == b"A":
                yield np.frombuffer(self._content, np.float32)
                self.socket.send(b"+")
        except TimeoutError:
            raise stalled(demuxer) from None
        except OSError:
            letter = b""
        if not letter:
            raise self.error_at_exit(demuxer, unreadable())
        code, error = self.end_of_job(self._content, demuxer)
        if error:
            raise error
        if code:
            raise Damaged if code == DAMAGED else unreadable()

    def end_of_job(self, content: bytes | bytearray, demuxer: str) -> tuple[int, AudioError | None]:
        """The code that a job ended with, and the error if its message is for the caller. Other failures are logged.

        content: of the job's last frame.
        """
        end = json.loads(content)
        code, message = end["code"], end["message"]
        self.can_be_reused = not end["last"]
        if code in (UNSUPPORTED, TOO_LONG):
            return code, AudioTooLong(message) if code == TOO_LONG else AudioError(message)
        if code:
            log.info("the decoder for %s ended with %d: %s", demuxer, code, message[:200])
        return code, None

    def error_at_exit(self, demuxer: str, damaged: AudioError) -> AudioError:
        """The error for a process that ended in the middle of a job: `damaged`, unless it computed for too long."""
        self._log_exit(f"the decoder for {demuxer}")
        if self.process.returncode == -signal.SIGPROF:
            message = "Decoding was stopped: it took too much processor time without any output."
            return AudioError(message, damaged.param)
        return damaged

    def failed_to_start(self) -> Unavailable:
        """The error for a process that ended before it was ready."""
        self._log_exit("a decoder that was starting", logging.ERROR)
        return not_started()

    def _wait_until_ready(self) -> None:
        """Raises Unavailable if the process does not start."""
        if self.is_ready:
            return
        self.socket.settimeout(START_S)
        try:
            self.is_ready = self.socket.recv(1) == READY
        except TimeoutError:
            raise start_timed_out() from None
        except OSError:
            pass
        if not self.is_ready:
            raise self.failed_to_start()

    def _log_exit(self, which: str, level: int = logging.INFO) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        stderr = cast(BinaryIO, self.process.stderr)
        os.set_blocking(stderr.fileno(), False)
        last = (stderr.read() or b"").decode(errors="replace").strip().rpartition("\n")[2]
        log.log(level, "%s exited with %s: %s", which, self.process.returncode, last[:200])

    def stop(self) -> None:
        """End a job early, between two frames: the worker waits for an answer."""
        with suppress(OSError):
            self.socket.settimeout(STOP_S)
            self.socket.send(b"x")
            if self._frame() == b"E":
                self.end_of_job(self._content, "")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.close()
        cast(BinaryIO, self.process.stderr).close()

    def _frame(self) -> bytes:
        """Receive a frame into `_content` and return its letter; b"" if the process has ended."""
        header = self._received(HEADER_BYTES)
        if not header:
            return b""
        letter, length = unpacked_header(header)
        self._content = self._received(length)
        return letter if len(self._content) == length else b""

    def _received(self, count: int) -> bytearray:
        """Exactly `count` bytes; none if the process ends first."""
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            received = self.socket.recv_into(view[at:])
            if not received:
                return bytearray()
            at += received
        return data


def _new_worker() -> Worker:
    """Raises Unavailable if the system allows no more processes or files."""
    try:
        return Worker()
    except OSError as error:
        log.error("no decoder could be started: %s", error)
        raise not_started() from None


class WorkerPool:
    """Workers that wait for a job. Callers limit how many of them are at work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._timer: threading.Timer | None = None
        # A forked child must not talk to its parent's workers.
        os.register_at_fork(after_in_child=self._forget)

    def take(self, job: dict[str, Any], descriptor: int) -> Worker:
        """A worker that begins the job, which reads from the descriptor. End with `give_back`. Raises Unavailable."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            is_new = worker is None
            worker = worker or _new_worker()
            try:
                worker.send(job, descriptor)
            except OSError:
                # An idle one may have ended meanwhile.
                error = worker.failed_to_start() if is_new else None
                worker.kill()
                if error:
                    raise error from None
            else:
                return worker

    def prepare(self) -> None:
        """Start a worker for the next job, unless one waits. What a worker imports takes it a quarter of a second.

        Raises Unavailable.
        """
        with self._lock:
            if self._idle:
                return
        worker = _new_worker()
        worker.can_be_reused = True
        self.give_back(worker)

    def give_back(self, worker: Worker) -> None:
        """Keep the worker for the next job, or end it if it cannot be used again."""
        worker.idle_since = time.monotonic()
        with self._lock:
            keep = worker.can_be_reused and len(self._idle) < MAX_IDLE
            if keep:
                self._idle.append(worker)
                self._start_timer(IDLE_S)
        if not keep:
            worker.kill()

    def close(self) -> None:
        """End all workers that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
            if self._timer:
                self._timer.cancel()
                self._timer = None
        for worker in idle:
            worker.kill()

    def _start_timer(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = threading.Timer(seconds, self._end_idle)
            self._timer.name, self._timer.daemon = "decoders", True
            self._timer.start()

    def _end_idle(self) -> None:
        """End the workers that have waited for `IDLE_S`, and come back for the others."""
        with self._lock:
            now, idle, self._timer = time.monotonic(), self._idle, None
            old = [worker for worker in idle if now - worker.idle_since >= IDLE_S]
            self._idle = [worker for worker in idle if now - worker.idle_since < IDLE_S]
            if self._idle:
                self._start_timer(IDLE_S - (now - self._idle[0].idle_since))
        for worker in old:
            worker.kill()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._idle, self._timer = [], None


POOL = WorkerPool()
atexit.register(POOL.close)


def decoded_blocks(file: BinaryIO, job: dict[str, Any]) -> Iterator[np.ndarray]:
    """Mono blocks (n,) float32 at 16 kHz, decoded by a worker one ahead of the caller.

    Raises AudioError, Damaged, and Unavailable if no worker starts or the one at work gets no processor time.
    job: what `decoder_process.py` describes.
    """
    with _on_disk(file) as descriptor:
        worker = POOL.take(job, descriptor)
        try:
            try:
                yield from worker.samples(job["demuxer"])
            except GeneratorExit:
                worker.stop()
                raise
        finally:
            POOL.give_back(worker)


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[int]:
    """A descriptor for the worker, at the file's beginning. Bytes in memory are written to disk."""
    if _is_on_disk(file):
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        yield file.fileno()
        return
    with tempfile.TemporaryFile() as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy)
        copy.flush()
        copy.seek(0)
        yield copy.fileno()


def _is_on_disk(file: BinaryIO) -> bool:
    """Whether the descriptor gives the same bytes as reading does; a gzip file's gives the compressed ones."""
    if isinstance(file, tempfile.SpooledTemporaryFile):
        return True
    return isinstance(getattr(file, "raw", file), io.FileIO)
