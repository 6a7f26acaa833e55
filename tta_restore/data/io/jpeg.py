"""Segments of JPEG files: IPTC records and comments, which Pillow does not write, and the salvage of damaged files."""

from __future__ import annotations

import importlib
import re
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["add_iptc", "end_of_image", "is_damaged", "read_metadata", "read_size", "unsupported_process"]

_JPEG_LS = 0xF7
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
#: How segments begin that are carried in another way, or that a decoder and an encoder need.
_KNOWN = (b"JFIF\0", b"JFXX\0", b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"Adobe\0", b"MPF\0")
_PHOTOSHOP = b"Photoshop 3.0\0"
_PROFILE = b"ICC_PROFILE\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_IPTC = 0x0404
_LASTING_RESOURCES = {*range(0x07D0, 0x0BB7), 0x0BB7, 0x040A, 0x0414, 0x0428, 0x0435}  # paths, copyright, aspect, ...
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # with a segment behind it, or the end of the image
_END = b"\xd9"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame


def read_size(content: bytes) -> tuple[int, int, int] | None:
    """Return width, height and bits per sample that the frame header declares, None where there is none."""
    for marker, data in _segments(content):
        if marker in _FRAMES and len(data) >= 5:
            depth, height, width = struct.unpack_from(">BHH", data)
            return width, height, depth
    return None


def unsupported_process(content: bytes) -> str | None:
    """Return what is special about a JPEG file that the decoder cannot read, None for an ordinary one."""
    for marker, data in _segments(content):
        if marker == _JPEG_LS:
            return "JPEG-LS"
        if marker in _FRAMES and data:
            if marker in _LOSSLESS:
                return "lossless JPEG"
            return f"JPEG of {data[0]} bits per sample" if data[0] != 8 else None
    return None


def end_of_image(content: bytes) -> int:
    """Return where a JPEG image ends in its file: behind it may lie a gain map, a video or a smaller copy."""
    at = 2
    while (found := _MARKER.search(content, at)) is not None and found[1] != _END:
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
    return found.end() if found is not None else len(content)


def is_damaged(content: bytes) -> bool:
    """Return whether the coded samples of a JPEG image are damaged or end early.

    The usual decoder fills what is missing with gray in silence. FFmpeg (the extra "video") decodes the image once more
    and is strict; False where it is not installed, or does not support the process.
    """
    try:
        av = importlib.import_module("av")
    except ImportError:
        return False
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    try:
        decoder.decode(av.Packet(content))
    except av.error.InvalidDataError:
        return True
    except av.error.FFmpegError:  # arithmetic coding, rare kinds of subsampling
        return False
    return False


def read_metadata(content: bytes) -> dict[str, Any]:
    """Return IPTC, XMP and comment of a JPEG file, as keywords of :class:`tta_restore.data.io.pixels.Image`.

    ``"has_profile"``: whether there are parts of a color profile.
    """
    found: dict[str, Any] = {}
    lost: dict[str, None] = {}
    for marker, data in _segments(content):
        if marker == 0xED and data.startswith(_PHOTOSHOP):
            for kind, block in _resources(data[len(_PHOTOSHOP) :]):
                if kind == _IPTC and block:
                    found["iptc"] = block
                elif kind in _LASTING_RESOURCES:
                    lost["Photoshop's image resources"] = None
        elif marker == 0xE1 and data.startswith(_XMP):
            found["xmp"] = data[len(_XMP) :]
        elif marker == 0xE2 and data.startswith(_PROFILE):
            found["has_profile"] = True
        elif marker == 0xFE:
            found["text"] = (*found.get("text", ()), ("Comment", data.decode("utf-8", "replace")))
        elif 0xE0 <= marker <= 0xEF and not data.startswith(_KNOWN):
            lost[f"APP{marker - 0xE0} ({_identifier(data)})"] = None
    if lost:
        found["notes"] = [f"JPEG segments left out: {', '.join(list(lost)[:8])}"]
    return found


def _identifier(data: bytes) -> str:
    """Return the name at the start of a segment."""
    if data[:2] == b"JP":
        return "JUMBF, such as content credentials"
    if data.startswith(b"http://ns.adobe.com/xmp/extension/"):
        return "extended XMP"
    name = data[:32].split(b"\0", 1)[0].decode("latin-1")
    return name if name.isprintable() and name.strip() else "unnamed"


def add_iptc(content: bytes, iptc: bytes) -> bytes:
    """Return a JPEG file with IPTC records, in a segment behind the start of the image."""
    block = b"8BIM" + struct.pack(">H", _IPTC) + b"\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    data = _PHOTOSHOP + block
    return content[:2] + b"\xff\xed" + struct.pack(">H", len(data) + 2) + data + content[2:]


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and data of the segments before the first scan."""
    at = 2
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        (length,) = struct.unpack_from(">H", content, at + 2)
        yield marker, content[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def _resources(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of Photoshop's image resources."""
    at = 0
    while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
        (kind,) = struct.unpack_from(">H", data, at + 4)
        name = data[at + 6] + 1
        at += 6 + name + name % 2
        if at + 4 > len(data):
            return
        (length,) = struct.unpack_from(">I", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length + length % 2
