"""PNG files: chunks, 16 bits per sample (which Pillow cuts to 8), and the salvage of damaged files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tta_restore._core.streams import muted
from tta_restore.data.io.pixels import Extra, Image

__all__ = [
    "SIGNATURE",
    "Header",
    "add_metadata",
    "chunk",
    "decode_16_bit",
    "encode_16_bit",
    "end_of_image",
    "ends_early",
    "profile_and_exif",
    "read_header",
    "read_metadata",
    "repair",
    "without_metadata",
]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 8 + 4 + 4 + 13 + 4  # signature, then the IHDR chunk: length, type, 13 bytes, checksum
_XMP = "XML:com.adobe.xmp"
_LONGEST_TEXT = 2**20  # bytes of a decompressed text chunk
_LONGEST_PROFILE = 2**24  # bytes of a decompressed color profile
_COLOR = (b"cHRM", b"sRGB", b"mDCV", b"cLLI")
_SIZED = (b"oFFs", b"pCAL", b"sCAL", b"sTER")
#: Chunks that are read elsewhere, that the writer makes anew, or of which animations consist.
_OWN = (
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT",
)  # fmt: skip
_SRGB_CHROMATICITIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_SAFE_TO_COPY = 0x20  # bit of the last letter of a chunk's type
_PIECE = 2**20  # bytes decompressed at a time
# First column and row, and distance of columns and rows, of the passes of interlaced images.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type


@dataclass(frozen=True)
class Header:
    """Size, bits per sample, color type (0 to 6) and interlacing that the header declares."""

    width: int
    height: int
    bit_depth: int
    color_type: int
    is_interlaced: bool


def read_header(content: bytes) -> Header | None:
    """Return what the header of a PNG file declares, None where it is incomplete."""
    if len(content) < 29 or content[12:16] != b"IHDR":
        return None
    width, height, depth, color, _, _, interlace = struct.unpack_from(">IIBBBBB", content, 16)
    return Header(width, height, depth, color, bool(interlace))


def read_metadata(content: bytes) -> dict[str, Any]:
    """Return what the chunks of a PNG file carry, as keywords of :class:`tta_restore.data.io.pixels.Image`."""
    found: dict[str, Any] = {}
    text: list[tuple[str, str]] = []
    extras: list[Extra] = []
    lost: list[str] = []
    for kind, data in _chunks(content):
        try:
            if kind == b"gAMA":
                found["gamma"] = struct.unpack(">I", data)[0] / 100000
            elif kind == b"cICP":
                found["cicp"] = tuple(data[:4])
            elif kind == b"pHYs":
                x, y, unit = struct.unpack(">IIB", data)
                # per meter; TIFF counts per inch (2), or without a unit (1)
                found["resolution"] = (x * 0.0254, y * 0.0254, 2) if unit else (float(x), float(y), 1)
            elif kind in (b"tEXt", b"zTXt", b"iTXt"):
                keyword, value = _read_text(kind, data)
                if keyword == _XMP:
                    found["xmp"] = value.encode()
                else:
                    text.append((keyword, value))
            elif kind in (*_COLOR, *_SIZED):
                is_default = kind == b"sRGB" or (kind == b"cHRM" and data == _SRGB_CHROMATICITIES)
                extras.append(
                    Extra("png", _name(kind), (kind, data), kind in _COLOR, is_default, is_sized=kind in _SIZED)
                )
            elif kind not in _OWN:  # known ones describe samples of the file; unknown ones declare whether they do
                is_kept = kind.isalpha() and kind[0] & kind[3] & _SAFE_TO_COPY and kind != b"sPLT"
                if is_kept:
                    extras.append(Extra("png", _name(kind), (kind, data)))
                else:
                    lost.append(_name(kind))
        except (struct.error, ValueError, IndexError, zlib.error):
            found.setdefault("notes", []).append(f"unreadable {kind.decode('latin-1')} chunk: left out")
    if text:
        found["text"] = tuple(text)
    if extras:
        found["extras"] = tuple(extras)
    if lost:
        found.setdefault("notes", []).append(f"PNG chunks left out: {', '.join(dict.fromkeys(lost[:8]))}")
    return found


def _name(kind: bytes) -> str:
    return kind.decode("latin-1")


def profile_and_exif(content: bytes, notes: list[str] | None = None) -> tuple[bytes | None, bytes | None]:
    """Return the color profile and the EXIF block of a PNG file, None where there is none that can be read.

    Args:
        content: the file.
        notes: receives a line on a profile that is damaged, or too large to be one.
    """
    icc = block = None
    for kind, data in _chunks(content):
        if kind == b"iCCP":
            try:
                icc = _inflate(data.split(b"\0", 1)[1][1:], _LONGEST_PROFILE)
            except (zlib.error, IndexError, ValueError):
                if notes is not None:
                    notes.append("unreadable iCCP chunk: left out")
        elif kind == b"eXIf":
            block = b"Exif\0\0" + data
    return icc, block


def end_of_image(content: bytes) -> int:
    """Return where the last chunk ends."""
    return 8 + sum(12 + len(data) for _, data in _chunks(content))


def ends_early(content: bytes) -> bool:
    """Return whether the compressed samples of a PNG file are fewer than its header declares.

    Decoders leave the missing rows black in silence where the compressed stream itself is whole.
    """
    header = read_header(content)
    if header is None or header.color_type not in _CHANNELS:
        return False
    bits = header.bit_depth * _CHANNELS[header.color_type]
    passes = _PASSES if header.is_interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(header.width - x) // across), -(-(header.height - y) // down)) for x, y, across, down in passes)
    left = sum(height * (1 + (width * bits + 7) // 8) for width, height in sizes if width > 0 and height > 0)
    inflate = zlib.decompressobj()
    for kind, data in _chunks(content):
        while kind == b"IDAT" and data and left > 0 and not inflate.eof:
            left -= len(inflate.decompress(data, _PIECE))
            data = inflate.unconsumed_tail
    return left > 0


def decode_16_bit(content: bytes) -> np.ndarray:
    """Return the samples, uint16. Shape: (H, W) or (H, W, C).

    Raises:
        ImportError: imagecodecs is not installed.
    """
    with muted():  # the library prints a warning for each interlaced file
        return np.asarray(_imagecodecs().png_decode(content))


def encode_16_bit(array: np.ndarray) -> bytes:
    """Return a PNG file of uint16 samples without metadata. Shape: (H, W[, C])."""
    return bytes(_imagecodecs().png_encode(np.ascontiguousarray(array), level=3))


def add_metadata(content: bytes, image: Image) -> bytes:
    """Return a PNG file with the metadata of an image, and its color profile, behind its header."""
    extra = b""
    if image.icc:
        extra += chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(image.icc))
    if image.cicp:
        extra += chunk(b"cICP", bytes(image.cicp))
    if image.gamma:
        extra += chunk(b"gAMA", struct.pack(">I", round(image.gamma * 100000)))
    extra += b"".join(chunk(*entry.value) for entry in image.extras if entry.format == "png")
    if image.resolution is not None:
        x, y, unit = image.resolution
        per_meter = {2: 1 / 0.0254, 3: 100.0}.get(unit, 1.0)
        extra += chunk(b"pHYs", struct.pack(">IIB", round(x * per_meter), round(y * per_meter), int(unit in (2, 3))))
    if image.exif:
        extra += chunk(b"eXIf", image.exif.removeprefix(b"Exif\0\0"))
    if image.xmp:
        extra += chunk(b"iTXt", _XMP.encode() + b"\0\0\0\0\0" + image.xmp)
    for keyword, value in image.text:
        extra += _text_chunk(keyword, value)
    return content[:_HEADER_END] + extra + content[_HEADER_END:]


def without_metadata(content: bytes) -> bytes:
    """Return a PNG file with nothing but its samples, its palette and its transparent color.

    A damaged piece of metadata, for which decoders refuse a file, is no reason to lose the samples.
    """
    kept, at = [SIGNATURE], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        if content[at + 4] < ord("a") or content[at + 4 : at + 8] == b"tRNS":  # a capital: needed for the samples
            kept.append(content[at : at + 12 + length])  # with its checksum, whether it fits or not
        at += 12 + length
    return b"".join(kept)


def repair(content: bytes) -> tuple[bytes, float] | None:
    """Return a readable PNG file of a damaged one, missing rows black, and the fraction of its data that is lost.

    Returns None where nothing can be saved.
    """
    header = read_header(content)
    if header is None or header.color_type not in _CHANNELS:
        return None
    inflate, data, palette = zlib.decompressobj(), b"", b""
    for kind, part in _chunks(content, strict=False):
        if kind in (b"PLTE", b"tRNS"):
            palette += chunk(kind, part)
        if kind != b"IDAT":
            continue
        # In small steps: what comes before the damaged byte is kept.
        for start in range(0, len(part), 256):
            try:
                data += inflate.decompress(part[start : start + 256])
            except zlib.error:
                break
        else:
            continue
        break
    bits = header.bit_depth * _CHANNELS[header.color_type]
    row = (header.width * bits + 7) // 8 + 1
    if header.is_interlaced or not data:
        return None
    total = row * header.height
    data = data[: len(data) // row * row][:total]
    lost = 1 - len(data) / total
    rebuilt = zlib.compress(data + b"\0" * (total - len(data)), 1)
    return content[:_HEADER_END] + palette + chunk(b"IDAT", rebuilt) + chunk(b"IEND", b""), lost


def _chunks(content: bytes, *, strict: bool = True) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and data of each chunk; not strict, the last one may be cut off."""
    at = 8
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        data = content[at + 8 : at + 8 + length]
        kind = content[at + 4 : at + 8]
        if len(data) < length and strict:
            return
        yield kind, data
        if kind == b"IEND":
            return
        at += 12 + length


def _read_text(kind: bytes, data: bytes) -> tuple[str, str]:
    keyword, rest = data.split(b"\0", 1)
    if kind == b"tEXt":
        return keyword.decode("latin-1"), rest.decode("latin-1")
    if kind == b"zTXt":
        return keyword.decode("latin-1"), _inflate(rest[1:]).decode("latin-1")
    compressed = rest[0]
    _, _, value = rest[2:].split(b"\0", 2)  # language, translated keyword
    return keyword.decode("latin-1"), (_inflate(value) if compressed else value).decode()


def _inflate(data: bytes, longest: int = _LONGEST_TEXT) -> bytes:
    inflate = zlib.decompressobj()
    value = inflate.decompress(data, longest)
    if inflate.unconsumed_tail:
        raise ValueError(f"more than {longest} bytes")
    return value


def _text_chunk(keyword: str, value: str) -> bytes:
    name = keyword.encode("latin-1", "replace")[:79] or b"Comment"
    try:
        return chunk(b"tEXt", name + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return chunk(b"iTXt", name + b"\0\0\0\0\0" + value.encode())


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _imagecodecs() -> Any:
    import imagecodecs

    return imagecodecs
