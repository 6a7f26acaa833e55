"""Segments of JPEG files: IPTC records and comments, which Pillow does not write, and the salvage of damaged files."""

from __future__ import annotations

import importlib
import io
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = [
    "add_iptc",
    "compare_length",
    "end_of_image",
    "is_damaged",
    "read_metadata",
    "read_size",
    "unsupported_process",
]

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
_TABLES, _SCAN, _END = 0xC4, 0xDA, 0xD9
_SEQUENTIAL = {0xC0, 0xC1}  # starts of frame
_HUFFMAN = {0xC0, 0xC1, 0xC2}
_AHEAD = 8  # bytes up to which the decoder reads ahead
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
    return next((at for marker, at in _markers(content) if marker == _END), len(content))


def _markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers of an image, those between and within its scans too, and where they end."""
    at = 2
    while (found := _MARKER.search(content, at)) is not None:
        yield found[1][0], found.end()
        if found[1][0] == _END:
            return
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])


def is_damaged(content: bytes) -> bool:
    """Return whether the coded samples of a JPEG image are damaged or end early.

    The usual decoder fills what is missing with gray in silence. FFmpeg (the extra "video") decodes the image once more
    and is strict; False where it is not installed, or does not support the process.
    """
    if not any(marker in _HUFFMAN for marker, _ in _markers(content)):
        return False  # arithmetic coding, of which FFmpeg reports what it reports of damage
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
    except av.error.FFmpegError:  # rare kinds of subsampling
        return False
    return False


def compare_length(content: bytes) -> int:
    """Return -1 where the samples of a JPEG image end before its last row, 1 where some are left behind it, else 0.

    Codes are of variable length, so that few kinds of damage leave as many samples as there were. Returns 0 for images
    of several scans, and for processes that Pillow does not read.
    """
    markers = list(_markers(content))
    kinds = [marker for marker, _ in markers]
    if kinds.count(_SCAN) != 1 or kinds[-1] != _END or _TABLES not in kinds or not _SEQUENTIAL & set(kinds):
        return 0
    scan, end = markers[kinds.index(_SCAN)][1], markers[-1][1] - 2
    start = scan + int.from_bytes(content[scan : scan + 2])
    used = len(content[:end].rstrip(b"\xff\0"))  # some cameras fill up to a multiple of some bytes
    try:
        if not _reaches_end(content[:end] + bytes(_AHEAD)):
            return -1
        return int(_reaches_end(content[: max(start, used - _AHEAD)]))
    except (OSError, AttributeError, TypeError):  # no image that Pillow reads, or a Pillow of another inside
        return 0


def _reaches_end(content: bytes) -> bool:
    """Return whether the decoder gets to the last row of an image without a mark at its end, where it waits for more.

    Raises:
        OSError: Pillow does not read it.
    """
    from PIL import Image as PilImage

    with PilImage.open(io.BytesIO(content)) as picture:
        picture.draft(picture.mode, (1, 1))  # an eighth of the size: the codes alone matter
        kind, extents, _, options = picture.tile[0]
        canvas = PilImage.new(picture.mode, picture.size)
        marked = np.random.default_rng(0).integers(0, 256, np.asarray(canvas)[-1:].shape, np.uint8)  # as no image is
        row = PilImage.frombytes(picture.mode, (canvas.width, 1), marked.tobytes())
        canvas.paste(row, (0, canvas.height - 1))
        decoder = PilImage._getdecoder(picture.mode, kind, options, picture.decoderconfig)
    decoder.setimage(canvas.im, extents)
    _, error = decoder.decode(content)
    if error:
        raise OSError(f"error {error} of Pillow's decoder")
    return bool((np.asarray(canvas)[-1:] != marked).any())


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
