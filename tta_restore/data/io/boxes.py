"""Boxes of the ISO base media format as images use them: AVIF, HEIC, JPEG 2000 and JPEG XL."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

__all__ = [
    "add_jpeg_xl_metadata",
    "avif_depth",
    "declared_size",
    "jpeg_2000_size",
    "jpeg_xl_metadata",
    "jpeg_xl_size",
]

_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0}  # boxes in boxes, and the bytes before the first inner one
_LARGEST_METADATA = 2**24  # bytes


def avif_depth(content: bytes) -> int:
    """Return the bits per sample of an AVIF file by the configuration of its first image."""
    for kind, data in _walk(content):
        if kind == b"av1C" and len(data) > 2:
            return {0: 8, 0x40: 10, 0x60: 12}.get(data[2] & 0x60, 8)
    return 8


def declared_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of the largest image that an AVIF or HEIC file declares."""
    sizes = [struct.unpack_from(">II", data, 4) for kind, data in _walk(content) if kind == b"ispe" and len(data) >= 12]
    return max(sizes, key=lambda size: size[0] * size[1]) if sizes else None


def jpeg_2000_size(content: bytes) -> tuple[int, int, int]:
    """Return width, height and bits per sample that a JPEG 2000 code stream declares.

    Raises:
        ValueError: its header is incomplete.
    """
    at = content.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(content) < at + 43:
        raise ValueError("its header is incomplete")
    right, bottom, left, top = struct.unpack_from(">4I", content, at + 8)
    return right - left, bottom - top, (content[at + 42] & 0x7F) + 1


def jpeg_xl_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height that the code stream of a JPEG XL file declares."""
    start = 0
    if content[:2] != b"\xff\x0a":
        for kind, data in _boxes(content):
            if kind in (b"jxlc", b"jxlp"):
                start = content.find(b"\xff\x0a", content.find(data[:16]))
                break
        else:
            return None
    bits = int.from_bytes(content[start + 2 : start + 18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(small: int) -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side(small)
    ratio = take(3)
    if ratio == 0:
        return side(small), height
    numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * numerator // denominator, height


def jpeg_xl_metadata(content: bytes) -> dict[str, Any]:
    """Return EXIF and XMP of a JPEG XL file."""
    found: dict[str, Any] = {}
    for kind, data in _boxes(content):
        if kind == b"brob":
            import imagecodecs

            kind, data = data[:4], bytes(imagecodecs.brotli_decode(data[4:]))
            if len(data) > _LARGEST_METADATA:
                continue
        if kind == b"Exif":
            found["exif"] = b"Exif\0\0" + data[4:]
        elif kind == b"xml ":
            found["xmp"] = data
    return found


def add_jpeg_xl_metadata(content: bytes, *, exif: bytes | None, xmp: bytes | None) -> bytes:
    """Return a JPEG XL file (a container) with EXIF and XMP behind the code stream."""
    if exif:
        content += _box(b"Exif", bytes(4) + exif.removeprefix(b"Exif\0\0"))
    if xmp:
        content += _box(b"xml ", xmp)
    return content


def _walk(content: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Yield the boxes that describe images, those inside others included."""
    for kind, data in _boxes(content[start:end]):
        if kind in _CONTAINERS:
            yield from _walk(data, _CONTAINERS[kind])
        elif kind != b"mdat":
            yield kind, data


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1 and at + 16 <= len(content):
            (size,) = struct.unpack_from(">Q", content, at + 8)
            head = 16
        elif size == 0:
            size = len(content) - at
        if size < head:
            return
        yield kind, content[at + head : at + size]
        at += size


def _box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data) + 8, kind) + data
