"""Decodes audio with PyAV in a process of its own, so that a demuxer that crashes or hangs takes nothing else down.

    python decoder_process.py DEMUXER MAX_S MIN_RATE MAX_RATE MAX_CHANNELS [live]

The file is read from standard input; 16 kHz mono float32 samples are written to standard output. With `live` the input
is a pipe that is still being written to, and samples are passed on at once. Exit codes:

    0    the end of the audio
    1    out of memory, or a mistake of this script: for the log
    3    unsupported: the last line of standard error is a message for the caller
    4    too long: likewise
    5    damaged: no audio can be decoded from here on

This script imports nothing of the project.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import av
import av.container
import av.error
import av.logging
import numpy as np
from av.codec.context import Flags2

SAMPLE_RATE = 16_000
OUT_OF_MEMORY, UNSUPPORTED, TOO_LONG, DAMAGED = 1, 3, 4, 5
# Bytes of address space, or of resident memory on macOS. A file may have a long index; there may be many live sessions.
FILE_MEMORY, LIVE_MEMORY = 4 << 30, 1 << 30
# Seconds between looks at the resident memory.
WATCH_S = 0.02
# Seconds of processor time without any output, after which the system ends this process.
MAX_COMPUTING_S = 30.0
# Broken packets in a row that are skipped before the file is given up.
MAX_BROKEN = 100

_DECODERS = (
    *("aac", "alac", "flac", "opus", "libopus", "vorbis", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float"),
    *("ac3", "eac3", "speex", "libspeex", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "gsm", "gsm_ms"),
    *("amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "pcm_mulaw", "pcm_alaw", "pcm_u8", "pcm_s8"),
    *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
    *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
_CODECS = "AAC, ALAC, FLAC, MP3, Opus, Vorbis, AC-3, AMR, GSM, Speex, ADPCM and PCM"
# Nothing but standard input is opened, only the given demuxer is used, and no video is decoded.
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


def main() -> None:
    demuxer, *numbers = sys.argv[1:6]
    live = sys.argv[6:] == ["live"]
    max_s, min_rate, max_rate, max_channels = map(float, numbers)
    # Ctrl-C is for the server, which first finishes its work in progress.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(LIVE_MEMORY if live else FILE_MEMORY)
    av.logging.set_level(None)
    # Unbuffered: a read returns what is there.
    file, out = os.fdopen(0, "rb", 0, closefd=False), os.fdopen(1, "wb", closefd=False)
    options = _OPTIONS | _LIVE_OPTIONS if live else _OPTIONS
    written = 0
    try:
        _limit_computing()
        for block in blocks(file, demuxer, options, min_rate, max_rate, max_channels):
            written += len(block)
            if written > max_s * SAMPLE_RATE + 1:
                raise Refused(TOO_LONG, f"The audio is longer than the limit of {max_s:g} s.")
            out.write(block.tobytes())
            if live:
                out.flush()
            _limit_computing()
        out.flush()
    except BrokenPipeError:
        os._exit(0)
    except Refused as refused:
        out.flush()
        print(refused, file=sys.stderr)
        sys.exit(refused.code)
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        out.flush()
        if isinstance(error, av.error.EOFError) and not live:
            # A header and nothing behind it.
            return
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(OUT_OF_MEMORY if isinstance(error, MemoryError) else DAMAGED)


def blocks(
    file: BinaryIO, demuxer: str, options: dict[str, str], min_rate: float, max_rate: float, max_channels: float
) -> Iterator[np.ndarray]:
    """(n,) float32 at 16 kHz: the mean of the channels."""
    resampler, shape = None, None
    with av.open(_Unnamed(file), "r", format=demuxer, container_options=options) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise Refused(UNSUPPORTED, "The file has no audio track.")
        if stream.codec_context.name not in _DECODERS:
            codec = stream.codec_context.name[:20]
            raise Refused(UNSUPPORTED, f"The audio codec {codec} is not supported. Supported: {_CODECS}.")
        if demuxer == "caf" and stream.codec_context.name == "alac":
            # The last packet has as many samples as are left, and ffmpeg would take its missing ones off once more.
            stream.codec_context.flags2 |= Flags2.skip_manual
        for frame in _frames(container, stream):
            if not min_rate <= frame.sample_rate <= max_rate:
                supported = f"{min_rate:.0f} to {max_rate:.0f} Hz"
                raise Refused(UNSUPPORTED, f"The sample rate is {frame.sample_rate} Hz; supported: {supported}.")
            channels = frame.layout.nb_channels
            if channels > max_channels:
                raise Refused(UNSUPPORTED, f"The audio has {channels} channels; supported: 1 to {max_channels:.0f}.")
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


def _limit_computing() -> None:
    """The system ends this process after `MAX_COMPUTING_S` more of its own processor time, whatever code is running."""
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_COMPUTING_S)


if __name__ == "__main__":
    main()
