"""Images of high dynamic range in linear light: OpenEXR, and Radiance HDR for reading."""

from __future__ import annotations

import importlib
import io
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tta_restore._core.streams import muted
from tta_restore.data.io.atomic import is_text
from tta_restore.data.io.pixels import Extra, Image, ImageError, too_large

__all__ = ["decode_radiance", "encode_exr", "read_exr", "read_radiance_size"]

_LARGEST_HALF = 65504
_RADIANCE_HEAD = 4096  # bytes in which the header of a Radiance HDR file ends
_RADIANCE_SIZE = re.compile(rb"\n([-+][XY])[ \t]+(\d+)[ \t]+([-+][XY])[ \t]+(\d+)[ \t]*\r?\n")
_TILED, _DEEP, _PARTS = 0x200, 0x800, 0x1000
#: Attributes that describe the samples and their layout, which are written anew.
_STRUCTURE = (
    "channels", "compression", "lineOrder", "type", "version", "chunkCount", "tiles", "name", "dwaCompressionLevel",
)  # fmt: skip
_WINDOWS = ("dataWindow", "displayWindow")
_REC_709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)
_ROWS_PER_CHUNK = {0: 1, 1: 1, 2: 1, 3: 16, 4: 32, 5: 16, 6: 32, 7: 32, 8: 32, 9: 256}  # by compression


def read_exr(path: Path, content: bytes, *, max_pixels: int) -> Image:
    """Read the first part of an OpenEXR file that has the channels R, G, B or Y, and A.

    Raises:
        ImageError: it is truncated, has other channels, or is too large.
        ImportError: OpenEXR is not installed.
    """
    notes: list[str] = []
    parts = _read_structure(content, max_pixels)
    index = _main_part(parts, notes)
    size = parts[index].size
    openexr = importlib.import_module("OpenEXR")
    source = str(path) if is_text(path) else io.BytesIO(content)
    with muted(), openexr.File(source, separate_channels=True) as file:
        if len(file.parts) != len(parts):
            raise ImageError("truncated or damaged EXR")  # the library leaves out parts that it cannot decode
        channels = {name: channel.pixels for name, channel in file.channels(index).items()}
        extras = _attributes(file.header(index), notes)
    by_name = {name.upper(): name for name in channels}
    names = ("R", "G", "B") if "R" in by_name else ("Y",)
    if missing := [name for name in names if name not in by_name]:
        raise ImageError(
            f"EXR with the channels {', '.join(sorted(channels))}: expected R, G, B or Y, missing {missing[0]}"
        )
    planes = [np.asarray(channels[by_name[name]]) for name in names]
    used = {*names, "A"} if "A" in by_name else {*names}
    if rest := sorted(set(by_name) - used):
        notes.append(f"EXR channels left out: {', '.join(rest[:6])}")
    if any(plane is None or plane.shape[:2] != size for plane in planes):
        raise ImageError("EXR with subsampled or damaged channels")
    alpha = np.array(channels[by_name["A"]], np.float32) if "A" in by_name else None
    if alpha is not None and (outside := float(((alpha < 0) | (alpha > 1)).mean())):
        notes.append(f"{outside:.2%} of the alpha samples lie outside [0, 1]: clipped")
    values = np.stack([plane.astype(np.float32) for plane in planes])
    return Image(
        pixels=torch.from_numpy(values),
        alpha=torch.from_numpy(alpha).clamp(0, 1)[None] if alpha is not None else None,
        bit_depth=32,
        is_linear=True,
        premultiplied=alpha is not None,
        is_half=all(plane.dtype == np.float16 for plane in planes),
        extras=extras,
        notes=tuple(notes),
    )


def encode_exr(path: Path, image: Image, *, is_half: bool) -> None:
    """Write linear light as OpenEXR, in half precision as far as that holds the values, or in float.

    Raises:
        ImportError: OpenEXR is not installed.
    """
    openexr = importlib.import_module("OpenEXR")
    kind = np.float16 if is_half and float(image.pixels.abs().max()) < _LARGEST_HALF else np.float32
    names = "RGB" if image.pixels.shape[0] == 3 else "Y"
    channels: dict[str, Any] = {
        name: np.ascontiguousarray(plane.numpy().astype(kind)) for name, plane in zip(names, image.pixels, strict=True)
    }
    if image.alpha is not None:
        channels["A"] = np.ascontiguousarray(image.alpha[0].numpy().astype(kind))
    header: dict[str, Any] = {extra.name: extra.value for extra in image.extras if extra.format == "exr"}
    header |= {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    with openexr.File(header, channels) as file:
        file.write(os.fspath(path))


def _attributes(header: dict[str, Any], notes: list[str]) -> tuple[Extra, ...]:
    """Return the attributes that are written back; add notes on them."""
    extras = []
    for name, value in header.items():
        if name in _STRUCTURE:
            continue
        is_color = name == "chromaticities"
        is_default = name in ("screenWindowCenter", "screenWindowWidth") or (name == "pixelAspectRatio" and value == 1)
        if is_color:
            is_default = bool(np.allclose(np.asarray(value, np.float64).ravel(), _REC_709, atol=1e-3))
            if not is_default:
                notes.append("primaries other than those of sRGB: the samples are restored as if they were sRGB's")
        if name in _WINDOWS:
            value = tuple(tuple(int(n) for n in corner) for corner in value)
            is_default = header["dataWindow"][0].tolist() == [0, 0] and all(
                np.array_equal(*pair) for pair in zip(header["dataWindow"], header["displayWindow"], strict=True)
            )
            if is_default:
                continue  # follow from the size
        extras.append(Extra("exr", name, value, is_color=is_color, is_default=is_default, is_sized=name in _WINDOWS))
    return tuple(extras)


def decode_radiance(content: bytes) -> Image:
    """Read a Radiance HDR file.

    Raises:
        ImportError: imagecodecs is not installed.
    """
    import imagecodecs

    if b"32-bit_rle_xyze" in content[:_RADIANCE_HEAD].split(b"\n\n", 1)[0]:
        raise ImageError("Radiance HDR of XYZ samples: not read, convert it to RGB first")
    lines, across = b"-Y", b"+X"
    if (size := _radiance_size(content)) is not None:  # the decoder takes this one order only
        lines, rows, across, columns = size.groups()
        content = content[: size.start()] + b"\n-Y %s +X %s\n" % (rows, columns) + content[size.end() :]
    array = np.array(imagecodecs.rgbe_decode(content), np.float32)
    if lines in (b"-X", b"+X"):
        array = array.swapaxes(0, 1)
    array = array[::-1] if b"+Y" in (lines, across) else array
    array = array[:, ::-1] if b"-X" in (lines, across) else array
    pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    return Image(pixels=pixels, bit_depth=32, is_linear=True, notes=_radiance_notes(content))


def _radiance_notes(content: bytes) -> tuple[str, ...]:
    """Return a note on the header lines that are not carried along, such as EXPOSURE."""
    head = content[:_RADIANCE_HEAD].split(b"\n\n", 1)[0].split(b"\n")[1:]
    lines = [line.decode("latin-1").strip() for line in head if not line.startswith((b"FORMAT", b"#"))]
    shown = ", ".join(line[:40] for line in lines[:4] if line)
    return (f"header lines left out: {shown}",) if shown else ()


def read_radiance_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height that the header of a Radiance HDR file declares, None where it declares none."""
    size = _radiance_size(content)
    if size is None:
        return None
    rows, columns = int(size[2]), int(size[4])
    return (columns, rows) if size[1] in (b"-Y", b"+Y") else (rows, columns)


def _radiance_size(content: bytes) -> re.Match[bytes] | None:
    """Return the line of a Radiance HDR file with the direction and the number of its lines, and of their samples."""
    return _RADIANCE_SIZE.search(content, 0, _RADIANCE_HEAD)


@dataclass(frozen=True)
class _Part:
    """A part of a file as its header declares it.

    Attributes:
        name: of the part; empty in files of one part.
        size: height and width.
        channels: their names.
        kind: as the file calls it, such as ``"scanlineimage"`` or ``"deeptile"``.
        has_levels: whether it holds several resolutions.
        chunks: number of blocks of samples.
    """

    name: str
    size: tuple[int, int]
    channels: tuple[str, ...]
    kind: str
    has_levels: bool
    chunks: int

    @property
    def is_deep(self) -> bool:
        return self.kind.startswith("deep")


def _main_part(parts: Sequence[_Part], notes: list[str]) -> int:
    """Return the index of the part that holds the image: the first flat one with R, G, B or Y.

    Raises:
        ImageError: there is none.
    """
    flat = [n for n, part in enumerate(parts) if not (part.is_deep or part.has_levels)]
    shown = [
        n for n in flat if {"R", "G", "B"} <= (names := {name.upper() for name in parts[n].channels}) or "Y" in names
    ]
    if not flat:
        raise ImageError(
            f"EXR with {'deep samples' if parts[0].is_deep else 'several resolutions'}: expected one image"
        )
    if not shown and len(parts) > 1:
        raise ImageError(f"EXR of {len(parts)} parts ({_names(parts)}): expected one with the channels R, G, B or Y")
    found = (shown or flat)[0]
    if rest := [part for n, part in enumerate(parts) if n != found]:
        left = f"the {len(rest)} others are" if len(rest) > 1 else "the other one is"
        notes.append(f"EXR of {len(parts)} parts: {parts[found].name} is read, {left} left out ({_names(rest)})")
    return found


def _names(parts: Sequence[_Part]) -> str:
    names = [part.name for part in parts]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _read_structure(content: bytes, max_pixels: int) -> list[_Part]:
    """Return the parts of a file; refuse truncated files, which the library reads in part without an error."""
    truncated = ImageError("truncated or damaged EXR")
    (flags,) = struct.unpack_from("<I", content, 4)
    has_parts = bool(flags & _PARTS)
    parts, at = [], 8
    try:
        while not parts or (has_parts and content[at] != 0):
            attributes, at = _read_header(content, at)
            parts.append(_part_of(attributes, flags))
            height, width = parts[-1].size
            if min(width, height) < 1:
                raise truncated
            if width * height > max_pixels:
                raise ImageError(too_large(width, height, max_pixels))
        at += has_parts  # the end of the headers
        for part in parts:
            offsets = struct.unpack_from(f"<{part.chunks}Q", content, at)
            at += 8 * part.chunks
            # the number of the part, then the place of the chunk, then its length
            prefix = 4 * has_parts + (16 if "tile" in part.kind else 4)
            for offset in offsets:
                (length,) = struct.unpack_from("<i", content, offset + prefix)
                if not part.is_deep and offset + prefix + 4 + length > len(content):
                    raise truncated
    except ImageError:
        raise
    except (struct.error, IndexError, KeyError, ZeroDivisionError, ValueError):
        raise truncated from None
    return parts


def _read_header(content: bytes, at: int) -> tuple[dict[str, bytes], int]:
    """Return the attributes of a header and where it ends.

    Raises:
        ValueError: an attribute has a negative length.
    """
    attributes = {}
    while content[at] != 0:
        name, at = _read_name(content, at)
        _, at = _read_name(content, at)
        (length,) = struct.unpack_from("<i", content, at)
        if length < 0:
            raise ValueError(f"length {length}")
        attributes[name] = content[at + 4 : at + 4 + length]
        at += 4 + length
    return attributes, at + 1


def _part_of(attributes: Mapping[str, bytes], flags: int) -> _Part:
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    compression = attributes["compression"][0]
    usual = "deepscanline" if flags & _DEEP else "tiledimage" if flags & _TILED else "scanlineimage"
    kind = attributes["type"].rstrip(b"\0").decode("latin-1") if flags & _PARTS else usual
    tiles = attributes.get("tiles", b"") if "tile" in kind else b""
    if flags & (_PARTS | _DEEP) and "chunkCount" in attributes:
        (chunks,) = struct.unpack("<i", attributes["chunkCount"])
    elif tiles:
        across, down = struct.unpack_from("<II", tiles)
        chunks = -(-width // across) * -(-height // down)
    else:
        chunks = -(-height // _ROWS_PER_CHUNK[compression])
    channels, at, listed = [], 0, attributes["channels"]
    while at < len(listed) and listed[at] != 0:
        name, at = _read_name(listed, at)
        channels.append(name)
        at += 16  # type, linearity, sampling
    return _Part(
        name=attributes.get("name", b"").rstrip(b"\0").decode("utf-8", "replace"),
        size=(height, width),
        channels=tuple(channels),
        kind=kind,
        has_levels=bool(tiles and tiles[8] & 0xF),
        chunks=chunks,
    )


def _read_name(content: bytes, at: int) -> tuple[str, int]:
    end = content.index(b"\0", at, at + 256)
    return content[at:end].decode("latin-1"), end + 1
