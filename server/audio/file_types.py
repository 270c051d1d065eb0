"""What an audio file is. Its first bytes decide; its name is never looked at."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

SUPPORTED = "wav, aiff, caf, flac, mp3, m4a, mp4, mov, ogg, webm, aac"

_MAGIC = {
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"caff": "caf",
    b"\x1aE\xdf\xa3": "matroska",
    b"ADIF": "aac",
}
# The first box of an MP4; QuickTime's older files begin with any of the others.
_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
_LIBSNDFILE = {"wav", "aiff", "flac", "ogg"}
# MP2 and MP3 inside WAV, by their format tags.
_WAV_MPEG = {0x50, 0x55}
# A file may begin with several ID3 tags, but hardly with more than this.
_MAX_ID3_TAGS = 4


@dataclass(frozen=True)
class FileType:
    demuxer: str
    """ffmpeg's name for the container."""
    offset: int
    """Where the container begins: behind any ID3 tags."""
    for_libsndfile: bool
    """libsndfile may open it. MPEG audio is not for it: mpg123 within writes to standard error about broken frames."""


def find_type(file: BinaryIO) -> FileType | None:
    """None is an unsupported file. Leaves the file at any position."""
    offset, head = 0, b""
    for _ in range(_MAX_ID3_TAGS + 1):
        file.seek(offset)
        head = file.read(1 << 16)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        offset += _id3_length(head)
    # What follows a tag is MP3 unless it is recognised: some encoders leave padding between the two.
    demuxer = _demuxer(head) or ("mp3" if offset else None)
    if demuxer is None:
        return None
    has_mpeg = demuxer == "wav" and _wav_format_tag(head) in _WAV_MPEG
    return FileType(demuxer, offset, demuxer in _LIBSNDFILE and not has_mpeg)


def _demuxer(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] in _MP4_BOXES:
        return "mov"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # An MPEG frame; layer 0 is AAC in ADTS.
        return "aac" if head[1] & 0xF6 == 0xF0 else "mp3"
    return _MAGIC.get(head[:4])


def _wav_format_tag(head: bytes) -> int | None:
    position = head.find(b"fmt ")
    return struct.unpack_from("<H", head, position + 8)[0] if 0 < position <= len(head) - 10 else None


def _id3_length(head: bytes) -> int:
    """Of an ID3v2 tag, in bytes: four times 7 bits, without the header and the footer of 10 bytes each."""
    a, b, c, d = (byte & 0x7F for byte in head[6:10])
    footer = 10 if head[5] & 0x10 else 0
    return 10 + (a << 21 | b << 14 | c << 7 | d) + footer
