"""A worker of the decoder pool (`workers.py`): decodes untrusted files in a process that may crash or hang.

Standard input is a socket. The worker ends when it is closed, so none outlives the process that started it. Once it has
started, it sends the byte "R". Each job is a line of JSON, sent with the descriptor of a file, or of a pipe that is
still being written to:

    {"demuxer": "mov", "libsndfile": false, "live": false,
     "max_s": 14400, "min_rate": 1000, "max_rate": 192000, "max_channels": 8}

The answers are frames: a letter, the length of what follows (4 bytes, native order), and

    A    samples: 16 kHz mono float32. Unless the job is live, the worker then waits for a byte: "+" for more, or "x"
    E    the end of the job: {"code": 0, "message": "", "last": false}. After "last" the worker exits

A job ends with one of these codes:

    0    the end of the audio, or the caller wanted no more
    1    out of memory, or a mistake of this script: for the log
    3    unsupported: the message is for the caller
    4    too long: likewise
    5    damaged: no audio can be decoded from here on

libsndfile reads wav, aiff, flac and ogg, and PyAV the rest. This script imports nothing of the project.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import av.container
import av.error
import av.logging
import numpy as np
import soundfile
import soxr
from av.codec.context import Flags2

SAMPLE_RATE = 16_000
OUT_OF_MEMORY, UNSUPPORTED, TOO_LONG, DAMAGED = 1, 3, 4, 5
# Bytes of address space, or of resident memory on macOS. A file may have a long index; there may be many live sessions.
FILE_MEMORY, LIVE_MEMORY = 4 << 30, 1 << 30
# A worker exits after a job that needed so many bytes, or after so many jobs: what they leave behind goes with it.
KEPT_MEMORY, MAX_JOBS = 256 << 20, 1000
# Seconds between looks at the resident memory.
WATCH_S = 0.02
# Seconds of processor time without any output, after which the system ends this process with SIGPROF.
MAX_COMPUTING_S = 30.0
# Broken packets in a row that are skipped before the file is given up.
MAX_BROKEN = 100
# Samples in a frame: 4 s. Live audio is sent at once.
FRAME_SAMPLES = 1 << 16

_LIBSNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "AIFF", "FLAC", "OGG"}
_DECODERS = (
    *("aac", "alac", "flac", "opus", "libopus", "vorbis", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float"),
    *("ac3", "eac3", "speex", "libspeex", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "gsm", "gsm_ms"),
    *("amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "pcm_mulaw", "pcm_alaw", "pcm_u8", "pcm_s8"),
    *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
    *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
_CODECS = "AAC, ALAC, FLAC, MP3, Opus, Vorbis, AC-3, AMR, GSM, Speex, ADPCM and PCM"
# Nothing but the given descriptor is read, only the given demuxer is used, and no video is decoded.
_OPTIONS = {
    "protocol_whitelist": "none",
    "codec_whitelist": ",".join(sorted(_DECODERS)),
    "max_streams": "32",
}
# Live audio is not probed for long before it is decoded.
_LIVE_OPTIONS = {"probesize": str(1 << 16), "analyzeduration": "0", "fflags": "nobuffer"}


class Refused(Exception):
    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """The caller wants no more of this file."""


def main() -> None:
    # Ctrl-C is for the server, which first finishes its work in progress.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody reads standard error while this process lives: lose lines rather than wait.
    os.set_blocking(2, False)
    av.logging.set_level(None)
    _limit_memory(FILE_MEMORY)
    control = socket.socket(fileno=0)
    control.sendall(b"R")
    # What Linux counts includes what the process that started this one had.
    most, jobs = _peak_memory() + KEPT_MEMORY, 0
    try:
        while (received := _next_job(control)) is not None:
            job, descriptor = received
            output = Output(control, job)
            # Unbuffered: a read returns what is there.
            with os.fdopen(descriptor, "rb", 0) as file:
                code, message = _decode(job, file, output)
            _limit_computing(0)
            jobs += 1
            last = code == OUT_OF_MEMORY or job["live"] or jobs == MAX_JOBS or _peak_memory() > most
            output.end(code, message, last)
            if last:
                return
    except ConnectionError:
        # Whoever asked is gone.
        os._exit(0)


def _next_job(control: socket.socket) -> tuple[dict[str, Any], int] | None:
    """The job and the descriptor of its file; None once the socket is closed."""
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        data, more, _, _ = socket.recv_fds(control, 4096, 1)
        if not data:
            return None
        line += data
        descriptors += more
    return json.loads(line), descriptors[0]


def _decode(job: dict[str, Any], file: BinaryIO, output: "Output") -> tuple[int, str]:
    """Send the samples of one file; returns the code and the message of the job's end."""
    if job["live"]:
        _limit_memory(LIVE_MEMORY)
    try:
        _limit_computing()
        try:
            for block in blocks(file, job):
                output.add(block)
                _limit_computing()
        finally:
            output.flush()
    except Stopped:
        pass
    except Refused as refused:
        return refused.code, str(refused)
    except ConnectionError:
        raise
    # OSError: a forged offset that no file can have.
    except (av.error.FFmpegError, soundfile.LibsndfileError, ValueError, OSError, MemoryError) as error:
        # Otherwise a header and nothing behind it.
        if not isinstance(error, av.error.EOFError) or job["live"]:
            code = OUT_OF_MEMORY if isinstance(error, MemoryError) else DAMAGED
            return code, f"{type(error).__name__}: {error}"
    return 0, ""


class Output:
    """What goes to the caller. A frame is decoded while the caller still works on the one before."""

    def __init__(self, control: socket.socket, job: dict[str, Any]):
        self._control, self._live, self._max_s = control, job["live"], job["max_s"]
        self._gathered: list[np.ndarray] = []
        self._samples = self._total = 0
        self._answer_due = False

    def add(self, block: np.ndarray) -> None:
        self._total += len(block)
        if self._total > self._max_s * SAMPLE_RATE + 1:
            raise Refused(TOO_LONG, f"The audio is longer than the limit of {self._max_s:g} s.")
        self._gathered.append(block.astype(np.float32, copy=False))
        self._samples += len(block)
        if self._live or self._samples >= FRAME_SAMPLES:
            self.flush()

    def flush(self) -> None:
        """Send what is gathered. Raises Stopped if the caller wants no more."""
        if not self._samples:
            return
        if self._next_answer() == b"x":
            self._gathered.clear()
            self._samples = 0
            raise Stopped
        self._send(b"A", b"".join(block.tobytes() for block in self._gathered))
        self._gathered.clear()
        self._samples = 0
        self._answer_due = not self._live

    def end(self, code: int, message: str, last: bool) -> None:
        self._next_answer()
        self._send(b"E", json.dumps({"code": code, "message": message, "last": last}).encode())

    def _next_answer(self) -> bytes:
        if not self._answer_due:
            return b"+"
        self._answer_due = False
        if not (answer := self._control.recv(1)):
            raise ConnectionResetError
        return answer

    def _send(self, letter: bytes, content: bytes) -> None:
        self._control.sendall(letter + struct.pack("=I", len(content)) + content)


def blocks(file: BinaryIO, job: dict[str, Any]) -> Iterator[np.ndarray]:
    """(n,) float32 at 16 kHz: the mean of the channels."""
    if job["libsndfile"]:
        try:
            sound = soundfile.SoundFile(_Unnamed(file))  # type: ignore[arg-type]
        except soundfile.LibsndfileError:
            # libsndfile does not have the codec.
            file.seek(0)
        else:
            with sound:
                yield from _libsndfile_blocks(sound, job)
            return
    yield from _av_blocks(file, job)


def _libsndfile_blocks(sound: soundfile.SoundFile, job: dict[str, Any]) -> Iterator[np.ndarray]:
    if sound.format not in _LIBSNDFILE_FORMATS:
        raise Refused(DAMAGED, f"{sound.format} is not supported.")
    _check_rate(sound.samplerate, job)
    _check_channels("file", sound.channels, job)
    seconds = sound.frames / sound.samplerate
    # An unknown length is declared as an absurd one; decoded samples are counted in any case.
    if job["max_s"] < seconds < 1e9:
        raise Refused(TOO_LONG, f"The audio is {seconds:.1f} s long; the limit is {job['max_s']:g} s.")
    # A stream resampler holds no more than a block at the file's own rate, whatever length the header declares.
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    same_rate = sound.samplerate == SAMPLE_RATE
    damaged = False
    while not damaged:
        frames, damaged = _read(sound)
        if not len(frames):
            break
        mono = frames.mean(axis=1) if frames.shape[1] > 1 else frames[:, 0]
        yield mono if same_rate else resampler.resample_chunk(mono)
    if not same_rate:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    if damaged:
        raise Refused(DAMAGED, "libsndfile cannot read on.")


def _read(sound: soundfile.SoundFile) -> tuple[np.ndarray, bool]:
    """(n, channels) float32 at the file's own rate, and whether the decoder failed after them."""
    # soundfile raises without saying how many frames were decoded before: those are no longer NaN.
    buffer = np.full((FRAME_SAMPLES, sound.channels), np.nan, np.float32)
    try:
        return sound.read(out=buffer), False
    except soundfile.LibsndfileError:
        missing = np.isnan(buffer[:, 0])
        return buffer[: missing.argmax() if missing.any() else len(buffer)], True


def _check_rate(rate: int, job: dict[str, Any]) -> None:
    if not job["min_rate"] <= rate <= job["max_rate"]:
        supported = f"{job['min_rate']} to {job['max_rate']} Hz"
        raise Refused(UNSUPPORTED, f"The sample rate is {rate} Hz; supported: {supported}.")


def _check_channels(what: str, channels: int, job: dict[str, Any]) -> None:
    if channels > job["max_channels"]:
        raise Refused(UNSUPPORTED, f"The {what} has {channels} channels; supported: 1 to {job['max_channels']}.")


def _av_blocks(file: BinaryIO, job: dict[str, Any]) -> Iterator[np.ndarray]:
    resampler, shape, demuxer = None, None, job["demuxer"]
    options = _OPTIONS | _LIVE_OPTIONS if job["live"] else _OPTIONS
    with av.open(_Unnamed(file), "r", format=demuxer, container_options=options) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise Refused(UNSUPPORTED, "The file has no audio track.")
        if stream.codec_context is None:
            raise Refused(DAMAGED, "ffmpeg does not know the codec.")
        if stream.codec_context.name not in _DECODERS:
            codec = stream.codec_context.name[:20]
            raise Refused(UNSUPPORTED, f"The audio codec {codec} is not supported. Supported: {_CODECS}.")
        if demuxer == "caf" and stream.codec_context.name == "alac":
            # The last packet has as many samples as are left, and ffmpeg would take its missing ones off once more.
            stream.codec_context.flags2 |= Flags2.skip_manual
        for frame in _frames(container, stream):
            channels = frame.layout.nb_channels
            _check_rate(frame.sample_rate, job)
            _check_channels("audio", channels, job)
            if resampler is None or shape != (frame.sample_rate, channels, frame.format.name):
                # The format may change within a stream.
                yield from _drained(resampler)
                shape = frame.sample_rate, channels, frame.format.name
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=SAMPLE_RATE)
            frame.pts = None
            for resampled in resampler.resample(frame):
                yield resampled.to_ndarray().mean(axis=0)
        yield from _drained(resampler)


def _frames(container: "av.container.InputContainer", stream: "av.AudioStream") -> Iterator[av.AudioFrame]:
    """The frames that can be decoded, up to the end or to where the file was cut off."""
    broken = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
            broken = 0
        except av.error.EOFError:
            return
        except av.error.InvalidDataError:
            broken += 1
            if broken > MAX_BROKEN:
                raise
            continue
        yield from (frame for frame in frames if frame.samples)


def _drained(resampler: "av.AudioResampler | None") -> Iterator[np.ndarray]:
    if resampler:
        for resampled in resampler.resample(None):
            yield resampled.to_ndarray().mean(axis=0)


class _Unnamed:
    """A file without its name. One that cannot seek is read from beginning to end."""

    def __init__(self, file: BinaryIO):
        self.read = file.read
        if file.seekable():
            self.seek, self.tell = file.seek, file.tell


def _limit_memory(most: int) -> None:
    """Allocations beyond `most` bytes fail, or, where the system has no such limit, end this process."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ValueError, OSError):
        # macOS maps more address space at start than any limit that would be of use here.
        threading.Thread(target=_watch_memory, args=(most,), name="memory", daemon=True).start()


def _watch_memory(most: int) -> None:
    """End this process, as a MemoryError would, once its resident memory has exceeded `most` bytes."""
    while _peak_memory() <= most:
        time.sleep(WATCH_S)
    os.write(2, f"MemoryError: more than {most >> 20} MiB of memory\n".encode())
    os._exit(OUT_OF_MEMORY)


def _peak_memory() -> int:
    """The most resident memory that this process has had, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _limit_computing(seconds: float | None = None) -> None:
    """The system ends this process after so much more of its own processor time, whatever code is running. 0: never.

    By default `MAX_COMPUTING_S`.
    """
    # ITIMER_PROF also counts the time that the system spends for this process.
    signal.setitimer(signal.ITIMER_PROF, MAX_COMPUTING_S if seconds is None else seconds)


if __name__ == "__main__":
    main()
