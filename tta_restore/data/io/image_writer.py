"""Write images without losing bits, alpha, color profile or metadata."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tta_restore.data.io import boxes, exr, jpeg, jxl, png, tiff
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.carry import fit_format, strip_metadata
from tta_restore.data.io.pixels import (
    Image,
    ImageError,
    array_from_tensors,
    one_line,
)

__all__ = ["BIT_DEPTHS", "FORMATS", "SUFFIXES", "check_writable", "write_image"]

#: Formats that :func:`write_image` writes, each with its suffixes; the first one is used for new files.
FORMATS: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "tiff": (".tif", ".tiff"),
    "webp": (".webp",),
    "avif": (".avif",),
    "jxl": (".jxl",),
    "exr": (".exr",),
}
#: Suffixes that :func:`write_image` takes; :func:`read_image` goes by the content instead.
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
#: Bits per sample that each format holds; 32 are floats.
BIT_DEPTHS: dict[str, tuple[int, ...]] = {
    "png": (8, 16),
    "jpeg": (8,),
    "tiff": (8, 16, 32),
    "webp": (8,),
    "avif": (8, 16),
    "jxl": (8, 16, 32),
    "exr": (16, 32),
}
_LARGEST_SEGMENT = 65000  # bytes of one JPEG segment


def write_image(
    path: str | os.PathLike[str],
    image: Image,
    *,
    bit_depth: int | None = None,
    quality: int = 95,
    strip: bool = False,
) -> tuple[str, ...]:
    """Write an image file, in the format of its suffix: completely, or not at all.

    Args:
        path: where to; its suffix decides the format, missing folders are made.
        image: pixels with what is to be carried along.
        bit_depth: 8, 16, or 32 (float: TIFF, JPEG XL, EXR); `None` keeps that of the image, as far as the format
            holds it. Values are rounded, never truncated. 16 bits of EXR are half precision.
        quality: of JPEG, WebP, AVIF and JPEG XL, 1 to 100; 100 is lossless but for JPEG. JPEG's chroma is not
            subsampled.
        strip: leave out EXIF, XMP, IPTC, text and resolution; the color profile stays.

    Returns:
        A line for each part of the image that the format cannot hold.

    Raises:
        ImageError: the format cannot hold the bits or the alpha, the values are not finite, or the disk refuses.
        TypeError: ``image`` is no :class:`tta_restore.data.io.pixels.Image`.
    """
    if not isinstance(image, Image):
        raise TypeError(f"write_image: expected image to be an Image, as Image(pixels), got {type(image).__name__}")
    path = Path(path)
    if not 1 <= quality <= 100:
        raise ImageError(f"{path}: expected a quality from 1 to 100, got {quality}")
    if not all(math.isfinite(bound) for bound in image.pixels.aminmax()):  # without a copy
        raise ImageError(f"{path}: the image holds NaN or infinity and was not written")
    try:
        kind, depth = _target(path, image, bit_depth)
        if strip:
            image = strip_metadata(image)
        samples = image.pixels.numel() + (0 if image.alpha is None else image.alpha.numel())
        embeds_exif = samples * depth // 8 < tiff.LARGEST_WITH_EXIF
        image, notes = fit_format(image, kind, depth, embeds_exif=embeds_exif)
        with atomic_file(path) as partial:
            if kind == "exr":
                exr.encode_exr(partial, image, is_half=depth == 16)
            else:
                partial.write_bytes(_ENCODERS[kind](image, depth, quality))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except ImportError as error:
        raise ImageError(f"{path}: needs {error.name}: pip install 'tta-restore[io]'") from None
    except (OSError, RuntimeError) as error:
        raise ImageError(f"{path}: cannot be written ({one_line(error)})") from None
    return tuple(notes)


def check_writable(
    path: str | os.PathLike[str], image: Image, *, bit_depth: int | None = None, source: Path | None = None
) -> None:
    """Find out before the work that the format of a file cannot hold an image's samples.

    Args:
        path: where the image is going to be written.
        image: what is going to be written.
        bit_depth: as for :func:`write_image`.
        source: file that the message begins with, `path` by default.

    Raises:
        ImageError: it cannot.
    """
    path = Path(path)
    try:
        _target(path, image, bit_depth)
    except ImageError as error:
        raise ImageError(f"{source or path}: {path.name} cannot be written: {error}") from None


def _target(path: Path, image: Image, bit_depth: int | None) -> tuple[str, int]:
    """Return format and bit depth of a file to be written."""
    kind = next((name for name, suffixes in FORMATS.items() if path.suffix.lower() in suffixes), None)
    if kind is None:
        raise ImageError(f"expected one of the suffixes {', '.join(SUFFIXES)}")
    depth = image.bit_depth if bit_depth is None else bit_depth
    if depth not in (8, 16, 32):
        raise ImageError(f"expected a bit depth of 8, 16 or 32, got {depth}")
    possible = BIT_DEPTHS[kind]
    if kind == "exr":  # a float format: half precision holds 8 bits
        depth = 16 if bit_depth == 16 or (bit_depth is None and (image.is_half or image.bit_depth == 8)) else 32
    elif depth not in possible:
        names = {8: "8 bits", 16: "16 bits", 32: "float samples"}
        other = {16: "PNG, TIFF or JPEG XL", 32: "TIFF, JPEG XL or EXR"}[depth]
        raise ImageError(
            f"{kind.upper()} holds {' or '.join(map(str, possible))} bits, the image has {names[depth]}: "
            f"ask for a bit depth of {possible[-1]}, or write {other}"
        )
    if image.alpha is not None and kind == "jpeg":
        raise ImageError("JPEG cannot hold alpha: write PNG, TIFF, WebP, AVIF or JPEG XL")
    if image.alpha is not None and image.premultiplied and kind not in ("tiff", "exr"):
        raise ImageError(f"{kind.upper()} cannot hold premultiplied alpha: write TIFF")
    return kind, depth


def _encode_png(image: Image, depth: int, quality: int) -> bytes:
    array = array_from_tensors(image.pixels, image.alpha, depth)
    content = png.encode_16_bit(array) if depth == 16 else _save(array, "PNG", compress_level=3)
    return png.add_metadata(content, image)


def _encode_jpeg(image: Image, depth: int, quality: int) -> bytes:
    options: dict[str, Any] = {"icc_profile": image.icc, "exif": image.exif, "xmp": image.xmp}
    if comment := next((value for keyword, value in image.text if keyword == "Comment"), None):
        options["comment"] = comment.encode()[:_LARGEST_SEGMENT]
    if image.resolution is not None and image.resolution[2] in (2, 3):
        per_inch = 2.54 if image.resolution[2] == 3 else 1
        options["dpi"] = tuple(round(value * per_inch) for value in image.resolution[:2])
    array = array_from_tensors(image.pixels, None, 8)
    content = _save(array, "JPEG", quality=quality, subsampling=0, **options)
    return jpeg.add_iptc(content, image.iptc) if image.iptc else content


def _encode_tiff(image: Image, depth: int, quality: int) -> bytes:
    return tiff.encode_tiff(image, depth)


def _encode_webp(image: Image, depth: int, quality: int) -> bytes:
    array = _with_colors(array_from_tensors(image.pixels, image.alpha, 8))
    options = {"icc_profile": image.icc, "exif": image.exif, "xmp": image.xmp}
    return _save(array, "WEBP", quality=quality, lossless=quality == 100, method=4, exact=True, **options)


def _encode_avif(image: Image, depth: int, quality: int) -> bytes:
    if depth == 8:
        array = _with_colors(array_from_tensors(image.pixels, image.alpha, 8))
        content = _save(array, "AVIF", quality=quality, subsampling="4:4:4", icc_profile=image.icc)
    else:
        import imagecodecs

        array = _with_colors(array_from_tensors(image.pixels, image.alpha, 16, levels=4095))
        content = bytes(imagecodecs.avif_encode(array, level=quality, bitspersample=12, speed=6))
    if image.cicp and not image.icc:
        content = boxes.with_color_numbers(content, image.cicp)
    # not by Pillow, which writes the block anew and moves what its maker note points to
    return boxes.add_avif_metadata(content, exif=image.exif, xmp=image.xmp)


def _encode_jxl(image: Image, depth: int, quality: int) -> bytes:
    content = jxl.encode_jpeg_xl(image, depth, quality)
    return boxes.add_jpeg_xl_metadata(content, exif=image.exif, xmp=image.xmp)


_ENCODERS: dict[str, Callable[[Image, int, int], bytes]] = {
    "png": _encode_png,
    "jpeg": _encode_jpeg,
    "tiff": _encode_tiff,
    "webp": _encode_webp,
    "avif": _encode_avif,
    "jxl": _encode_jxl,
}


def _with_colors(array: np.ndarray) -> np.ndarray:
    """Return gray samples as RGB, for formats without gray. Shape: (H, W[, 2]) -> (H, W, 3 or 4)."""
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return array if array.shape[2] > 2 else array[..., [0, 0, 0, 1]]


def _save(array: np.ndarray, kind: str, **options: Any) -> bytes:
    from PIL import Image as PilImage

    stream = io.BytesIO()
    PilImage.fromarray(array).save(
        stream, kind, **{name: value for name, value in options.items() if value is not None}
    )
    return stream.getvalue()
