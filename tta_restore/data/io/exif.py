"""EXIF blocks: the camera's metadata, carried from file to file with the pixels."""

from __future__ import annotations

import struct
from typing import BinaryIO

__all__ = ["DESCRIBING", "NESTED", "embed_tiff_exif", "read_tiff_exif", "reset_orientation"]

_ORIENTATION = 0x0112
#: Directories of exposure settings and position.
NESTED = (0x8769, 0x8825)
#: Description, maker, model, software, time, artist, copyright; the other tags of a TIFF describe its own pixels.
DESCRIBING = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)


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
    for tag in DESCRIBING:
        if tag in exif:
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
