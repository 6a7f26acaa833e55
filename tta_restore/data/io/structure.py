"""Structure of video files: what demuxers pass over in silence, frames between damaged bytes and a missing end."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["count_avi_frames", "ffv1_checksums", "is_broken"]

_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_PACKETS = ((188, 0), (192, 4), (204, 0))  # bytes of a packet of a transport stream, and where in it its mark is
_MARK = 0x47
_PACK, _END = 0xBA, 0xB9  # codes of a program stream
_MXF_KEY = b"\x06\x0e\x2b\x34"
_BLOCK = 2**16  # packets looked at together
_CHUNK = 2**20  # bytes read at a time
_SLICE_END = 8  # bytes behind a slice of FFV1: its size, a status and its checksum
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CRC = b"\xbf\x84"  # an element of four bytes: the checksum of what follows in the element around it
_EBML_HEADER, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def count_avi_frames(path: Path, stream: int) -> tuple[int, bool]:
    """Return the number of frames that an AVI file holds, and whether its chunks follow each other to its end.

    A chunk of zero bytes has the frame before be shown once more: it is none that could be missing.

    Args:
        path: an AVI file.
        stream: number of the video stream within it.
    """
    kinds = {b"%02d%s" % (stream, kind) for kind in (b"dc", b"db")}
    total = path.stat().st_size
    frames = at = end = 0  # end of the part that a RIFF chunk declares, where it does
    with path.open("rb", buffering=0) as file:
        while at + 8 <= total:
            file.seek(at)
            kind, size, name = struct.unpack("<4sI4s", file.read(12).ljust(12))
            if kind == b"RIFF":
                end = at + 8 + size if 0 < size < 2**32 - 1 else total
                at += 12
            elif at >= end:  # behind what the file declares
                break
            elif kind == b"LIST" and name in (b"movi", b"rec "):  # chunks within
                at += 12
            elif not kind.isascii() or at + 8 + size > total:
                return frames, False
            else:
                frames += kind in kinds and size > 0
                at += 8 + size + size % 2
    return frames, end - 8 <= total  # some writers count the 8 bytes before as well


def is_broken(path: Path, container: str) -> bool:
    """Return whether the parts of a file do not follow each other to its end, by the sizes that they declare.

    Checksums of Matroska and Ogg are compared as well: FFmpeg writes them, and reads past them or what they cover.

    Args:
        path: a video file.
        container: libav's name of its format. Only Matroska, Ogg, FLV, ASF, MPEG, MXF, IVF, AV1's own, DV, YUV4MPEG
            and transport streams have parts that are known here.
    """
    if container == "mpegts":
        return _is_broken_transport(path)
    find = next((find for name, find in _PARTS.items() if name in container.split(",")), None)
    if find is None:
        return False
    compare = _CHECKSUMS.get(find)
    total = path.stat().st_size
    at = 0
    with path.open("rb", buffering=0) as file:
        while at < total:
            file.seek(at)
            size = find(file, at)
            if size is None:  # no part that is known here
                return False
            at += size
            if at > total or (compare is not None and not compare(file, at - size, at)):
                return True
    return at > total


def ffv1_checksums(packet: bytes) -> list[bool]:
    """Return for each slice of a frame in FFV1 whether its checksum fits, nothing where there are none.

    FFmpeg shows slices whose checksums differ all the same.
    """
    fits: list[bool] = []
    end = len(packet)
    while end >= _SLICE_END:
        start = end - _SLICE_END - int.from_bytes(packet[end - _SLICE_END : end - _SLICE_END + 3])
        if start < 0:
            return []
        fits.append(_remainder(packet[start:end]) == 0)  # its checksum is within
        end = start
    return fits if end == 0 else []


def _remainder(data: bytes) -> int:
    """Return the CRC-32 of FFV1 and Ogg, whose bits are in another order than zlib's, and which begins with zeros."""
    return zlib.crc32(data.translate(_BITS_REVERSED), 2**32 - 1) ^ (2**32 - 1)


def _ogg_checksum_fits(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether a page fits its checksum, which counts as zeros within."""
    file.seek(start)
    page = file.read(end - start)
    checksum = int.from_bytes(page[22:26], "little")
    return _remainder(page[:22] + bytes(4) + page[26:]) == int(f"{checksum:032b}"[::-1], 2)


def _matroska_checksum_fits(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether the content of an element fits its checksum; True where it has none."""
    file.seek(start)
    head = file.read(18)
    at = _head_of(head)
    if at is None or head[at : at + 2] != _CRC or len(head) < at + 6:
        return True
    file.seek(start + at + 6)
    left, checksum = end - start - at - 6, 0
    while left > 0 and (data := file.read(min(left, _CHUNK))):
        left, checksum = left - len(data), zlib.crc32(data, checksum)
    return checksum == int.from_bytes(head[at + 2 : at + 6], "little")


def _head_of(head: bytes) -> int | None:
    """Return the bytes of number and size of a Matroska element, None where it is none."""
    width = 9 - head[0].bit_length() if head and head[0] else 5
    if width > 4 or len(head) <= width or not head[width]:
        return None
    return width + 9 - head[width].bit_length()


def _is_broken_transport(path: Path) -> bool:
    """Return whether a packet of a transport stream does not begin with its mark, or is not whole."""
    total = path.stat().st_size
    content = np.memmap(path, np.uint8, "r")
    for size, start in _PACKETS:
        if total % size == 0 and (content[start : 8 * size : size] == _MARK).all():
            marks = content[start::size]
            return any((marks[at : at + _BLOCK] != _MARK).any() for at in range(0, len(marks), _BLOCK))
    return True


def _matroska_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of an element; of the segment, and of others without an end, those before what it holds."""
    head = file.read(12)
    length = _head_of(head)
    if length is None or (at == 0 and head[:4] != _EBML_HEADER):
        return None
    width = 9 - head[0].bit_length()
    digits = 7 * (length - width)
    size = int.from_bytes(head[width:length].ljust(length - width, b"\0")) & ((1 << digits) - 1)
    is_open = size == (1 << digits) - 1
    if is_open and head[:width] not in (_SEGMENT, _CLUSTER):
        return None
    if head[:width] == _SEGMENT and not is_open and at + length + size <= os.fstat(file.fileno()).st_size:
        return length
    return length + (0 if is_open else size)


def _flv_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of a tag, and of the size of the one before, which comes first."""
    head = file.read(15)
    if at == 0:
        return int.from_bytes(head[5:9]) if head[:3] == b"FLV" else None
    if len(head) == 4:  # behind the last tag; some writers leave it out
        return 4
    return 15 + int.from_bytes(head[5:8]) if head[4:5] in (b"\x08", b"\x09", b"\x12") else None


def _asf_part(file: BinaryIO, at: int) -> int | None:
    head = file.read(24).ljust(24, b"\0")
    size = int.from_bytes(head[16:24], "little")
    return size if size >= 24 and (at == 0 or head[:16] == _ASF_DATA) else None


def _ogg_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of a page: its head, its table of lengths, and what that adds up to."""
    head = file.read(27)
    if head[:4] != b"OggS":
        return None
    return 27 + head[26] + sum(file.read(head[26])) if len(head) == 27 else 27


def _mpeg_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of a pack's header or of a packet of a program stream."""
    head = file.read(14).ljust(14, b"\0")
    if head[:3] != b"\0\0\1" or (at == 0 and head[3] != _PACK):
        return None
    if head[3] == _PACK:
        return 14 + (head[13] & 7) if head[4] >= 0x40 else 12  # of MPEG-2 and MPEG-1
    return 4 if head[3] == _END else 6 + int.from_bytes(head[4:6])


def _mxf_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of a value with its key of 16 bytes and its length, whose first byte is one or counts others."""
    head = file.read(25)
    if head[:4] != _MXF_KEY:
        return None
    more = max(0, head[16] - 0x80) if len(head) > 16 else 0
    return 17 + more + (int.from_bytes(head[17 : 17 + more]) if more else head[16] if len(head) > 16 else 0)


def _ivf_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of the header, or of a frame with its size and time."""
    head = file.read(8)
    if at == 0:
        return int.from_bytes(head[6:8], "little") if head[:4] == b"DKIF" else None
    return 12 + int.from_bytes(head[:4], "little")


def _obu_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of a unit of AV1: head, size in groups of 7 bits from the lowest on, content."""
    head = file.read(10)
    if not head[0] & 2:  # without a size
        return None
    start, size = 2 if head[0] & 4 else 1, 0
    for number, byte in enumerate(head[start : start + 8]):
        size |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return start + number + 1 + size
    return len(head) + 1 if len(head) < 10 else None  # it ends within, or is none


def _dv_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of a frame: 12 sequences of 50 Hz, or 10 of 60 Hz; studio formats have several such blocks."""
    head = file.read(4)
    return None if head[:1] != b"\x1f" else 12000 * (12 if head[3:] >= b"\x80" else 10)


def _y4m_part(file: BinaryIO, at: int) -> int | None:
    """Return the bytes of the header, or of a frame with its line."""
    line, is_whole, _ = file.read(_LONGEST_LINE).partition(b"\n")
    if at == 0:
        return len(line) + 1 if is_whole and line.startswith(b"YUV4MPEG2") else None
    file.seek(0)
    fields = {word[:1]: word[1:] for word in file.read(_LONGEST_LINE).partition(b"\n")[0].split()[1:]}
    kind = fields.get(b"C", b"420")
    try:
        width, height = int(fields[b"W"]), int(fields[b"H"])
    except (KeyError, ValueError):
        return None
    across, down = next((steps for name, steps in _CHROMA.items() if kind.startswith(name)), (0, 0))
    if not across and kind != b"mono":
        return None
    chroma = 2 * -(-width // across) * -(-height // down) if across else 0
    return len(line) + 1 + (2 if _DEEP.search(kind) else 1) * (width * height + chroma)


_LONGEST_LINE = 1024  # bytes
_DEEP = re.compile(rb"p\d+$")  # of 9 bits and more, such as 420p10, unlike 420paldv
_CHROMA = {b"420": (2, 2), b"422": (2, 1), b"444": (1, 1), b"411": (4, 1)}
_PARTS: dict[str, Callable[[BinaryIO, int], int | None]] = {
    "matroska": _matroska_part,
    "flv": _flv_part,
    "asf": _asf_part,
    "ogg": _ogg_part,
    "mpeg": _mpeg_part,
    "mxf": _mxf_part,
    "ivf": _ivf_part,
    "obu": _obu_part,
    "dv": _dv_part,
    "yuv4mpegpipe": _y4m_part,
}
_CHECKSUMS: dict[Callable[[BinaryIO, int], int | None], Callable[[BinaryIO, int, int], bool]] = {
    _matroska_part: _matroska_checksum_fits,
    _ogg_part: _ogg_checksum_fits,
}
