"""Width and height that image files declare in their headers."""

from __future__ import annotations

import struct

from tta_restore.data.io import boxes, exr, jpeg, jxl, netpbm, png
from tta_restore.data.io.formats import FileFormat

__all__ = ["declared_size"]


def declared_size(content: bytes, found: FileFormat) -> tuple[int, int] | None:
    """Return the width and height that an image declares, before its pixels take memory.

    Args:
        content: the file, or its beginning.
        found: its format.

    Returns:
        Width and height; None where these bytes do not hold them, or Pillow reads them before it allocates.
    """
    if found.name == "PNG":
        header = png.read_header(content)
        return (header.width, header.height) if header else None
    if found.name == "JPEG":
        size = jpeg.read_size(content)
        return size[:2] if size else None
    if found.name == "Radiance HDR":
        return exr.read_radiance_size(content)
    if found.name == "PNM":
        return netpbm.read_netpbm_size(content)
    if found.name in ("AVIF", "HEIC"):
        return boxes.declared_size(content)
    if found.name == "JPEG 2000":
        return boxes.jpeg_2000_size(content)[:2]
    if found.name == "JPEG XL":
        header = jxl.read_code_stream(boxes.jpeg_xl_code_stream(content))
        return (header.width, header.height) if header else None
    if found.name == "WebP":
        return _webp_size(content)
    if found.name == "GIF":
        width, height = struct.unpack_from("<HH", content, 6) if len(content) >= 10 else (0, 0)
        return width, height
    return None


def _webp_size(content: bytes) -> tuple[int, int] | None:
    kind, data = content[12:16], content[20:30]
    if len(data) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None
