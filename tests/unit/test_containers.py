"""Headers tell which files were cut off, and which never knew their length."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.audio.containers import Extent, declared_extent, find_type
from tests.muxing import encoded, tone, written_by_av


def extent(content: bytes) -> Extent:
    file = io.BytesIO(content)
    found = find_type(file)
    assert found
    return declared_extent(file, found.demuxer, found.offset)


def wav(declared: int, samples: int = 1000, before: bytes = b"") -> bytes:
    """16-bit mono, whose data chunk declares a number of bytes."""
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    return b"RIFF\0\0\0\0WAVE" + fmt + before + b"data" + struct.pack("<I", declared) + bytes(2 * samples)


def test_a_wav_is_cut_off_that_has_less_data_than_it_declares():
    assert not extent(wav(2000)).is_cut_off
    assert extent(wav(4000)).is_cut_off
    assert extent(wav(4000, before=b"LIST\x03\0\0\0abc\0")).is_cut_off
    assert not extent(wav(2000, before=b"LIST\x03\0\0\0abc\0")).is_cut_off


@pytest.mark.parametrize("placeholder", [0, 0x7FFFFFDB, 0x80000000, 0xFFFFFFFF])
def test_the_placeholder_of_a_recorder_is_no_length(placeholder):
    assert extent(wav(placeholder)) == Extent()


def test_a_recorder_that_counts_its_header_as_audio_did_not_lose_any():
    assert not extent(wav(2000 + 44)).is_cut_off


def test_data_behind_the_audio_may_be_cut_off_too():
    assert extent(wav(2000) + b"LIST\xff\0\0\0abc").is_cut_off


def test_rf64_has_the_length_of_its_data_in_64_bits():
    rf64 = encoded(tone(), 16000, "RF64", "PCM_16")
    assert struct.unpack("<I", rf64[rf64.index(b"data") + 4 :][:4]) == (0xFFFFFFFF,)
    assert not extent(rf64).is_cut_off
    assert extent(rf64[:-1000]).is_cut_off


def test_aiff_is_like_wav_in_the_other_byte_order():
    aiff = encoded(tone(), 16000, "AIFF", "PCM_16")
    assert not extent(aiff).is_cut_off
    assert extent(aiff[:-1000]).is_cut_off
    size = aiff.index(b"SSND") + 4
    assert extent(aiff[:size] + bytes(4) + aiff[size + 4 : -1000]) == Extent()


def box(name: bytes, content: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack(">I4s", 8 + len(content) if size is None else size, name) + content


FTYP = box(b"ftyp", b"M4A \0\0\0\0")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (FTYP + box(b"moov") + box(b"mdat", bytes(100)), Extent()),
        (FTYP + box(b"mdat", bytes(100)) + box(b"moov"), Extent()),
        (FTYP + box(b"moov") + box(b"mdat", bytes(100), size=0), Extent()),
        (FTYP + box(b"moov") + box(b"mdat", struct.pack(">Q", 116) + bytes(100), size=1), Extent()),
        (FTYP + box(b"moov") + box(b"mdat", struct.pack(">Q", 1 << 33) + bytes(100), size=1), Extent(True)),
        (FTYP + box(b"moov") + box(b"mdat", bytes(100), size=200), Extent(True)),
        (FTYP + box(b"moov") + box(b"moof") + box(b"mdat", bytes(9)) + box(b"moof", size=100), Extent(True)),
        (FTYP + box(b"mdat", bytes(100), size=200), Extent(True, "the moov box")),
        (FTYP + box(b"mdat", bytes(100), size=0), Extent(True, "the moov box")),
        (FTYP + box(b"mdat", bytes(100)), Extent(True, "the moov box")),
        (FTYP + box(b"mdat", bytes(100)) + box(b"moov", bytes(10), size=99), Extent(True, "the moov box")),
        (FTYP, Extent()),
        (FTYP + b"\xff" * 100, Extent(True)),
    ],
)
def test_an_mp4_needs_its_moov_box_and_all_of_the_others(content, expected):
    assert extent(content) == expected


def test_more_boxes_than_are_looked_at_say_nothing(monkeypatch):
    monkeypatch.setattr("server.audio.containers._MAX_CHUNKS", 1000)
    assert extent(FTYP + box(b"mdat") + box(b"free") * 997) == Extent(True, "the moov box")
    assert extent(FTYP + box(b"mdat") + box(b"free") * 998) == Extent()


@pytest.mark.parametrize(("container", "codec"), [("webm", "libopus"), ("matroska", "aac")])
def test_a_matroska_segment_declares_its_size_unless_it_is_live(container, codec):
    file = written_by_av(tone(1.0, 48000), 48000, container, codec)
    assert not extent(file).is_cut_off
    assert extent(file[:-1]).is_cut_off
    live = written_by_av(tone(1.0, 48000), 48000, container, codec, seekable=False)
    assert not extent(live).is_cut_off
    assert not extent(live[:-1000]).is_cut_off


def test_the_last_page_of_ogg_is_whole_and_marked_as_the_last():
    ogg = encoded(tone(3.0, 48000), 48000, "OGG", "OPUS")
    last = ogg.rindex(b"OggS")
    assert not extent(ogg).is_cut_off
    assert not extent(ogg + bytes(100)).is_cut_off
    assert extent(ogg[:-1]).is_cut_off
    assert extent(ogg[: last + 20]).is_cut_off
    # A cut between two pages leaves none that is incomplete.
    assert extent(ogg[:last]).is_cut_off


def test_flac_declares_its_samples_or_none():
    flac = bytearray(encoded(tone(2.5, 44100), 44100, "FLAC"))
    assert extent(bytes(flac)) == Extent(min_s=2.5)
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    assert extent(bytes(flac)) == Extent()


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (24000, 2), (44100, 1), (48000, 2)])
def test_mp3_declares_its_frames(rate, channels):
    declared = extent(encoded(tone(10.0, rate, channels), rate, "MP3")).min_s
    # Less the encoder's padding.
    assert 9.7 < declared <= 10.0


def test_mp3_without_the_number_of_frames_declares_nothing():
    assert extent(written_by_av(tone(), 16000, "mp3", "libmp3lame", write_xing="0")) == Extent()


@settings(max_examples=3 * settings.default.max_examples, deadline=None)
@given(
    st.sampled_from(["wav", "aiff", "caf", "mov", "matroska", "ogg", "flac", "mp3", "aac"]),
    st.sampled_from(
        [b"", b"RIFF\0\0\0\0WAVEdata", b"RF64\0\0\0\0WAVEds64", b"caff\0\1\0\0data", b"caff\0\1\0\0desc", FTYP,
         b"\x1aE\xdf\xa3\x80", b"OggS", b"fLaC\0\0\0\x22", b"\xff\xfb\x90\x64"]
    ),
    st.binary(max_size=200),
)  # fmt: skip
def test_no_header_however_broken_is_an_error(demuxer, head, rest):
    assert declared_extent(io.BytesIO(head + rest), demuxer).min_s >= 0
