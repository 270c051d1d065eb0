"""What an audio file is, and whether it was cut off, read from its bytes. File names are ignored.

A file is cut off when a download stops, a recorder loses power or a disk fills up. Containers declare
lengths; these are compared with the file. A recorder that writes as it goes does not know the length yet and declares
none, or a placeholder: such a file does not count as cut off.
"""

import io
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from server.errors import AudioError

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
    """libsndfile may open it. Not MPEG audio: its mpg123 reports broken frames on standard error."""


def unreadable() -> AudioError:
    return AudioError(f"Unsupported or damaged audio file. Supported: {SUPPORTED}.")


def find_type(file: BinaryIO) -> FileType | None:
    """The type; None for an unsupported file. Leaves the file at any position."""
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
    """The bytes of an ID3v2 tag: its size field, four times 7 bits, plus header and footer of 10 bytes each."""
    a, b, c, d = (byte & 0x7F for byte in head[6:10])
    footer = 10 if head[5] & 0x10 else 0
    return 10 + (a << 21 | b << 14 | c << 7 | d) + footer


# Sizes from here on are placeholders: sox writes 0x7fffffdb to a pipe, ffmpeg 0xffffffff.
_PLACEHOLDER = 0x7FFF_0000
# The chunks of WAV and AIFF that hold the audio. Some recorders count their header, too.
_IFF_AUDIO = {b"data", b"SSND"}
_SLACK = 64
# The most chunks to look at; four hours of MP4 in fragments of 200 ms have 144 000.
_MAX_CHUNKS = 200_000
# A forged size may point beyond the offsets that a file accepts.
_MAX_OFFSET = 1 << 62
_MAX_OGG_PAGE = 65_307
_MATROSKA_SEGMENT = 0x18538067


@dataclass(frozen=True)
class Extent:
    """What a file declares about its length. The defaults mean that it declares nothing."""

    is_cut_off: bool = False
    """It ends before its structure does."""
    missing_index: str | None = None
    """The index that was cut off, without which nothing can be decoded."""
    min_s: float = 0.0
    """Seconds of audio that it must contain."""


class Chunk(NamedTuple):
    """A chunk or box; `size` is None when it is not declared."""

    name: bytes
    start: int
    size: int | None


def declared_extent(file: BinaryIO, demuxer: str, offset: int = 0) -> Extent:
    """What the file's headers declare. The container begins at `offset`. Leaves the file at any position."""
    length = file.seek(0, io.SEEK_END)
    match demuxer:
        case "wav":
            return Extent(_wav_is_cut_off(file, offset, length))
        case "aiff":
            return Extent(any(_iff_ends_after(chunk, length) for chunk in iff_chunks(file, offset, ">")))
        case "caf":
            return _caf(file, offset, length)
        case "mov":
            return _mp4(file, offset, length)
        case "matroska":
            return Extent(_matroska_is_cut_off(file, offset, length))
        case "ogg":
            return Extent(_ogg_is_cut_off(file, offset, length))
        case "flac":
            return Extent(min_s=_flac_s(file, offset))
        case "mp3":
            return Extent(min_s=_mp3_s(file, offset))
    return Extent()


def _ends_after(chunk: Chunk, length: int) -> bool:
    return chunk.size is not None and chunk.start + chunk.size > length


def _iff_ends_after(chunk: Chunk, length: int) -> bool:
    return _ends_after(chunk, length + _SLACK if chunk.name in _IFF_AUDIO else length)


def _wav_is_cut_off(file: BinaryIO, offset: int, length: int) -> bool:
    long_size = None
    for chunk in iff_chunks(file, offset, "<"):
        if chunk.name == b"ds64":
            # RF64 has its sizes here, 64 bits each: of the file, then of the data.
            long_size = struct.unpack("<8xQ", _read(file, chunk.start, 16).ljust(16, b"\0"))[0]
        if chunk.name == b"data" and chunk.size is None and long_size:
            chunk = chunk._replace(size=long_size)
        if _iff_ends_after(chunk, length):
            return True
    return False


def iff_chunks(file: BinaryIO, offset: int, order: str) -> Iterator[Chunk]:
    """The chunks of a WAV or AIFF file, up to the first whose size is not declared."""
    start = offset + 12
    for _ in range(_MAX_CHUNKS):
        head = _read(file, start, 8)
        if len(head) < 8:
            return
        name, size = struct.unpack(order + "4sI", head)
        known = 0 < size < _PLACEHOLDER or name not in _IFF_AUDIO
        yield Chunk(name, start + 8, size if known else None)
        if not known:
            return
        start += 8 + size + size % 2


def _caf(file: BinaryIO, offset: int, length: int) -> Extent:
    start = offset + 8
    needs_packet_table, names, cut_off = False, set(), False
    for _ in range(_MAX_CHUNKS):
        head = _read(file, start, 12)
        if len(head) < 12:
            break
        name, size = struct.unpack(">4sq", head)
        names.add(name)
        if name == b"desc":
            bytes_per_packet, frames_per_packet = struct.unpack(">16xII", _read(file, start + 12, 24).ljust(24, b"\0"))
            needs_packet_table = not (bytes_per_packet and frames_per_packet)
        if size < 0:
            # Audio up to the end of the file.
            break
        cut_off = start + 12 + size > length
        start += 12 + size
    if cut_off and needs_packet_table and b"pakt" not in names:
        return Extent(True, "the packet table")
    return Extent(cut_off)


def _mp4(file: BinaryIO, offset: int, length: int) -> Extent:
    boxes = list(mp4_boxes(file, offset))
    if len(boxes) == _MAX_CHUNKS:
        return Extent()
    moov = next((box for box in boxes if box.name == b"moov"), None)
    if any(box.name == b"mdat" for box in boxes) and (moov is None or _ends_after(moov, length)):
        return Extent(True, "the moov box")
    return Extent(any(_ends_after(box, length) for box in boxes))


def mp4_boxes(file: BinaryIO, offset: int) -> Iterator[Chunk]:
    for _ in range(_MAX_CHUNKS):
        head = _read(file, offset, 16)
        if len(head) < 8:
            return
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size < 8:
            # 0 is a box up to the end of the file; other sizes are not possible.
            yield Chunk(name, offset, None)
            return
        yield Chunk(name, offset, size)
        offset += size


def _matroska_is_cut_off(file: BinaryIO, offset: int, length: int) -> bool:
    """Looks only at the top level: the Segment, which holds everything, declares its size unless recorded live."""
    for _ in range(_MAX_CHUNKS):
        head = _read(file, offset, 12)
        if not head or not head[0]:
            return False
        id_length = 9 - head[0].bit_length()
        if len(head) < id_length + 1 or not head[id_length]:
            return False
        size_length = 9 - head[id_length].bit_length()
        bits = 7 * size_length
        size = int.from_bytes(head[id_length : id_length + size_length]) & ((1 << bits) - 1)
        if size == (1 << bits) - 1:
            return False
        offset += id_length + size_length + size
        if offset > length:
            return int.from_bytes(head[:id_length]) == _MATROSKA_SEGMENT
    return False


def _ogg_is_cut_off(file: BinaryIO, offset: int, length: int) -> bool:
    """The last page is incomplete, or not marked as the last of its stream."""
    tail_start = max(offset, length - 2 * _MAX_OGG_PAGE)
    tail = _read(file, tail_start, length - tail_start)
    page = tail.rfind(b"OggS")
    if page < 0:
        return False
    head = tail[page : page + 27]
    if len(head) < 27:
        return True
    lacing = tail[page + 27 : page + 27 + head[26]]
    is_complete = len(lacing) == head[26] and page + 27 + len(lacing) + sum(lacing) <= len(tail)
    return not (is_complete and head[5] & 4)


def _flac_s(file: BinaryIO, offset: int) -> float:
    """Seconds, from STREAMINFO, the first block; 0 samples mean an unknown number."""
    info = _read(file, offset + 8, 18)
    if len(info) < 18:
        return 0.0
    # 20 bits of sample rate, 3 of channels, 5 of bits per sample, 36 of samples.
    packed = int.from_bytes(info[10:18])
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return samples / rate if rate else 0.0


def _mp3_s(file: BinaryIO, offset: int) -> float:
    """Seconds, from the frame count in a Xing or Info header, which replaces the first frame's audio."""
    head = _read(file, offset, 4096)
    first = next((i for i, (a, b) in enumerate(itertools.pairwise(head)) if a == 0xFF and b & 0xE0 == 0xE0), None)
    if first is None or len(head) < first + 64:
        return 0.0
    version, mono = head[first + 1] >> 3 & 3, head[first + 3] >> 6 == 3
    rate_index = head[first + 2] >> 2 & 3
    if version == 1 or rate_index == 3:
        return 0.0
    is_mpeg1 = version == 3
    rate = (44_100, 48_000, 32_000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    xing = first + ((21 if mono else 36) if is_mpeg1 else (13 if mono else 21))
    if head[xing : xing + 4] not in (b"Xing", b"Info") or not head[xing + 7] & 1:
        return 0.0
    frames = int.from_bytes(head[xing + 8 : xing + 12])
    # Decoders leave out the encoder's delay and padding: up to four frames.
    return max(0, frames - 4) * (1152 if is_mpeg1 else 576) / rate


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    if start > _MAX_OFFSET:
        return b""
    file.seek(start)
    return file.read(count)
