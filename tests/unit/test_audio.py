"""Bytes of every kind become 16 kHz mono, or one clear line."""

import io
import struct
import subprocess
import threading
from typing import cast

import av
import numpy as np
import pytest
import soundfile

from server.audio.decode import SAMPLE_RATE, AudioLimits, Blocks, capped, decode, decode_blocks
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


def test_float_samples_beyond_full_scale_are_cut_there():
    waveform = decode(encoded(tone() * 3, 16000, "WAV", "FLOAT"))
    assert np.allclose(waveform, np.clip(tone()[:, 0] * 3, -1, 1), atol=1e-6)


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
    with pytest.raises(AudioError, match="wav, flac, mp3, m4a"):
        decode(junk)


def test_a_format_that_is_not_offered_is_refused():
    with pytest.raises(AudioError, match="wav, flac, mp3, m4a"):
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
        list(capped(endless(), AudioLimits(max_s=5)))
    assert taken == 6


def muxed(samples: np.ndarray, rate: int, container: str, codec: str) -> bytes:
    """What PyAV writes."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = cast(av.AudioStream, output.add_stream(codec, rate=rate))
        stream.layout = "mono" if samples.shape[1] == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=stream.layout.name)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return file.getvalue()


OTHER_FORMATS = [
    ("ipod", "aac"), ("ipod", "alac"), ("mp4", "aac"), ("webm", "libopus"), ("adts", "aac"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "codec"), OTHER_FORMATS)
def test_what_phones_and_browsers_record_gives_the_same_tone(container, codec):
    waveform = decode(muxed(tone(1.0, 48000, 2), 48000, container, codec))
    assert 15990 <= len(waveform) <= 16000 + 2048
    assert loudest_hertz(waveform[4000:12000]) == pytest.approx(440, abs=2)
    assert np.abs(waveform[4000:12000]).max() == pytest.approx(0.5, abs=0.05)


def test_the_caps_hold_in_the_other_process_too():
    webm = muxed(tone(3.0, 48000, 2), 48000, "webm", "libopus")
    with pytest.raises(AudioTooLong, match="longer than 2 s"):
        decode(webm, AudioLimits(max_s=2))
    with pytest.raises(AudioError, match="48000 Hz; possible: 1000 to 24000 Hz"):
        decode(webm, AudioLimits(max_rate=24000))
    with pytest.raises(AudioError, match="2 channels; possible: 1 to 1"):
        decode(webm, AudioLimits(max_channels=1))


def test_blocks_come_as_they_are_read_and_the_other_process_ends_with_them(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    blocks = decode_blocks(muxed(tone(120.0, 16000), 16000, "webm", "libopus"))
    assert len(next(blocks)) < 5 * SAMPLE_RATE
    blocks.close()  # type: ignore[attr-defined]
    assert [process.returncode for process in started] == [-9]


def test_a_decoder_that_hangs_is_ended(monkeypatch, tmp_path):
    hanging = tmp_path / "decoding.py"
    hanging.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr("server.audio.decode._DECODER", hanging)
    monkeypatch.setattr("server.audio.decode._STALL_S", 0.2)
    with pytest.raises(AudioError, match="nothing came of it"):
        decode(muxed(tone(), 16000, "ipod", "aac"))


def test_a_decoder_that_crashes_costs_one_request(monkeypatch, tmp_path, caplog):
    crashing = tmp_path / "decoding.py"
    crashing.write_text("import os\nos.abort()\n")
    monkeypatch.setattr("server.audio.decode._DECODER", crashing)
    with caplog.at_level("INFO"), pytest.raises(AudioError, match="not sound that can be read"):
        decode(muxed(tone(), 16000, "ipod", "aac"))
    assert "ended with -6" in caplog.text


@pytest.mark.parametrize("cut", [100, 2000, 6000])
@pytest.mark.parametrize(("container", "codec"), OTHER_FORMATS)
def test_other_formats_cut_off_anywhere_give_what_there_is_or_are_refused(container, codec, cut):
    whole = muxed(tone(), 16000, container, codec)
    try:
        waveform = decode(whole[:cut])
    except AudioError:
        return
    assert 0 < len(waveform) <= 16000 + 2048


@pytest.mark.parametrize(
    "playlist",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        b"[playlist]\nFile1=http://127.0.0.1:9/\n",
    ],
    ids=["m3u8", "concat", "dash", "pls"],
)
def test_a_playlist_is_no_sound(playlist):
    with pytest.raises(AudioError, match="not sound that can be read"):
        decode(playlist)


def test_a_small_opus_file_that_decodes_to_hours_stops_at_the_cap():
    opus = encoded(np.zeros((48000 * 300, 1), np.float32), 48000, "OGG", "OPUS")
    assert len(opus) < 400_000
    with pytest.raises(AudioTooLong):
        decode(opus, AudioLimits(max_s=10))


def test_a_reader_and_a_closer_may_be_two_threads():
    blocks = Blocks(decode_blocks(encoded(tone(60.0), 16000, "WAV")))
    assert len(next(blocks)) > 0
    threading.Thread(target=blocks.close).start()
    rest = sum(len(block) for block in blocks)
    assert rest <= 60 * SAMPLE_RATE
    assert blocks.samples == rest + 65536
    assert blocks.decode_s > 0
