"""TIFF with 8 or 16 bits or float samples, gray or RGB, with or without alpha, through tifffile."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tta_restore.data.io import exif
from tta_restore.data.io.pixels import Image, ImageError, array_from_tensors, tensor_from_array

#: Little and big endian, classic and BigTIFF.
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_DTYPES = {"uint8": 8, "uint16": 16, "float16": 32, "float32": 32}


def decode(content: bytes) -> Image:
    """Read the single page of a TIFF file.

    Raises:
        ImageError: truncated, several pages, a color model or sample type that is not handled, float samples that
            are not finite or leave [0, 1].
        ImportError: tifffile is not installed, or imagecodecs for the compression used.
    """
    import tifffile

    with _silent(tifffile), tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = list(file.pages)
        if not pages:
            raise ImageError("truncated or damaged TIFF: its directory is incomplete")
        if len(pages) != 1:
            raise ImageError(f"TIFF with {len(pages)} pages: expected one, split it first")
        page: Any = pages[0]
        end = max((a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if not page.dataoffsets or end > len(content):
            raise ImageError("truncated TIFF: the pixel data ends early")
        photometric = getattr(page.photometric, "name", str(page.photometric))
        _check(page, photometric)
        try:
            array = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise ImportError(str(error), name="imagecodecs") from None
            raise
        # Planes after each other become interleaved samples.
        if page.axes.startswith("S"):
            array = np.moveaxis(array, 0, -1)
        notes: list[str] = []
        if photometric == "PALETTE":
            array = _from_palette(array, page.colormap)
            notes.append("palette image: read as RGB")
        depth = _DTYPES[str(array.dtype)]
        if depth == 32:
            _check_float(array)
            array = array.astype(np.float32)
        if photometric == "MINISWHITE":
            array = (np.iinfo(array.dtype).max if depth < 32 else np.float32(1)) - array
        colors = 1 if photometric in ("MINISBLACK", "MINISWHITE") else 3
        samples = array.shape[2] if array.ndim == 3 else 1
        extra = [getattr(kind, "name", "") for kind in page.extrasamples]
        if samples > colors + 1:
            raise ImageError(f"TIFF with {samples} samples per pixel: expected at most {colors + 1}")
        orientation = page.tags.get("Orientation")
        values = tensor_from_array(array, orientation.value if orientation is not None else 1)
        unit = page.tags.get("ResolutionUnit")
        dots = page.get_resolution() if "XResolution" in page.tags else None
        return Image(
            pixels=values[:colors],
            alpha=values[colors:] if samples > colors else None,
            bit_depth=depth,
            icc=page.tags["InterColorProfile"].value if "InterColorProfile" in page.tags else None,
            exif=exif.read_tiff_exif(content, notes),
            resolution=(*dots, int(unit.value) if unit is not None else 2) if dots is not None else None,
            premultiplied=extra[:1] == ["ASSOCALPHA"],
            notes=tuple(notes),
        )


def encode(image: Image, depth: int) -> bytes:
    """A TIFF file, deflate-compressed, with profile, EXIF block, resolution and alpha.

    Raises:
        ImportError: tifffile is not installed.
    """
    import tifffile

    array = array_from_tensors(image.pixels, image.alpha, depth)
    options: dict[str, Any] = {}
    if image.alpha is not None:
        options["extrasamples"] = ["assocalpha" if image.premultiplied else "unassalpha"]
    if image.resolution is not None:
        options["resolution"], options["resolutionunit"] = image.resolution[:2], image.resolution[2]
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        array,
        photometric="rgb" if image.pixels.shape[0] == 3 else "minisblack",
        planarconfig="contig" if array.ndim == 3 else None,
        compression="zlib",
        predictor=depth < 32,
        iccprofile=image.icc,
        metadata=None,
        bigtiff=None if image.exif is None else False,
        software=False,
        **options,
    )
    content = stream.getvalue()
    return content if image.exif is None else exif.embed_tiff_exif(content, image.exif)


def _check(page: Any, photometric: str) -> None:
    if photometric == "SEPARATED":
        raise ImageError("CMYK image: convert it to RGB first, its colors depend on a printing profile")
    if photometric not in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR"):
        raise ImageError(f"TIFF color model {photometric}: convert it to RGB or gray first")
    if photometric == "YCBCR" and getattr(page.compression, "name", "") not in ("JPEG", "OJPEG"):
        raise ImageError("TIFF color model YCBCR: convert it to RGB or gray first")
    if str(page.dtype) not in _DTYPES:
        raise ImageError(f"TIFF samples of type {page.dtype}: expected 8 or 16 bits unsigned, or float")
    if page.axes.strip("S") != "YX":
        raise ImageError(f"TIFF with axes {page.axes}: expected one image")


def _check_float(array: np.ndarray) -> None:
    broken = int((~np.isfinite(array)).sum())
    if broken:
        raise ImageError(f"{broken} of {array.size} samples are NaN or infinite")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ImageError(f"float samples from {low:.4g} to {high:.4g}: expected values in [0, 1]")


def _from_palette(indices: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """Colors of a palette, 16 bits in the file; 8 bits are enough when every entry is an 8-bit value."""
    if not (colormap % 257).any():
        return (colormap // 257).astype(np.uint8).T[indices]
    if not (colormap & 0xFF).any():  # some writers shift by eight instead of multiplying by 257
        return (colormap >> 8).astype(np.uint8).T[indices]
    return colormap.astype(np.uint16).T[indices]


@contextmanager
def _silent(tifffile: Any) -> Iterator[None]:
    """Keep tifffile from logging what the caller is going to raise as one line."""
    logger: logging.Logger = tifffile.logger()
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
