"""PNG with 16 bits per sample, which Pillow would silently cut to 8: pixels by imagecodecs, metadata by chunk."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 8 + 4 + 4 + 13 + 4  # signature, then the IHDR chunk: length, type, 13 bytes, checksum


def bit_depth(content: bytes) -> int:
    """Bits per sample that the header of a PNG file declares."""
    return content[24] if len(content) > 24 else 0


def decode(content: bytes) -> np.ndarray:
    """The samples, uint16. Shape: (H, W) or (H, W, C).

    Raises:
        ImportError: imagecodecs is not installed.
    """
    return np.asarray(_imagecodecs().png_decode(content))


def encode(array: np.ndarray, *, icc: bytes | None, exif: bytes | None) -> bytes:
    """A PNG file from uint16 samples, with the color profile (iCCP) and the EXIF block (eXIf). Shape: (H, W[, C])."""
    content = bytes(_imagecodecs().png_encode(np.ascontiguousarray(array), level=3))
    extra = b""
    if icc:
        extra += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        extra += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return content[:_HEADER_END] + extra + content[_HEADER_END:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _imagecodecs() -> Any:
    import imagecodecs

    return imagecodecs
