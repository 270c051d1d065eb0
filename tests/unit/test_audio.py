"""Bytes of every kind become 16 kHz mono, or one clear line."""

import io
import struct

import numpy as np
import pytest
import soundfile

from server.audio import SAMPLE_RATE, AudioLimits, decode, joined
from server.errors import AudioError, AudioTooLong


def tone(seconds: float = 1.0, rate: int = 16000, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """(N, channels) float32, half of full scale."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def loudest_hertz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum) * SAMPLE_RATE / len(waveform))


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None)],
)
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 2), (48000, 1)])
def test_every_format_rate_and_channel_count_gives_the_same_tone(format, subtype, rate, channels):
    waveform = decode(encoded(tone(1.0, rate, channels), rate, format, subtype))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    # mp3 and ogg round a length up to whole frames
    assert 15990 <= len(waveform) <= 16000 + 2 * 1152 * 2
    middle = waveform[4000:12000]
    assert loudest_hertz(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


def test_ogg_with_opus_is_read():
    assert loudest_hertz(decode(encoded(tone(1.0, 48000), 48000, "OGG", "OPUS"))[4000:12000]) == pytest.approx(
        440, abs=2
    )


def test_16_khz_mono_comes_through_to_the_last_bit():
    samples = tone()
    assert np.array_equal(decode(encoded(samples, 16000, "WAV", "FLOAT")), samples[:, 0])


def test_resampling_keeps_the_length():
    assert len(decode(encoded(tone(2.5, 44100), 44100, "WAV"))) == pytest.approx(40000, abs=2)


def test_channels_are_averaged():
    left = np.stack([tone()[:, 0], np.zeros(16000, np.float32)], axis=1)
    assert np.allclose(decode(encoded(left, 16000, "WAV", "FLOAT")), tone()[:, 0] / 2)


def test_the_content_says_what_a_file_is_and_its_name_does_not(tmp_path):
    flac = encoded(tone(), 16000, "FLAC")
    for name in ("talk.mp3", "talk.raw", "talk"):
        path = tmp_path / name
        path.write_bytes(flac)
        assert len(decode(path)) == 16000
        with path.open("rb") as file:
            assert len(decode(file)) == 16000


def test_float_samples_beyond_full_scale_are_scaled_back():
    waveform = decode(encoded(tone() * 100, 16000, "WAV", "FLOAT"))
    assert np.allclose(waveform, tone()[:, 0] / np.abs(tone()).max(), atol=1e-6)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\0" * 1024,
        b"hello, this is no sound",
        b"RIFF\xff\xff\xff\xffWAVE",
        b"ID3" + b"\xff" * 500,
        b"fLaC" + b"\0" * 99,
    ],
    ids=["empty", "zeros", "text", "riff", "id3", "flac"],
)
def test_junk_is_refused_with_what_is_possible(junk):
    with pytest.raises(AudioError, match="wav, flac, ogg"):
        decode(junk)


def test_a_format_that_is_not_offered_is_refused_by_name():
    with pytest.raises(AudioError, match=r"AIFF.*wav, flac, ogg"):
        decode(encoded(tone(), 16000, "AIFF"))


def test_a_file_without_samples_is_refused():
    with pytest.raises(AudioError, match="no sound"):
        decode(encoded(tone(0.0), 16000, "WAV"))


def test_a_cut_off_file_gives_what_there_is():
    assert 7000 < len(decode(encoded(tone(), 16000, "WAV", "PCM_16")[:16000])) < 8000


def test_samples_that_are_not_numbers_are_refused():
    samples = tone()
    samples[100] = np.nan
    with pytest.raises(AudioError, match="not numbers"):
        decode(encoded(samples, 16000, "WAV", "FLOAT"))


def test_each_cap_holds_alone():
    limits = AudioLimits(max_s=1.0, max_rate=48000, max_channels=2)
    assert len(decode(encoded(tone(1.0, 48000, 2), 48000, "WAV"), limits)) == pytest.approx(16000, abs=2)
    with pytest.raises(AudioTooLong, match=r"1\.1 s long; possible: up to 1 s"):
        decode(encoded(tone(1.1), 16000, "WAV"), limits)
    with pytest.raises(AudioError, match="96000 Hz; possible: 1000 to 48000 Hz"):
        decode(encoded(tone(0.1, 96000), 96000, "WAV"), limits)
    with pytest.raises(AudioError, match="3 channels; possible: 1 to 2"):
        decode(encoded(tone(0.1, 16000, 3), 16000, "WAV"), limits)


def test_a_forged_sample_rate_does_not_pass_the_cap_on_seconds():
    wav = bytearray(encoded(tone(10.0), 16000, "WAV", "PCM_16"))
    wav[24:28] = struct.pack("<I", 1000)  # claims to be 160 s
    with pytest.raises(AudioTooLong):
        decode(bytes(wav), AudioLimits(max_s=40))
    wav[24:28] = struct.pack("<I", 2**31 - 1)  # claims to be a microsecond
    with pytest.raises(AudioError, match="2147483647 Hz"):
        decode(bytes(wav), AudioLimits(max_s=1))


def test_a_small_file_that_decodes_to_hours_stops_at_the_cap():
    # a FLAC of silence: tens of kilobytes for ten minutes, its length struck from the header
    flac = bytearray(encoded(np.zeros((16000 * 600, 1), np.float32), 16000, "FLAC", "PCM_16"))
    assert len(flac) < 200_000
    flac[21] &= 0xF0
    flac[22:26] = b"\0\0\0\0"
    with pytest.raises(AudioTooLong, match="5 s"):
        decode(bytes(flac), AudioLimits(max_s=5))


def test_decoding_stops_at_the_cap_whatever_the_header_said():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros(SAMPLE_RATE, np.float32)

    with pytest.raises(AudioTooLong, match="longer than 5 s"):
        joined(endless(), AudioLimits(max_s=5))
    assert taken == 6
