"""How long an audio file is, as its headers tell: without decoding it, in a few reads.

For capacity and progress only. A header can lie, so decoding counts for itself.
"""

import io
import struct
from itertools import pairwise
from typing import BinaryIO

from server.audio.containers import Chunk, FileType, declared_extent, iff_chunks, mp4_boxes
from server.audio.raw_wav import raw_wav

# Longer is a placeholder, or a lie.
_MAX_S = 1e7
_MAX_OGG_PAGE = 65_307
# Bit rates of layer III in kbit/s, by the index in a frame's header: of MPEG 1, and of MPEG 2 and 2.5.
_MP3_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_AAC_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
_MATROSKA_SEGMENT, _MATROSKA_INFO, _MATROSKA_CLUSTER = 0x18538067, 0x1549A966, 0x1F43B675
_MATROSKA_SCALE, _MATROSKA_DURATION = 0x2AD7B1, 0x4489


def declared_length_s(file: BinaryIO, file_type: FileType) -> float | None:
    """Seconds; None if the headers tell nothing usable. Leaves the file at any position."""
    length, offset = file.seek(0, io.SEEK_END), file_type.offset
    try:
        match file_type.demuxer:
            case "wav":
                seconds = _wav_s(file, offset, length)
            case "aiff":
                seconds = _aiff_s(file, offset)
            case "caf":
                seconds = _caf_s(file, offset, length)
            case "mov":
                seconds = _mp4_s(file, offset)
            case "matroska":
                seconds = _matroska_s(_read(file, offset, 1 << 16))
            case "ogg":
                seconds = _ogg_s(file, offset, length)
            case "mp3":
                seconds = declared_extent(file, "mp3", offset).min_s or _mp3_s(
                    _read(file, offset, 4096), length - offset
                )
            case "aac":
                seconds = _adts_s(_read(file, offset, 1 << 16), length - offset)
            case demuxer:
                seconds = declared_extent(file, demuxer, offset).min_s
    except (struct.error, IndexError, ZeroDivisionError, OverflowError):
        # Cut off within a header, or junk.
        return None
    return seconds if seconds is not None and 0 < seconds < _MAX_S else None


def _wav_s(file: BinaryIO, offset: int, length: int) -> float | None:
    if raw := raw_wav(file, offset):
        return raw.frames / raw.rate
    bytes_per_s, long_size = 0, None
    for chunk in iff_chunks(file, offset, "<"):
        if chunk.name == b"ds64":
            (long_size,) = struct.unpack("<8xQ", _read(file, chunk.start, 16))
        if chunk.name == b"fmt ":
            (bytes_per_s,) = struct.unpack("<8xI", _read(file, chunk.start, 12))
        if chunk.name == b"data":
            size = min(chunk.size or long_size or length, length - chunk.start)
            return size / bytes_per_s
    return None


def _aiff_s(file: BinaryIO, offset: int) -> float | None:
    for chunk in iff_chunks(file, offset, ">"):
        if chunk.name == b"COMM":
            frames, exponent, mantissa = struct.unpack(">2xI2xHQ", _read(file, chunk.start, 18))
            # The rate has 80 bits, as extended floats do.
            return frames / (mantissa * 2.0 ** ((exponent & 0x7FFF) - 16_383 - 63))
    return None


def _caf_s(file: BinaryIO, offset: int, length: int) -> float | None:
    start, rate, packet_bytes, packet_frames = offset + 8, 0.0, 0, 0
    frames = None
    for _ in range(100):
        head = _read(file, start, 12)
        if len(head) < 12:
            break
        name, size = struct.unpack(">4sq", head)
        if name == b"desc":
            rate, packet_bytes, packet_frames = struct.unpack(">d8xII", _read(file, start + 12, 24))
        if name == b"pakt":
            (frames,) = struct.unpack(">8xq", _read(file, start + 12, 16))
        if name == b"data" and packet_bytes:
            # Before the samples there is a count of edits.
            data_bytes = (length - start - 12 if size < 0 else min(size, length - start - 12)) - 4
            frames = data_bytes // packet_bytes * packet_frames
        if size < 0:
            break
        start += 12 + size
    return frames / rate if frames and rate else None


def _mp4_s(file: BinaryIO, offset: int) -> float | None:
    moov = next((box for box in mp4_boxes(file, offset) if box.name == b"moov"), None)
    if moov is None:
        return None
    inner = list(_inside(file, moov))
    header = next((box for box in inner if box.name == b"mvhd"), None)
    if header is None:
        return None
    data = _read(file, header.start + 8, 32)
    time_scale, duration = struct.unpack(">20xIQ", data) if data[0] == 1 else struct.unpack(">12xII", data[:20])
    if not duration:
        # A file in fragments.
        extends = next((box for box in inner if box.name == b"mvex"), None)
        total = next((box for box in _inside(file, extends) if box.name == b"mehd"), None) if extends else None
        if total is None:
            return None
        data = _read(file, total.start + 8, 12)
        (duration,) = struct.unpack(">4xQ", data) if data[0] == 1 else struct.unpack(">4xI", data[:8])
    return duration / time_scale


def _inside(file: BinaryIO, box: Chunk) -> list[Chunk]:
    """The first boxes within a box."""
    found = []
    for inner in mp4_boxes(file, box.start + 8):
        if inner.size is None or (box.size and inner.start >= box.start + box.size) or len(found) == 100:
            break
        found.append(inner)
    return found


def _matroska_s(data: bytes) -> float | None:
    scale, duration = 1_000_000, None
    at = 0
    while at < len(data):
        id_length = 9 - data[at].bit_length()
        name = int.from_bytes(data[at : at + id_length])
        at += id_length
        size_length = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + size_length]) & ((1 << 7 * size_length) - 1)
        at += size_length
        if name in (_MATROSKA_SEGMENT, _MATROSKA_INFO):
            continue  # Its elements follow.
        if name == _MATROSKA_SCALE:
            scale = int.from_bytes(data[at : at + size])
        if name == _MATROSKA_DURATION:
            (duration,) = struct.unpack(">f" if size == 4 else ">d", data[at : at + size])
        if name == _MATROSKA_CLUSTER:
            break
        at += size
    return duration * scale / 1e9 if duration else None


def _ogg_s(file: BinaryIO, offset: int, length: int) -> float | None:
    head = _read(file, offset, 512)
    first = 27 + head[26]
    codec = head[first:]
    if codec.startswith(b"OpusHead"):
        # Opus counts at 48 kHz, whatever it was made from, and has some samples too many at its start.
        rate, skipped = 48_000, struct.unpack_from("<H", codec, 10)[0]
    elif codec.startswith(b"\x01vorbis"):
        rate, skipped = struct.unpack_from("<I", codec, 12)[0], 0
    elif codec.startswith(b"Speex   "):
        rate, skipped = struct.unpack_from("<I", codec, 36)[0], 0
    else:
        return None
    start = max(offset, length - 2 * _MAX_OGG_PAGE)
    tail = _read(file, start, length - start)
    at = len(tail)
    while (at := tail.rfind(b"OggS", 0, at)) >= 0:
        if at + 14 <= len(tail):
            (granule,) = struct.unpack_from("<q", tail, at + 6)
            # -1 where no packet ends on the page.
            if granule > 0:
                return (granule - skipped) / rate
    return None


def _mp3_s(head: bytes, size: int) -> float | None:
    """As if all of it had the bit rate of the first frame."""
    first = next((i for i, (a, b) in enumerate(pairwise(head)) if a == 0xFF and b & 0xE6 == 0xE2), None)
    if first is None:
        return None
    is_mpeg1 = head[first + 1] >> 3 & 3 == 3
    bits_per_s = 1000 * _MP3_KBITS[0 if is_mpeg1 else 1][head[first + 2] >> 4]
    return size * 8 / bits_per_s


def _adts_s(head: bytes, size: int) -> float | None:
    """As if all of it had the bit rate of its beginning. A frame has 1024 samples."""
    at = frames = 0
    rate = _AAC_RATES[head[2] >> 2 & 15]
    while at + 7 <= len(head) and head[at] == 0xFF:
        length = (head[at + 3] & 3) << 11 | head[at + 4] << 3 | head[at + 5] >> 5
        if length < 7:
            break
        at += length
        frames += 1
    return frames * 1024 / rate * size / at


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)
