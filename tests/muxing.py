"""Tones as audio files: in any container, and cut off."""

import io
import struct

import av
import numpy as np
import soundfile

# As a browser writes an MP4: in fragments, each with its own index.
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"}


def tone(seconds: float = 1.0, rate: int = 16000, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """(n, channels) float32, at half of full scale."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def loudest_hertz(waveform: np.ndarray) -> float:
    """waveform: (n,) at 16 kHz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum) * 16000 / len(waveform))


def encoded(samples: np.ndarray, rate: int, format: str, subtype: str | None = None) -> bytes:
    """The file as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def muxed(
    frame: av.AudioFrame, name: str, codec: str, rate: int, layout: str, seekable: bool, options: dict[str, str]
) -> bytes:
    """The file as PyAV writes it. seekable: false writes as a recorder does, front to back and without a length."""
    file = io.BytesIO()
    with av.open(file if seekable else _Unseekable(file), "w", format=name, container_options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def audio_frame(samples: np.ndarray, rate: int) -> av.AudioFrame:
    """samples: (n, channels) float32, mono or stereo."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=_layout(samples))
    frame.sample_rate = rate
    return frame


def written_by_av(samples: np.ndarray, rate: int, name: str, codec: str, seekable: bool = True, **options) -> bytes:
    return muxed(audio_frame(samples, rate), name, codec, rate, _layout(samples), seekable, options)


def cut_at_60_percent(file: bytes) -> bytes:
    return file[: len(file) * 6 // 10]


def caf_with_aac(samples: np.ndarray, rate: int, index_first: bool) -> bytes:
    """A Core Audio file as a Mac writes it; PyAV cannot. index_first: the packet table comes before the audio."""
    encoder = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.format, encoder.layout = rate, "fltp", _layout(samples)
    encoder.open()
    whole = samples[: len(samples) // 1024 * 1024].reshape(-1, 1024, samples.shape[1])
    packets = [bytes(packet) for part in whole for packet in encoder.encode(audio_frame(part, rate))]
    packets += [bytes(packet) for packet in encoder.encode(None)]
    description = struct.pack(">d4sIIIII", rate, b"aac ", 0, 0, 1024, samples.shape[1], 0)
    config = _descriptor(5, encoder.extradata or b"")
    cookie = _descriptor(3, bytes(3) + _descriptor(4, b"\x40\x15" + bytes(11) + config) + _descriptor(6, b"\x02"))
    sizes = b"".join(_variable_length(len(packet)) for packet in packets)
    index = _chunk(b"pakt", struct.pack(">qqii", len(packets), len(packets) * 1024, 0, 0) + sizes)
    data = _chunk(b"data", bytes(4) + b"".join(packets))
    head = b"caff\0\x01\0\0" + _chunk(b"desc", description) + _chunk(b"kuki", cookie)
    return head + (index + data if index_first else data + index)


def _layout(samples: np.ndarray) -> str:
    return "mono" if samples.shape[1] == 1 else "stereo"


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack(">q", len(content)) + content


def _descriptor(tag: int, content: bytes) -> bytes:
    """Of an MPEG-4 elementary stream, its length in four bytes, as Apple writes it."""
    return bytes([tag, 0x80, 0x80, 0x80, len(content)]) + content


def _variable_length(number: int) -> bytes:
    """Seven bits a byte, the highest first; all but the last have the top bit set."""
    return (bytes([number >> 7 | 0x80]) if number > 127 else b"") + bytes([number & 0x7F])


class _Unseekable:
    def __init__(self, file: io.BytesIO):
        self.write = file.write
