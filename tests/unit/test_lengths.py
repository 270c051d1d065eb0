"""How long a file is, from its headers alone."""

import io
import random
import struct

import pytest

from server.audio.containers import find_type
from server.audio.decode import header_length_s
from server.audio.lengths import declared_length_s
from tests.muxing import FRAGMENTS, caf_with_aac, encoded, tone, written_by_av

STEREO, MONO = tone(10.0, 48000, 2), tone(10.0, 48000)
FILES = {
    "wav": encoded(STEREO, 48000, "WAV", "PCM_16"),
    "24-bit wav": encoded(STEREO, 48000, "WAV", "PCM_24"),
    "rf64": encoded(STEREO, 48000, "RF64", "PCM_16"),
    "aiff": encoded(STEREO, 48000, "AIFF"),
    "caf": encoded(STEREO, 48000, "CAF", "PCM_16"),
    "caf with alac": written_by_av(STEREO, 48000, "caf", "alac"),
    "caf with aac": caf_with_aac(STEREO, 48000, index_first=False),
    "flac": encoded(STEREO, 48000, "FLAC"),
    "vorbis": encoded(STEREO, 48000, "OGG", "VORBIS"),
    "opus": encoded(STEREO, 48000, "OGG", "OPUS"),
    "mp3": encoded(MONO, 48000, "MP3"),
    "mp3 without a frame count": written_by_av(STEREO, 48000, "mp3", "libmp3lame", seekable=False),
    "m4a": written_by_av(STEREO, 48000, "ipod", "aac"),
    "mov": written_by_av(STEREO, 48000, "mov", "pcm_s16le"),
    "webm": written_by_av(STEREO, 48000, "webm", "libopus"),
    "aac": written_by_av(STEREO, 48000, "adts", "aac"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_length_is_told_without_decoding(name):
    assert header_length_s(FILES[name]) == pytest.approx(10.0, abs=0.1)


@pytest.mark.parametrize(
    "file",
    [
        written_by_av(STEREO, 48000, "webm", "libopus", seekable=False),
        written_by_av(STEREO, 48000, "mp4", "aac", seekable=False, **FRAGMENTS),
        b"",
        b"no audio at all",
    ],
    ids=["live webm", "live mp4", "nothing", "text"],
)
def test_what_tells_no_length_has_none(file):
    assert header_length_s(file) is None


def test_a_wav_cannot_claim_more_than_it_holds():
    wav = bytearray(FILES["wav"])
    wav[40:44] = struct.pack("<I", 0x7000_0000)
    assert header_length_s(bytes(wav)) == pytest.approx(10.0, abs=0.01)


@pytest.mark.parametrize("name", FILES)
def test_no_damage_to_a_header_raises(name):
    rng = random.Random(1)
    for _ in range(200):
        damaged = bytearray(FILES[name][: rng.randrange(8, 4000)])
        for _ in range(rng.randrange(8)):
            damaged[rng.randrange(4, len(damaged))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        file = io.BytesIO(damaged)
        if file_type := find_type(file):
            seconds = declared_length_s(file, file_type)
            assert seconds is None or 0 < seconds < 1e7
