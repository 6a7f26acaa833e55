"""TIFF files with integer or float samples, gray, RGB or CMYK, with or without alpha, through tifffile."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from tta_restore.data.io import color, exif
from tta_restore.data.io.pixels import Extra, Image, ImageError, array_from_tensors, tensor_from_array, too_large

__all__ = [
    "LARGEST_WITH_EXIF",
    "SIGNATURES",
    "carried_by",
    "check_page",
    "encode_tiff",
    "main_page",
    "options_of",
    "quiet",
    "read_tiff",
]

#: Little and big endian, classic and BigTIFF.
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Bytes of samples up to which EXIF is added.
LARGEST_WITH_EXIF = 2**31

_DTYPES = {"bool": 8, "uint8": 8, "uint16": 16, "float16": 32, "float32": 32, "float64": 32}
_SAME_SHAPE = 0.03  # relative difference of two aspect ratios that rounding explains
_MOST_PAGES = 1000  # of which the main one is looked for
_FAX = (2, 3, 4, 32771)  # compression by fax codes
_XMP, _IPTC, _DNG, _CFA = 700, 33723, 50706, 33421
#: Tags that are carried as metadata of any format: XMP, IPTC, profile, EXIF, position.
_CARRIED = frozenset((_XMP, _IPTC, 34675, 34665, 34853, 40965))
_SIZELESS = frozenset((37724, 34377, 50838, 50839))  # layers, Photoshop's resources, ImageJ's data: of the old samples
_COLOR = frozenset((301, 318, 319))  # transfer function, white point, primaries
_SIZED = frozenset((33550, 33922, 34264))  # pixel scale, tie points, transformation to the map
_WORDS = (1, 2, 6, 7)  # data types of text and bytes
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_MOST_OUTSIDE = 0.5  # fraction of float samples outside [0, 1] above which another range is meant


def read_tiff(path: Path, *, max_pixels: int) -> Image:
    """Read the main page of a TIFF file: the one that is no reduced copy and no mask of another.

    Raises:
        ImageError: truncated, too large, several main pages, sensor values (DNG), a color model or sample type that
            is not handled, float samples that are not finite or are mostly outside [0, 1].
        ImportError: tifffile is not installed, or imagecodecs for the compression used.
    """
    import tifffile

    with quiet(tifffile), open(path, "rb") as stream, tifffile.TiffFile(stream) as file:
        notes: list[str] = []
        page = main_page(file, notes)
        stream.seek(0, io.SEEK_END)
        check_page(page, stream.tell(), max_pixels)
        if absent := sum(size == 0 for size in page.databytecounts):  # sparse files, as of maps
            notes.append(f"{absent} of {len(page.databytecounts)} strips or tiles are not in the file: read as black")
        try:
            array = (
                _read_fax(stream, page) if page.compression in _FAX and isinstance(page.index, int) else page.asarray()
            )
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise ImportError(str(error), name="imagecodecs") from None
            raise
        except Exception:
            if getattr(page.compression, "name", "") == "OJPEG":  # whose parts lie anywhere
                raise ImageError("TIFF with JPEG of the old kind: not read, convert it first") from None
            raise
        return _image_of(page, array, exif.read_tiff_exif(stream, notes), notes)


def _read_fax(stream: BinaryIO, page: Any) -> np.ndarray:
    """Return the bits of a page by Pillow: other decoders of fax codes leave rows of some pages white in silence."""
    from PIL.TiffImagePlugin import TiffImageFile

    stream.seek(0)
    content = bytearray(stream.read())
    if (turned := page.tags.get(274)) is not None:  # Pillow would turn the bits
        struct.pack_into(f"{page.parent.byteorder}H", content, turned.valueoffset, 1)
    picture = TiffImageFile(io.BytesIO(content))
    picture.seek(page.index)
    if picture.mode != "1" or picture.size != (page.imagewidth, page.imagelength):
        return np.asarray(page.asarray())
    bits = np.asarray(picture)
    return ~bits if getattr(page.photometric, "name", "") == "MINISWHITE" else bits  # Pillow's ones are white


def main_page(file: Any, notes: list[str]) -> Any:
    """Return the page of a `tifffile.TiffFile` that holds the image, with a note on the pages that do not.

    Of several images that is the first one.

    Raises:
        ImageError: there is none, or the file holds sensor values.
    """
    pages: list[Any] = []
    for page in file.pages:
        pages.append(page)
        pages += list(getattr(page, "pages", None) or [])
        if len(pages) > _MOST_PAGES:
            break
    if not pages:
        raise ImageError("truncated or damaged TIFF: its directory is incomplete")
    for page in pages:
        if _DNG in page.tags or _CFA in page.tags:
            raise ImageError(
                "RAW (DNG or similar): sensor values that have to be developed, name it with its own suffix"
            )
    main = [page for page in pages if not _subfile_type(page) & (_REDUCED | _MASK)]
    images = [page for page in main if not any(_is_reduced(page, other) for other in main)]
    if len(images) > 1:
        count = f"more than {_MOST_PAGES}" if len(pages) > _MOST_PAGES else str(len(images))
        notes.append(f"TIFF of {count} images: the first one is read, the others are left out")
        return images[0]
    main = images
    if len(pages) > 1:
        other = next((page for page in pages if page not in main), pages[-1])
        kind = "mask" if _subfile_type(other) & _MASK else "reduced copy"
        kinds = kind if len(pages) == 2 else "reduced copies or masks"
        notes.append(f"TIFF with {len(pages)} pages: the {kinds} of the image left out")
    return main[0] if main else max(pages, key=lambda page: page.imagewidth * page.imagelength)


def _is_reduced(page: Any, other: Any) -> bool:
    """Return whether a page has the shape of another one at half the size or less, as reduced copies have."""
    width, height = page.imagewidth, page.imagelength
    ratio = width * other.imagelength / max(height * other.imagewidth, 1)
    return 2 * width <= other.imagewidth and abs(ratio - 1) < _SAME_SHAPE


def encode_tiff(image: Image, depth: int) -> bytes:
    """Return a TIFF file, deflate-compressed, with profile, EXIF, XMP, IPTC, resolution and alpha.

    Raises:
        ImportError: tifffile is not installed.
    """
    import tifffile

    array = array_from_tensors(image.pixels, image.alpha, depth)
    if image.resolution is None:
        image = replace(image, resolution=exif.read_resolution(image.exif))
    has_exif = image.exif is not None  # the EXIF directory is added to classic TIFF only
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        array,
        photometric="rgb" if image.pixels.shape[0] == 3 else "minisblack",
        planarconfig="contig" if array.ndim == 3 else None,
        compression="zlib",
        predictor=depth < 32,
        metadata=None,
        bigtiff=False if has_exif else None,
        software=False,
        **options_of(image, alpha=image.alpha is not None),
    )
    content = stream.getvalue()
    return exif.embed_tiff_exif(content, image.exif) if has_exif and image.exif is not None else content


def options_of(image: Image, *, alpha: bool) -> dict[str, Any]:
    """Return the keywords of tifffile that write the metadata of an image."""
    options: dict[str, Any] = {"iccprofile": image.icc}
    if alpha:
        options["extrasamples"] = ["assocalpha" if image.premultiplied else "unassalpha"]
    if image.resolution is not None:
        options["resolution"], options["resolutionunit"] = image.resolution[:2], image.resolution[2]
    tags = ((_XMP, image.xmp), (_IPTC, image.iptc))
    options["extratags"] = [(n, 7 if n == _IPTC else 1, len(value), value, True) for n, value in tags if value]
    options["extratags"] += [extra.value for extra in image.extras if extra.format == "tiff"]
    return options


def carried_by(page: Any, block: bytes | None, notes: list[str]) -> Image:
    """Return an image of one pixel with the metadata of a page."""
    unit = page.tags.get("ResolutionUnit")
    dots = page.get_resolution() if "XResolution" in page.tags else None
    extra = [getattr(kind, "name", "") for kind in page.extrasamples]
    extras = _own_tags(page, block, notes)
    xmp, turned = _bytes_of(page, _XMP), page.tags.get("Orientation")
    return Image(
        pixels=torch.zeros(1, 1, 1),
        bit_depth=_DTYPES[str(page.dtype)],
        icc=page.tags["InterColorProfile"].value if "InterColorProfile" in page.tags else None,
        exif=block,
        xmp=exif.upright_xmp(xmp) if turned is not None and turned.value != 1 else xmp,
        iptc=_bytes_of(page, _IPTC),
        resolution=(*dots, int(unit.value) if unit is not None else 2) if dots is not None else None,
        premultiplied=extra[:1] == ["ASSOCALPHA"],
        extras=extras,
        notes=tuple(notes),
    )


def _own_tags(page: Any, block: bytes | None, notes: list[str]) -> tuple[Extra, ...]:
    """Return the tags that are neither of the samples nor carried in another way, such as the position of a map."""
    extras: list[Extra] = []
    lost = ["EXIF" for tag in page.tags if tag.code in exif.NESTED and block is None and page.parent.is_bigtiff]
    for tag in page.tags:
        if tag.code in exif.SAMPLE_TAGS or tag.code in _CARRIED or (block is not None and tag.code in exif.DESCRIBING):
            continue
        value = _plain(tag)
        if tag.code in _SIZELESS or value is None:
            lost.append(_tag_name(tag))
            continue
        entry = (tag.code, int(tag.dtype), tag.count, value, True)
        extras.append(Extra("tiff", _tag_name(tag), entry, tag.code in _COLOR, is_sized=tag.code in _SIZED))
    if lost:
        notes.append(f"TIFF tags left out: {', '.join(dict.fromkeys(lost[:8]))}")
    return tuple(extras)


def _plain(tag: Any) -> Any:
    """Return the value of a tag as tifffile writes it, None where it cannot."""
    value = tag.value
    if isinstance(value, (str, bytes)):
        return value if tag.dtype in _WORDS else None
    if isinstance(value, (list, np.ndarray)):
        value = tuple(np.asarray(value).ravel().tolist())
    if isinstance(value, (int, float)):
        return value
    numbers = isinstance(value, tuple) and all(isinstance(number, (int, float)) for number in value)
    return value if numbers else None


def _tag_name(tag: Any) -> str:
    return str(tag.name) if not str(tag.name).isdecimal() else f"tag {tag.code}"


def _image_of(page: Any, array: np.ndarray, block: bytes | None, notes: list[str]) -> Image:
    photometric = getattr(page.photometric, "name", str(page.photometric))
    # Planes after each other become interleaved samples.
    if page.axes.startswith("S"):
        array = np.moveaxis(array, 0, -1)
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    if array.dtype == bool and photometric == "PALETTE":
        array = array.astype(np.uint8)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
        notes.append("1-bit image: read as 8-bit gray")
    elif photometric == "PALETTE":
        array = _from_palette(array, page.colormap, 2**bits - 1)
        notes.append("palette image: read as RGB")
        bits = array.dtype.itemsize * 8
    icc = page.tags["InterColorProfile"].value if "InterColorProfile" in page.tags else None
    depth = _DTYPES[str(array.dtype)]
    levels = None
    if depth == 32:
        if array.dtype == np.float64:
            notes.append("float samples of 64 bits: read as 32 bits")
        array = array.astype(np.float32)
        _check_float(array, notes)
    elif 1 < bits < array.dtype.itemsize * 8:  # 12 bits in words of 16
        levels = 2**bits - 1
    if photometric == "MINISWHITE":
        white = levels or {8: 255, 16: 65535, 32: 1}[depth]
        grays, alpha = (array, array[..., :0]) if array.ndim == 2 else np.split(array, [1], axis=-1)
        array = np.asarray(white, array.dtype) - grays
        array = np.concatenate([array, alpha], axis=-1) if alpha.size else array
    if photometric == "SEPARATED":
        if depth == 32 or levels is not None:
            raise ImageError("CMYK image with other than 8 or 16 bits: convert it to RGB first")
        inks, alpha = array[..., :4], array[..., 4:]
        rgb, note = color.cmyk_to_srgb(inks, icc)
        array, icc = np.concatenate([rgb, alpha], axis=-1), None
        notes.append(note)
    colors = 1 if photometric in ("MINISBLACK", "MINISWHITE") else 3
    samples = array.shape[2] if array.ndim == 3 else 1
    if samples > colors + 1:
        raise ImageError(f"TIFF with {samples} samples per pixel: expected at most {colors + 1}")
    orientation = page.tags.get("Orientation")
    values = tensor_from_array(array, orientation.value if orientation is not None else 1, levels=levels)
    return replace(
        carried_by(page, block, notes),
        pixels=values[:colors],
        alpha=values[colors:] if samples > colors else None,
        bit_depth=depth,
        icc=icc,
    )


def check_page(page: Any, file_size: int, max_pixels: int) -> None:
    """Refuse a page before anything is allocated for its samples."""
    width, height = page.imagewidth, page.imagelength
    if width < 1 or height < 1:
        raise ImageError(f"TIFF that declares {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(too_large(width, height, max_pixels))
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if photometric in ("CFA", "LINEAR_RAW"):
        raise ImageError("RAW (DNG or similar): sensor values that have to be developed")
    if photometric not in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR", "SEPARATED"):
        raise ImageError(f"TIFF color model {photometric}: convert it to RGB or gray first")
    if photometric == "YCBCR" and getattr(page.compression, "name", "") not in ("JPEG", "OJPEG"):
        raise ImageError("TIFF color model YCBCR: convert it to RGB or gray first")
    if photometric == "SEPARATED" and page.samplesperpixel not in (4, 5):
        raise ImageError(f"TIFF with {page.samplesperpixel} inks: expected CMYK")
    if str(page.dtype) not in _DTYPES:
        raise ImageError(f"TIFF samples of type {page.dtype}: expected unsigned ones of 1 to 16 bits, or floats")
    if page.axes.strip("S") != "YX":
        raise ImageError(f"TIFF with axes {page.axes}: expected one image")
    if page.samplesperpixel > 5:
        raise ImageError(f"TIFF with {page.samplesperpixel} samples per pixel: expected at most 4")
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if not parts or max(start + size for start, size in parts) > file_size:
        raise ImageError("truncated TIFF: the pixel data ends early")
    if any(start > 0 and size == 0 for start, size in parts):
        raise ImageError("truncated or damaged TIFF: a strip or tile is empty")
    if len(parts) < -(-height // max(page.rowsperstrip or height, 1)) and not page.is_tiled:
        raise ImageError("truncated or damaged TIFF: strips are missing")
    if sum(size for _, size in parts) > file_size:
        raise ImageError(f"damaged TIFF: {width} x {height} pixels whose strips overlap in the file")


def _subfile_type(page: Any) -> int:
    kind = page.tags.get("NewSubfileType") or page.tags.get(254)
    if kind is not None:
        return int(kind.value)
    old = page.tags.get(255)
    return _REDUCED if old is not None and int(old.value) == 2 else 0


def _bytes_of(page: Any, number: int) -> bytes | None:
    tag = page.tags.get(number)
    if tag is None:
        return None
    value = tag.value
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8")
    try:
        array = np.asarray(value)
        return (
            array.astype(">u4" if page.parent.byteorder == ">" else "<u4").tobytes()
            if array.max() > 255
            else bytes(value)
        )
    except (TypeError, ValueError):
        return None


def _check_float(array: np.ndarray, notes: list[str]) -> None:
    broken = int((~np.isfinite(array)).sum())
    if broken:
        raise ImageError(f"{broken} of {array.size} samples are NaN or infinite")
    outside = float(((array < 0) | (array > 1)).mean())
    if not outside:
        return
    span = f"float samples from {float(array.min()):.4g} to {float(array.max()):.4g}"
    if outside > _MOST_OUTSIDE:
        raise ImageError(f"{span}: expected values in [0, 1]")
    notes.append(f"{span}: {outside:.2%} of them outside [0, 1], which are restored as far as they lie inside")


def _from_palette(indices: np.ndarray, colormap: np.ndarray, levels: int) -> np.ndarray:
    """Return the colors of a palette, 16 bits in the file; 8 bits are enough when every entry is an 8-bit value.

    Args:
        indices: of the palette; a second sample of a pixel is its alpha.
        colormap: its colors, (3, N).
        levels: the largest sample.
    """
    if indices.ndim == 3:
        colors = _from_palette(indices[..., 0], colormap, levels)
        alpha = indices[..., 1:].astype(np.float64) / levels * np.iinfo(colors.dtype).max
        return np.concatenate([colors, alpha.round().astype(colors.dtype)], axis=-1)
    if not (colormap % 257).any():
        return (colormap // 257).astype(np.uint8).T[indices]
    if not (colormap & 0xFF).any():  # some writers shift by eight instead of multiplying by 257
        return (colormap >> 8).astype(np.uint8).T[indices]
    return colormap.astype(np.uint16).T[indices]


@contextmanager
def quiet(tifffile: Any) -> Iterator[None]:
    """Keep tifffile from logging what the caller is going to raise as one line."""
    logger: logging.Logger = tifffile.logger()
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
