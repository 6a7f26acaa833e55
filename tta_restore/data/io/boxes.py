"""Boxes of the ISO base media format as images use them: AVIF, HEIC, JPEG 2000 and JPEG XL."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

__all__ = [
    "add_avif_metadata",
    "add_jpeg_xl_metadata",
    "avif_depth",
    "color_numbers",
    "declared_size",
    "further_boxes",
    "ignored_shapes",
    "jpeg_2000_metadata",
    "jpeg_2000_size",
    "jpeg_xl_code_stream",
    "jpeg_xl_metadata",
    "with_color_numbers",
]

_CONTAINERS = {
    b"meta": 4,
    b"iprp": 0,
    b"ipco": 0,
    b"jp2h": 0,
    b"res ": 0,
}  # boxes in boxes, and the bytes before the first inner one
#: How comments of JPEG 2000 begin that encoders write about themselves.
_OF_ENCODERS = (b"Created by OpenJPEG", b"Kakadu-", b"Kdu-Layer-Info")
_UUID_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_UUID_EXIF = b"JpgTiffExif->JP2"
_SRGB_PRIMARIES, _SRGB_CURVES = (1, 2), (1, 2, 6, 13, 14, 15)  # 2: not declared
_OF_IMAGES = (b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"wide", b"idat")
_LARGEST_METADATA = 2**24  # bytes
_CODE_STREAM_HEAD = 256  # bytes in which the header of a code stream lies


def avif_depth(content: bytes) -> int:
    """Return the bits per sample of an AVIF file by the configuration of its first image."""
    for kind, data in _walk(content):
        if kind == b"av1C" and len(data) > 2:
            return {0: 8, 0x40: 10, 0x60: 12}.get(data[2] & 0x60, 8)
    return 8


def color_numbers(content: bytes) -> tuple[int, int, int, int] | None:
    """Return primaries and transfer curve of an AVIF or HEIC file that has no profile, as numbers of RGB samples.

    Returns None for those of sRGB and of Rec. 709, which are taken for sRGB everywhere, and where none are declared.
    """
    entries = [data for kind, data in _walk(content) if kind == b"colr"]
    found = next((data for data in entries if data[:4] == b"nclx" and len(data) >= 8), None)
    if found is None or any(data[:4] in (b"prof", b"rICC") for data in entries):
        return None
    primaries, curve = struct.unpack_from(">HH", found, 4)
    if primaries > 255 or curve > 255 or (primaries in _SRGB_PRIMARIES and curve in _SRGB_CURVES):
        return None
    return primaries, curve, 0, 1  # the samples are decoded: RGB in their full range


def further_boxes(content: bytes) -> list[str]:
    """Return a note on the boxes of an AVIF or HEIC file that are not of its images, such as the video of a photo."""
    kinds = dict.fromkeys(kind.decode("latin-1") for kind, _ in _boxes(content) if kind not in _OF_IMAGES)
    names = [f"{kind} (a video, as of a motion photo)" if kind == "mpvd" else kind for kind in kinds if kind.isalnum()]
    return [f"boxes left out: {', '.join(names[:8])}"] if names else []


def ignored_shapes(content: bytes) -> list[str]:
    """Return notes on the crop and the shape of pixels that an AVIF file declares, which its decoders ignore."""
    found = dict(_walk(content))
    notes = ["crop (clap) left out: the whole image is restored"] if b"clap" in found else []
    pixel = found.get(b"pasp", b"")
    if len(pixel) >= 8 and pixel[:4] != pixel[4:8]:
        notes.append("pixel aspect ratio (pasp) left out")
    return notes


def with_color_numbers(content: bytes, numbers: tuple[int, int, int, int]) -> bytes:
    """Return an AVIF file that declares other primaries and another transfer curve for its samples."""
    at = content.index(b"colrnclx") + 8
    return content[:at] + struct.pack(">HH", *numbers[:2]) + content[at + 4 :]


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


def jpeg_2000_metadata(content: bytes) -> dict[str, Any]:
    """Return color profile, EXIF, XMP, resolution and comments of a JPEG 2000 file, and notes on its other boxes."""
    found: dict[str, Any] = {}
    lost: dict[str, None] = {}
    for is_text, comment in _jpeg_2000_comments(content):
        if is_text:
            found["text"] = (*found.get("text", ()), ("Comment", comment.decode("latin-1")))
        else:
            found["notes"] = ["JPEG 2000 comment that is no text: left out"]
    if content[4:8] != b"jP  ":
        return found
    for kind, data in _walk(content):
        if kind == b"colr" and data[:1] in (b"\x02", b"\x03"):
            found["icc"] = data[3:]
        elif kind == b"uuid" and data[:16] == _UUID_XMP:
            found["xmp"] = data[16:]
        elif kind == b"uuid" and data[:16] == _UUID_EXIF:
            found["exif"] = b"Exif\0\0" + data[16:]
        elif kind in (b"resc", b"resd") and len(data) >= 10:  # as scanned, as displayed; per meter
            rows, row_base, columns, column_base, row_power, column_power = struct.unpack_from(">4H2b", data)
            if row_base and column_base:
                per_inch = (columns / column_base * 10**column_power, rows / row_base * 10**row_power)
                found["resolution"] = (per_inch[0] * 0.0254, per_inch[1] * 0.0254, 2)
        elif kind in (b"uuid", b"xml ", b"asoc", b"jp2i", b"uinf"):
            lost[kind.decode().strip()] = None
    if lost:
        found.setdefault("notes", []).append(f"JPEG 2000 boxes left out: {', '.join(lost)}")
    return found


def _jpeg_2000_comments(content: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yield the users' comments in the main header of a code stream, and whether they are text in Latin-1."""
    at = content.find(b"\xff\x4f\xff\x51") + 2
    while at > 1 and at + 6 <= len(content) and content[at : at + 2] != b"\xff\x90":  # where tiles begin
        marker, length, kind = struct.unpack_from(">HHH", content, at)
        comment = content[at + 6 : at + 2 + length]
        if marker == 0xFF64 and not comment.startswith(_OF_ENCODERS):
            yield kind == 1, comment
        at += 2 + max(length, 2)


def jpeg_xl_code_stream(content: bytes) -> bytes:
    """Return the start of the code stream of a JPEG XL file, empty where there is none."""
    if content[:2] == b"\xff\x0a":
        return content[:_CODE_STREAM_HEAD]
    for kind, data in _boxes(content):
        if kind in (b"jxlc", b"jxlp"):  # a part begins with its number
            return data[4 if kind == b"jxlp" else 0 :][:_CODE_STREAM_HEAD]
    return b""


def jpeg_xl_metadata(content: bytes) -> dict[str, Any]:
    """Return EXIF and XMP of a JPEG XL file, and notes on its other boxes."""
    found: dict[str, Any] = {}
    lost: dict[str, None] = {}
    for kind, data in _boxes(content):
        if kind == b"brob":
            import imagecodecs

            kind = data[:4]
            try:
                data = bytes(imagecodecs.brotli_decode(data[4:], out=_LARGEST_METADATA))
            except Exception:  # damaged, or larger than that
                lost[kind.decode("latin-1").strip()] = None
                continue
        if kind == b"Exif":
            found["exif"] = b"Exif\0\0" + data[4:]
        elif kind == b"xml ":
            found["xmp"] = data
        elif kind in (b"jumb", b"jhgm"):
            lost["JUMBF, such as content credentials" if kind == b"jumb" else "gain map"] = None
    if lost:
        found["notes"] = [f"JPEG XL boxes left out: {', '.join(lost)}"]
    return found


def add_avif_metadata(content: bytes, *, exif: bytes | None, xmp: bytes | None) -> bytes:
    """Return an AVIF file with EXIF and XMP as items that describe its main image.

    Raises:
        ValueError: the file has no list of items in the form that libavif writes.
    """
    added = [(b"Exif", b"\0", bytes(4) + exif.removeprefix(b"Exif\0\0"))] if exif else []
    added += [(b"mime", b"\0application/rdf+xml\0", xmp)] if xmp else []
    if not added:
        return content
    top = list(_boxes(content))
    meta = next((data for kind, data in top if kind == b"meta"), None)
    inner = [] if meta is None else list(_boxes(meta[4:]))
    known = dict(inner)
    if meta is None or not {b"pitm", b"iloc", b"iinf"} <= known.keys() or known[b"iloc"][:6] != _ILOC:
        raise ValueError("an AVIF file without a list of items")
    items = list(_locations(known[b"iloc"]))
    primary = known[b"pitm"][-2:]
    numbers = [max(item for item, _ in items) + 1 + i for i in range(len(added))]
    entries = b"".join(
        _box(b"infe", struct.pack(">IHH", 2 << 24, number, 0) + kind + name)
        for number, (kind, name, _) in zip(numbers, added, strict=True)
    )
    count = len(items) + len(added)
    references = b"".join(_box(b"cdsc", struct.pack(">HH", number, 1) + primary) for number in numbers)
    if b"iref" not in known:
        inner.append((b"iref", bytes(4)))

    def rebuilt(shift: int, end: int) -> bytes:
        """Return the box of all items, for data that moved by ``shift`` bytes and new data from byte ``end`` on."""
        located = [(item, [(at + shift, size) for at, size in extents]) for item, extents in items]
        for number, (_, _, data) in zip(numbers, added, strict=True):
            located.append((number, [(end, len(data))]))
            end += len(data)
        new = {
            b"iloc": _ILOC + struct.pack(">H", count) + b"".join(_location(*entry) for entry in located),
            b"iinf": known[b"iinf"][:4] + struct.pack(">H", count) + known[b"iinf"][6:] + entries,
            b"iref": known.get(b"iref", bytes(4)) + references,
        }
        return _box(b"meta", meta[:4] + b"".join(_box(kind, new.get(kind, data)) for kind, data in inner))

    shift = len(rebuilt(0, 0)) - len(_box(b"meta", meta))
    start = len(content) + shift + 8
    written = b"".join(rebuilt(shift, start) if kind == b"meta" else _box(kind, data) for kind, data in top)
    return written + _box(b"mdat", b"".join(data for _, _, data in added))


_ILOC = bytes([0, 0, 0, 0, 0x44, 0])  # version 0; 4 bytes for offset and length of an extent, no base offset


def _locations(data: bytes) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield the number of each item, and offset and length of its parts."""
    (count,) = struct.unpack_from(">H", data, 6)
    at = 8
    for _ in range(count):
        item, _, parts = struct.unpack_from(">HHH", data, at)
        at += 6
        yield item, [struct.unpack_from(">II", data, at + 8 * i) for i in range(parts)]  # type: ignore[misc]
        at += 8 * parts


def _location(item: int, extents: list[tuple[int, int]]) -> bytes:
    return struct.pack(">HHH", item, 0, len(extents)) + b"".join(struct.pack(">II", *extent) for extent in extents)


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
