"""Netpbm files with all their bits: PBM, PGM, PPM, PAM and PFM, plain and raw."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

from tta_restore.data.io.pixels import Image, ImageError, tensor_from_array

__all__ = ["decode_netpbm", "read_netpbm_size"]

_ANOTHER = re.compile(rb"\s*P[1-7fF]\s")  # the start of an image that follows
_CHANNELS = {"1": 1, "2": 1, "3": 3, "4": 1, "5": 1, "6": 3, "f": 1, "F": 3}


@dataclass(frozen=True)
class _Header:
    """Header of a Netpbm file; ``largest`` is the largest sample, or the scale of a PFM file."""

    kind: str
    width: int
    height: int
    channels: int
    largest: float
    comments: tuple[str, ...]
    length: int


def read_netpbm_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height that a header declares, None where it is incomplete."""
    try:
        header = _read_header(content)
    except ImageError:
        return None
    return header.width, header.height


def decode_netpbm(content: bytes) -> Image:
    """Read a Netpbm file; samples of PFM are linear light, with rows from bottom to top.

    Raises:
        ImageError: truncated, or of other samples than gray or RGB with or without alpha.
    """
    header = _read_header(content)
    shape = (header.height, header.width, header.channels)
    count = header.height * header.width * header.channels
    text = tuple(("Comment", comment) for comment in header.comments)
    notes = []
    if header.kind not in "123" and _ANOTHER.match(content, header.length + _data_size(header)):
        notes.append("PNM of several images: the first one is read, the others are left out")
    if header.kind in "fF":
        order = "<f4" if header.largest < 0 else ">f4"
        array = _raw(content, header, np.dtype(order), count).reshape(shape)[::-1].astype(np.float32)
        pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        return Image(pixels=pixels, bit_depth=32, is_linear=True, text=text, notes=tuple(notes))
    levels = int(header.largest)
    if header.kind in "14":
        notes.append("1-bit image: read as 8-bit gray")
    if header.kind in "123":
        array = _plain(content, header, count)
    elif header.kind == "4":
        packed = _raw(content, header, np.dtype(np.uint8), _data_size(header)).reshape(header.height, -1)
        array = np.unpackbits(packed, axis=1)[:, : header.width]
    else:
        array = _raw(content, header, np.dtype(np.uint8 if levels < 256 else ">u2"), count)
    array = array.reshape(shape).astype(np.uint8 if levels < 256 else np.uint16)
    if int(array.max()) > levels:
        raise ImageError(f"damaged PNM: a sample of {int(array.max())}, and {levels} is the largest it declares")
    if header.kind in "14":  # 1 is black
        array = 1 - array
    values = tensor_from_array(array, levels=levels)
    colors = 1 if header.channels < 3 else 3
    return Image(
        pixels=values[:colors],
        alpha=values[colors:] if header.channels > colors else None,
        bit_depth=8 if levels < 256 else 16,
        text=text,
        notes=tuple(notes),
    )


def _read_header(content: bytes) -> _Header:
    incomplete = ImageError("truncated or damaged PNM: its header is incomplete")
    kind = content[1:2].decode("latin-1")
    if kind == "7":
        return _read_pam_header(content)
    if kind not in _CHANNELS or len(content) < 3:
        raise incomplete
    needed = 2 if kind in "14" else 3
    words: list[bytes] = []
    comments: list[str] = []
    at = 2
    for found in re.compile(rb"\s+|#([^\r\n]*)[\r\n]?|[^\s#]+").finditer(content, 2, 2**16):
        text = found[0]
        if text[:1] == b"#":
            comments.append(found[1].decode("utf-8", "replace").strip())
        elif not text.isspace():
            words.append(text)
        at = found.end()
        if len(words) == needed:
            break
    if len(words) < needed or at >= len(content):
        raise incomplete
    try:
        width, height = int(words[0]), int(words[1])
        largest = float(words[2]) if needed == 3 else 1.0
    except ValueError:
        raise incomplete from None
    is_float = kind in "fF"
    if width < 1 or height < 1 or not (largest if is_float else 1 <= largest <= 65535):
        raise ImageError(f"damaged PNM: declares {width} x {height} pixels with samples up to {largest:g}")
    # One blank separates header and samples; plain samples are words themselves.
    return _Header(kind, width, height, _CHANNELS[kind], largest, tuple(filter(None, comments)), at + 1)


def _read_pam_header(content: bytes) -> _Header:
    head, separator, _ = content[: 2**16].partition(b"ENDHDR\n")
    fields = dict(line.split(None, 1) for line in head.split(b"\n")[1:] if line[:1] != b"#" and b" " in line)
    comments = [line[1:].decode("utf-8", "replace").strip() for line in head.split(b"\n") if line[:1] == b"#"]
    names = (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
    if not separator or not all(fields.get(name, b"").strip().isdigit() for name in names):
        raise ImageError("truncated or damaged PNM: its header is incomplete")
    width, height, depth, largest = (int(fields[name]) for name in names)
    if not 1 <= depth <= 4 or width < 1 or height < 1 or not 1 <= largest <= 65535:
        raise ImageError(f"PAM of {width} x {height} pixels with {depth} samples up to {largest}: expected gray or RGB")
    return _Header("7", width, height, depth, largest, tuple(comments), len(head) + len(separator))


def _data_size(header: _Header) -> int:
    """Return the number of bytes of raw samples."""
    if header.kind == "4":
        return -(-header.width // 8) * header.height
    size = 4 if header.kind in "fF" else 1 if header.largest < 256 else 2
    return size * header.width * header.height * header.channels


def _raw(content: bytes, header: _Header, dtype: np.dtype, count: int) -> np.ndarray:
    if len(content) < header.length + count * dtype.itemsize:
        raise ImageError("truncated PNM: the pixel data ends early")
    return np.frombuffer(content, dtype, count, header.length)


def _plain(content: bytes, header: _Header, count: int) -> np.ndarray:
    body = re.sub(rb"#[^\r\n]*", b"", content[header.length - 1 :])
    if header.kind == "1":  # digits need no blank between them
        body = b" ".join(re.findall(rb"[01]", body))
    try:
        array = np.array(body.split(None, count)[:count], np.int64)
    except ValueError:
        raise ImageError("damaged PNM: a sample that is no number") from None
    if len(array) < count:
        raise ImageError("truncated PNM: the pixel data ends early")
    if int(array.min(initial=0)) < 0:
        raise ImageError("damaged PNM: a negative sample")
    return array
