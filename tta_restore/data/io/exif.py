"""EXIF blocks: the camera's metadata, carried from file to file with the pixels."""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

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
_DENSEST = 1e6  # dots per unit
_RESOLUTION = (0x011A, 0x011B, 0x0128)
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8](?=\s*[\"'<])")


def reset_orientation(block: bytes | None, notes: list[str]) -> tuple[bytes | None, int]:
    """Return the block with its orientation set to upright, and the orientation that it had, 1 to 8.

    A block that cannot be read is left out, with a line in `notes`.
    """
    from PIL import Image as PilImage

    if not block:
        return None, 1
    try:
        exif = PilImage.Exif()
        exif.load(block)
        if not exif:
            raise ValueError("no entries")
        orientation = exif.get(_ORIENTATION, 1)
        if orientation not in range(1, 9):
            orientation = 1
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        return exif.tobytes(), orientation
    except Exception:  # no reason to refuse the image
        notes.append("unreadable EXIF block: left out")
        return None, 1


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
    from PIL import Image as PilImage

    file.seek(0)
    if file.read(4)[2:4] not in (b"*\0", b"\0*"):
        return None  # BigTIFF, which Pillow reads as images only
    try:
        file.seek(0)
        found, block = PilImage.Exif(), PilImage.Exif()
        found.load_from_fp(file)
        for tag in DESCRIBING:
            if tag in found:
                block[tag] = found[tag]
        for tag in NESTED:
            if tag in found and (entries := found.get_ifd(tag)):
                block.get_ifd(tag).update(entries)
                block[tag] = entries
        return block.tobytes() if block else None
    except Exception:  # no reason to refuse the image
        notes.append("unreadable EXIF block: left out")
        return None


def embed_tiff_exif(content: bytes, block: bytes) -> bytes:
    """Return a classic TIFF file of one page with the tags of a block added: its directory is appended anew."""
    from PIL import Image as PilImage
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    exif = PilImage.Exif()
    exif.load(block)
    added = ImageFileDirectory_v2(ifh=content[:8])
    for tag in exif:
        if tag not in SAMPLE_TAGS and tag not in NESTED:
            added[tag] = exif[tag]
    for tag in NESTED:
        if entries := exif.get_ifd(tag):
            added[tag] = entries
    order = "<" if content[:2] == b"II" else ">"
    content += b"\0" * (len(content) % 2)
    values = added.tobytes(len(content))  # a directory whose entries point behind `content`
    values += b"\0" * (len(values) % 2)
    (first,) = struct.unpack_from(f"{order}I", content, 4)
    entries: dict[int, bytes] = {}
    for directory, start in ((values, 0), (content, first)):  # the file's own tags win
        (count,) = struct.unpack_from(f"{order}H", directory, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            entries[struct.unpack_from(f"{order}H", directory, place)[0]] = directory[place : place + 12]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return content[:4] + struct.pack(f"{order}I", len(content) + len(values)) + content[8:] + values + directory
