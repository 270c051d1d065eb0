"""Audio files become 16 kHz mono, or one clear error: what libsndfile reads, raw WAV, and the limits."""

import struct
import threading

import numpy as np
import pytest

from server.audio.decode import SAMPLE_RATE, AudioLimits, Blocks, capped, decode, decode_blocks
from server.errors import AudioError, AudioTooLong
from tests.muxing import cut_at_60_percent, encoded, loudest_hertz, tone, written_by_av

FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("RF64", "PCM_16"), ("AIFF", "PCM_16"), ("AIFF", "FLOAT"),
    ("AIFF", "ULAW"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 2), (48000, 1)])
def test_every_format_rate_and_channel_count_gives_the_same_tone(format, subtype, rate, channels):
    waveform = decode(encoded(tone(1.0, rate, channels), rate, format, subtype))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    # Ogg rounds a length up to whole frames.
    assert 15990 <= len(waveform) <= 16000 + 2 * 1152 * 2
    middle = waveform[4000:12000]
    assert loudest_hertz(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


def test_ogg_with_opus_is_read():
    waveform = decode(encoded(tone(1.0, 48000), 48000, "OGG", "OPUS"))
    assert loudest_hertz(waveform[4000:12000]) == pytest.approx(440, abs=2)


def test_aiff_c_in_the_byte_order_of_a_mac_is_read():
    aiff_c = written_by_av(tone(), 16000, "aiff", "pcm_s16le")
    assert aiff_c[8:12] == b"AIFC"
    assert np.allclose(decode(aiff_c), tone()[:, 0], atol=1e-4)


def test_16_khz_mono_is_not_changed_by_a_bit():
    samples = tone()
    assert np.array_equal(decode(encoded(samples, 16000, "WAV", "FLOAT")), samples[:, 0])


def test_resampling_keeps_the_length():
    assert len(decode(encoded(tone(2.5, 44100), 44100, "WAV"))) == pytest.approx(40000, abs=2)


def test_channels_are_averaged():
    left = np.stack([tone()[:, 0], np.zeros(16000, np.float32)], axis=1)
    assert np.allclose(decode(encoded(left, 16000, "WAV", "FLOAT")), tone()[:, 0] / 2)


def test_the_content_decides_what_a_file_is_and_not_its_name(tmp_path):
    flac = encoded(tone(), 16000, "FLAC")
    for name in ("talk.mp3", "talk.raw", "talk"):
        path = tmp_path / name
        path.write_bytes(flac)
        assert len(decode(path)) == 16000
        with path.open("rb") as file:
            assert len(decode(file)) == 16000


def test_a_flac_behind_an_id3_tag_is_read():
    tag = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)
    assert len(decode(tag + encoded(tone(), 16000, "FLAC"))) == 16000


def test_float_samples_beyond_full_scale_are_clipped():
    waveform = decode(encoded(tone() * 3, 16000, "WAV", "FLOAT"))
    assert np.allclose(waveform, np.clip(tone()[:, 0] * 3, -1, 1), atol=1e-6)


SUPPORTED = "Unsupported or damaged audio file. Supported: wav, aiff, caf, flac, mp3, m4a, mp4, mov, ogg, webm, aac."


def test_an_unsupported_format_is_refused_with_the_supported_ones():
    with pytest.raises(AudioError) as refused:
        decode(encoded(tone(), 16000, "AU"))
    assert str(refused.value) == SUPPORTED


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "empty.wav").touch()
    for source in (b"", tmp_path / "empty.wav"):
        with pytest.raises(AudioError) as refused:
            decode(source)
        assert str(refused.value) == "The file is empty (0 bytes)."


@pytest.mark.parametrize("format", ["WAV", "AIFF", "OGG"])
def test_a_file_with_a_header_and_no_samples_is_called_empty(format):
    with pytest.raises(AudioError) as refused:
        decode(encoded(tone(0.0), 16000, format))
    assert str(refused.value) == "The audio is empty: the file has a header but no samples."


@pytest.mark.parametrize(("format", "subtype"), [*FORMATS, ("FLAC", "PCM_16"), ("OGG", "OPUS")])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_cut_off_file_gives_the_audio_before_the_cut_and_is_called_truncated(format, subtype, rate):
    file = encoded(tone(10.0, rate, 2), rate, format, subtype)
    whole = Blocks(decode_blocks(file))
    samples = sum(len(block) for block in whole)
    assert samples == pytest.approx(160_000, abs=100)
    assert not whole.truncated

    cut = Blocks(decode_blocks(cut_at_60_percent(file)))
    waveform = np.concatenate(list(cut))
    assert cut.truncated
    # Only whole pages of Ogg, of up to four seconds, and whole frames of FLAC, of up to 4096 samples, can be decoded.
    assert len(waveform) == pytest.approx(96_000, abs={"OGG": 48_000, "FLAC": 4200}.get(format, 100))
    assert loudest_hertz(waveform[4000:36000]) == pytest.approx(440, abs=2)


def test_a_flac_loses_no_block_before_its_cut():
    # The decoder fails within the second block of 65 536 samples, behind 28 672 good ones.
    cut = decode(cut_at_60_percent(encoded(tone(10.0), 16000, "FLAC", "PCM_16")))
    assert len(cut) == 65_536 + 28_672
    assert np.allclose(cut, tone(10.0)[: len(cut), 0], atol=1e-4)


def test_audio_that_was_not_read_to_its_end_is_not_called_truncated():
    blocks = Blocks(decode_blocks(encoded(tone(60.0), 16000, "WAV")))
    next(blocks)
    blocks.close()
    assert list(blocks) == []
    assert not blocks.truncated


def test_samples_that_are_not_numbers_are_refused():
    samples = tone()
    samples[100] = np.nan
    with pytest.raises(AudioError, match="NaN or infinite"):
        decode(encoded(samples, 16000, "WAV", "FLOAT"))


def test_each_limit_holds_alone():
    limits = AudioLimits(max_s=1.0, max_rate=48000, max_channels=2)
    assert len(decode(encoded(tone(1.0, 48000, 2), 48000, "WAV"), limits)) == pytest.approx(16000, abs=2)
    with pytest.raises(AudioTooLong, match=r"1\.1 s long; the limit is 1 s"):
        decode(encoded(tone(1.1), 16000, "WAV"), limits)
    with pytest.raises(AudioError, match="96000 Hz; supported: 1000 to 48000 Hz"):
        decode(encoded(tone(0.1, 96000), 96000, "WAV"), limits)
    with pytest.raises(AudioError, match="3 channels; supported: 1 to 2"):
        decode(encoded(tone(0.1, 16000, 3), 16000, "WAV"), limits)


def test_a_forged_sample_rate_does_not_get_around_the_limit_on_seconds():
    wav = bytearray(encoded(tone(10.0), 16000, "WAV", "PCM_16"))
    wav[24:28] = struct.pack("<I", 1000)  # claims to be 160 s
    with pytest.raises(AudioTooLong):
        decode(bytes(wav), AudioLimits(max_s=40))
    wav[24:28] = struct.pack("<I", 2**31 - 1)  # claims to be a microsecond
    with pytest.raises(AudioError, match="2147483647 Hz"):
        decode(bytes(wav), AudioLimits(max_s=1))


def test_a_small_file_that_decodes_to_hours_stops_at_the_limit():
    # A FLAC of silence: tens of kilobytes for ten minutes, with its length struck from the header.
    flac = bytearray(encoded(np.zeros((16000 * 600, 1), np.float32), 16000, "FLAC", "PCM_16"))
    assert len(flac) < 200_000
    flac[21] &= 0xF0
    flac[22:26] = b"\0\0\0\0"
    with pytest.raises(AudioTooLong, match="5 s"):
        decode(bytes(flac), AudioLimits(max_s=5))


def test_a_small_opus_file_that_decodes_to_much_more_stops_at_the_limit():
    opus = encoded(np.zeros((48000 * 60, 1), np.float32), 48000, "OGG", "OPUS")
    assert len(opus) < 80_000
    with pytest.raises(AudioTooLong):
        decode(opus, AudioLimits(max_s=10))


def test_decoding_stops_at_the_limit_whatever_the_header_declares():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros(SAMPLE_RATE, np.float32)

    with pytest.raises(AudioTooLong, match="longer than the limit of 5 s"):
        list(capped(endless(), AudioLimits(max_s=5)))
    assert taken == 6


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
def test_a_playlist_is_no_audio(playlist):
    with pytest.raises(AudioError, match="Unsupported or damaged"):
        decode(playlist)


def test_one_thread_may_read_blocks_and_another_close_them():
    blocks = Blocks(decode_blocks(encoded(tone(60.0), 16000, "WAV")))
    assert len(next(blocks)) > 0
    threading.Thread(target=blocks.close).start()
    rest = sum(len(block) for block in blocks)
    assert rest <= 60 * SAMPLE_RATE
    assert blocks.samples == rest + 65536
    assert blocks.decode_s > 0
