"""EXIF blocks: the camera's metadata, carried from file to file with the pixels."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

__all__ = [
    "DESCRIBING",
    "NESTED",
    "SAMPLE_TAGS",
    "embed_tiff_exif",
    "read_resolution",
    "read_tiff_exif",
    "reset_orientation",
    "upright_xmp",
]

_ORIENTATION = 0x0112
#: Directories of exposure settings and position.
NESTED = (0x8769, 0x8825)
#: Description, maker, model, software, time, artist, copyright: what a block takes of the tags of a TIFF file.
DESCRIBING = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
#: Tags of a TIFF file that describe the samples and how they are stored, which are written anew.
SAMPLE_TAGS = frozenset(
    (*range(254, 260), 262, *range(263, 267), 273, 274, *range(277, 285), *range(288, 294), 296, 317, 320, 321, 322,
     323, 324, 325, 330, *range(332, 342), 347, *range(512, 522), 529, 530, 531, 532, 559)
)  # fmt: skip
_PREFIX = b"Exif\0\0"  # of blocks in JPEG files
_POINTERS = (*NESTED, 0xA005)  # tags of which the value is the place of a directory
_MAKER_NOTE = 0x927C
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of a value by type
_UNITS = {3: 2, 8: 2, 4: 4, 5: 4, 9: 4, 10: 4, 11: 4, 13: 4, 12: 8}  # bytes in a number by type
_WHOLE = {3: "H", 4: "I"}  # types of unsigned numbers
_ENDIAN: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
#: How maker notes begin whose places count from the start of the block; Canon's begin with the directory.
_NAMES_OF_MAKERS = (
    b"Panasonic\0\0\0", b"SONY DSC \0\0\0", b"SONY CAM \0\0\0", b"SONY MOBILE\0", b"OLYMP\0\1\0", b"OLYMP\0\2\0",
    b"SIGMA\0\0\0\1\0", b"FOVEON\0\0\1\0", b"Nikon\0\1\0", b"EPSON\0\1\0", b"AGFA \0\1\0",
    b"AOC\0II", b"AOC\0MM", b"AOC\0  ",
)  # fmt: skip
_MOST_IN_NOTE = 512  # entries; more are no directory
_DENSEST = 1e6  # dots per unit
_RESOLUTION = (0x011A, 0x011B, 0x0128)
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8](?=\s*[\"'<])")


def reset_orientation(block: bytes | None, notes: list[str]) -> tuple[bytes | None, int]:
    """Return the block with its orientation set to upright, and the orientation that it had, 1 to 8.

    All other bytes but those of the preview stay where they are, for maker notes count from the start of the block. A
    block that cannot be read is left out, with a line in `notes`.
    """
    if not block:
        return None, 1
    data, orientation = bytearray(block), 1
    while data.startswith(_PREFIX):
        del data[: len(_PREFIX)]
    try:
        order, first = _read_header(data)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        if count == 0 or not _read_directory(data, first, order):
            raise ValueError("no entries")
        for place in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, place)
            if tag == _ORIENTATION and kind in _WHOLE:
                found = struct.unpack_from(order + _WHOLE[kind], data, place + 8)[0]
                orientation = found if found in range(1, 9) else 1
                struct.pack_into(order + _WHOLE[kind], data, place + 8, 1)
        _drop_preview(data, first + 2 + 12 * count, order)
        return _PREFIX + bytes(data), orientation
    except (struct.error, ValueError):  # no reason to refuse the image
        notes.append("unreadable EXIF block: left out")
        return None, 1


def _drop_preview(data: bytearray, link: int, order: str) -> None:
    """Remove the preview of the old samples: the link to its directory, and its bytes where they are the last ones."""
    if link + 4 > len(data):
        return
    (second,) = struct.unpack_from(f"{order}I", data, link)
    struct.pack_into(f"{order}I", data, link, 0)
    if not second:
        return
    preview = _read_directory(data, second, order)
    if (0x0201 in preview) and (0x0202 in preview):
        start = int.from_bytes(preview[0x0201].value, _ENDIAN[order])
        if link < start < start + int.from_bytes(preview[0x0202].value, _ENDIAN[order]) == len(data):
            del data[start:]


def upright_xmp(packet: bytes | None) -> bytes | None:
    """Return an XMP packet with its copy of the orientation set to upright, its length unchanged."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet) if packet else None


def read_resolution(block: bytes | None) -> tuple[float, float, int] | None:
    """Return dots per unit in x and y and the unit (2 inch, 3 centimeter) of a block, None where it has none."""
    from PIL import Image as PilImage

    exif = PilImage.Exif()
    try:
        exif.load(block or b"")
        x, y, unit = float(exif[_RESOLUTION[0]]), float(exif[_RESOLUTION[1]]), int(exif.get(_RESOLUTION[2], 2))
    except Exception:  # none, or an unreadable block
        return None
    return (x, y, unit) if unit in (2, 3) and 0 < x < _DENSEST and 0 < y < _DENSEST else None


def read_tiff_exif(file: BinaryIO, notes: list[str]) -> bytes | None:
    """Return the EXIF block of a TIFF file's camera and position tags, None where it has none."""
    file.seek(0)
    if file.read(4)[2:4] not in (b"*\0", b"\0*"):
        return None  # BigTIFF
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            order, first = _read_header(content)
            found = _read_directory(content, first, order, only=(*DESCRIBING, *NESTED))
        if not any(tag in DESCRIBING or entry.inner for tag, entry in found.items()):
            return None
        blob, start = _place(found, 8, order, order)
        mark = b"II*\0" if order == "<" else b"MM\0*"
        return _PREFIX + mark + struct.pack(f"{order}I", start) + blob
    except (struct.error, ValueError, OSError):  # no reason to refuse the image
        notes.append("unreadable EXIF block: left out")
        return None


def embed_tiff_exif(content: bytes, block: bytes) -> bytes:
    """Return a classic TIFF file of one page with the tags of a block added: its directory is appended anew."""
    data = block.removeprefix(_PREFIX)
    source, start = _read_header(data)
    order, first = _read_header(content)
    (count,) = struct.unpack_from(f"{order}H", content, first)
    places = range(first + 2, first + 2 + 12 * count, 12)
    own = {struct.unpack_from(f"{order}H", content, place)[0]: content[place : place + 12] for place in places}
    # the file's own tags win
    added = {t: e for t, e in _read_directory(data, start, source).items() if t not in SAMPLE_TAGS and t not in own}
    content += b"\0" * (len(content) % 2)
    blob, directory = _place(added, len(content), source, order, own)
    return content[:4] + struct.pack(f"{order}I", directory) + content[8:] + blob


@dataclass(frozen=True)
class _Entry:
    """An entry of a directory: type, number of values, their bytes, where they lie, and the directory it points to."""

    kind: int
    count: int
    value: bytes
    at: int
    inner: dict[int, _Entry] | None = None


def _read_header(data: Any) -> tuple[str, int]:
    """Return the byte order of a block, as `struct` writes it, and the place of its first directory.

    Raises:
        ValueError: it is no block.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(data[:4]))
    if order is None or len(data) < 8:
        raise ValueError("no TIFF header")
    return order, struct.unpack_from(f"{order}I", data, 4)[0]


def _read_directory(
    data: Any, at: int, order: str, *, only: tuple[int, ...] | None = None, depth: int = 0
) -> dict[int, _Entry]:
    """Return the entries of a directory that can be read, by tag, with those of the directories it points to."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    entries: dict[int, _Entry] = {}
    for place in range(at + 2, min(at + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, place)
        size = _SIZES.get(kind, 0) * number
        if size == 0 or tag in entries or (only is not None and tag not in only):
            continue
        start = place + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, place + 8)[0]
        value = bytes(data[start : start + size])
        if len(value) < size:
            continue
        inner = None
        if tag in _POINTERS:
            (target,) = struct.unpack_from(f"{order}I", data, place + 8)
            if depth < 2 and target + 2 <= len(data):
                inner = _read_directory(data, target, order, depth=depth + 1)
            if not inner:
                continue
        entries[tag] = _Entry(kind, number, value, start, inner)
    return entries


def _place(
    entries: dict[int, _Entry], at: int, source: str, order: str, own: dict[int, bytes] | None = None
) -> tuple[bytes, int]:
    """Return a directory with everything that it points to as the bytes from `at` on, and where it lies itself.

    Args:
        entries: its entries.
        at: where its bytes are going to lie.
        source: byte order of the entries' values.
        order: byte order of the result.
        own: further entries of 12 bytes, whose values are in the file already.
    """
    blob, rows = b"", dict(own or {})
    for tag, entry in entries.items():
        value, count, kind = entry.value, entry.count, entry.kind
        if entry.inner is not None:
            inner, start = _place(entry.inner, at + len(blob), source, order)
            blob, value, count, kind = blob + inner, struct.pack(f"{order}I", start), 1, 4
        elif tag == _MAKER_NOTE:
            value = _moved_note(value, entry.at, at + len(blob), source)
        elif source != order and (unit := _UNITS.get(kind, 1)) > 1:
            value = b"".join(value[i : i + unit][::-1] for i in range(0, len(value), unit))
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack(f"{order}I", at + len(blob))
            blob += value + b"\0" * (len(value) % 2)
        rows[tag] = struct.pack(f"{order}HHI", tag, kind, count) + field
    directory = struct.pack(f"{order}H", len(rows)) + b"".join(rows[tag] for tag in sorted(rows)) + bytes(4)
    return blob + directory, at + len(blob)


def _moved_note(note: bytes, old: int, new: int, order: str) -> bytes:
    """Return a maker note with the places of its values shifted, where they count from the start of the block.

    Such notes are a directory behind the name of the maker, or without one. Others count from their own start.
    """
    start = next((len(name) for name in _NAMES_OF_MAKERS if note.startswith(name)), 0)
    for own in (order, "<" if order == ">" else ">"):
        count = int.from_bytes(note[start : start + 2], _ENDIAN[own])
        end = start + 2 + 12 * count
        if not 0 < count < _MOST_IN_NOTE or end > len(note):
            continue
        moved, is_valid = bytearray(note), True
        for place in range(start + 2, end, 12):
            _, kind, number, target = struct.unpack_from(f"{own}HHII", note, place)
            is_valid &= kind in _SIZES
            size = _SIZES.get(kind, 0) * number
            if size > 4 and old <= target and target + size <= old + len(note):
                struct.pack_into(f"{own}I", moved, place + 8, target - old + new)
        if not is_valid:
            continue
        if note[-8:-4] in (b"II*\0", b"MM\0*") and int.from_bytes(note[-4:], _ENDIAN[own]) == old:  # Canon
            struct.pack_into(f"{own}I", moved, len(note) - 4, new)
        return bytes(moved)
    return note
