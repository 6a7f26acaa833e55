"""Read and write photographs without losing bits, alpha, color profile or orientation."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np

from tta_restore.data.io import exif, tiff
from tta_restore.data.io import png as png16
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.pixels import Image, ImageError, array_from_tensors, tensor_from_array

#: Suffixes that `write_image` takes; `read_image` goes by the content instead.
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

_GRAY_MODES = ("1", "L", "LA")


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a PNG, JPEG or TIFF file, recognized by its content, upright and with all its bits.

    8 and 16 bits and float TIFF are read exactly. Gray stays gray; palettes become RGB, with a note. The EXIF
    orientation is applied to the pixels and set to upright in the block that is carried along.

    Raises:
        ImageError: missing, unreadable, empty, truncated, damaged or no image; CMYK and other color models;
            several pages; float samples that are not finite or leave [0, 1]; a package that is needed is missing.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    if not content:
        raise ImageError(f"{path}: empty file")
    try:
        # Libraries warn about damaged metadata; the pixels decide, and each input gets one line.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if content[:4] in tiff.SIGNATURES:
                return tiff.decode(content)
            if content[:8] == png16.SIGNATURE or content[:3] == b"\xff\xd8\xff":
                return _decode(content)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except ImportError as error:
        raise ImageError(f"{path}: needs {error.name}: pip install 'tta-restore[io]'") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it") from None
    except Exception as error:  # decoders raise whatever their parser stumbled over; all mean the same to the user
        raise ImageError(f"{path}: truncated or damaged ({_one_line(error)})") from None
    raise ImageError(f"{path}: not a PNG, JPEG or TIFF image")


def write_image(path: str | os.PathLike[str], image: Image, *, bit_depth: int | None = None, quality: int = 95) -> None:
    """Write a PNG, JPEG or TIFF file by its suffix: completely, or not at all.

    Args:
        path: where to; its suffix decides the format, folders above it are made.
        image: pixels with what is to be carried along.
        bit_depth: 8, 16, or 32 (float TIFF); `None` keeps that of the image. Values are rounded, never truncated.
        quality: of JPEG, 1 to 100; chroma is not subsampled.

    Raises:
        ImageError: the format cannot hold the bits or the alpha, the values are not finite, or the disk refuses.
        TypeError: ``image`` is no :class:`tta_restore.data.io.pixels.Image`.
    """
    if not isinstance(image, Image):
        raise TypeError(f"write_image: expected image to be an Image, as Image(pixels), got {type(image).__name__}")
    path = Path(path)
    depth = image.bit_depth if bit_depth is None else bit_depth
    if depth not in (8, 16, 32):
        raise ImageError(f"{path}: expected a bit depth of 8, 16 or 32, got {depth}")
    if not image.pixels.isfinite().all():
        raise ImageError(f"{path}: the image holds NaN or infinity and was not written")
    suffix = path.suffix.lower()
    try:
        if suffix in (".tif", ".tiff"):
            content = tiff.encode(image, depth)
        elif suffix == ".png":
            content = _encode_png(image, depth)
        elif suffix in (".jpg", ".jpeg"):
            content = _encode_jpeg(image, depth, quality)
        else:
            raise ImageError(f"expected one of the suffixes {', '.join(SUFFIXES)}")
        with atomic_file(path) as partial:
            partial.write_bytes(content)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except ImportError as error:
        raise ImageError(f"{path}: needs {error.name}: pip install 'tta-restore[io]'") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({_one_line(error)})") from None


def _decode(content: bytes) -> Image:
    from PIL import Image as PilImage
    from PIL import UnidentifiedImageError

    kind = "PNG" if content.startswith(png16.SIGNATURE) else "JPEG"
    try:
        picture = PilImage.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except PilImage.DecompressionBombError:
        raise ImageError(f"more than {2 * (PilImage.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, struct.error):
        raise ImageError(f"truncated or damaged {kind}: its header is incomplete") from None
    if kind == "PNG" and getattr(picture, "is_animated", False):
        raise ImageError("animated PNG: split it into frames first")
    if picture.mode in ("CMYK", "YCCK"):
        raise ImageError("CMYK image: convert it to RGB first, its colors depend on a printing profile")

    notes: list[str] = []
    block, orientation = exif.upright(picture.info.get("exif"), notes)
    depth = 16 if kind == "PNG" and png16.bit_depth(content) == 16 else 8
    transparent = picture.info.get("transparency")
    try:
        if depth == 16:
            array = png16.decode(content)
        else:
            picture.load()
            if picture.mode in ("P", "PA"):
                notes.append("palette image: read as RGB")
                picture = picture.convert("RGBA" if transparent is not None or picture.mode == "PA" else "RGB")
                transparent = None
            elif picture.mode == "1":
                notes.append("1-bit image: read as 8-bit gray")
                picture = picture.convert("L")
            elif picture.mode not in (*_GRAY_MODES, "RGB", "RGBA"):
                raise ImageError(f"color mode {picture.mode}: convert it to RGB or gray first")
            array = np.asarray(picture)
    except (ImageError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"truncated or damaged {kind}: {_one_line(error)}") from None
    if array.ndim == 2:
        array = array[..., None]
    if transparent is not None and array.shape[2] in (1, 3):
        # One color is declared see-through: written out as alpha, which every format with alpha can hold.
        opaque = (array != np.asarray(transparent).reshape(-1)).any(-1, keepdims=True)
        array = np.concatenate([array, opaque.astype(array.dtype) * np.iinfo(array.dtype).max], axis=2)
    values = tensor_from_array(array, orientation)
    colors = 1 if array.shape[2] <= 2 else 3
    return Image(
        pixels=values[:colors],
        alpha=values[colors:] if array.shape[2] > colors else None,
        bit_depth=depth,
        icc=picture.info.get("icc_profile"),
        exif=block,
        notes=tuple(notes),
    )


def _encode_png(image: Image, depth: int) -> bytes:
    if depth == 32:
        raise ImageError("PNG holds 8 or 16 bits, not float: ask for a bit depth, or write TIFF")
    if image.premultiplied:
        raise ImageError("PNG cannot hold premultiplied alpha: write TIFF")
    array = array_from_tensors(image.pixels, image.alpha, depth)
    if depth == 16:
        return png16.encode(array, icc=image.icc, exif=image.exif)
    return _save(array, "PNG", image, compress_level=3)


def _encode_jpeg(image: Image, depth: int, quality: int) -> bytes:
    if depth != 8:
        raise ImageError(f"JPEG holds 8 bits, the image has {depth}: ask for a bit depth of 8, or write PNG or TIFF")
    if image.alpha is not None:
        raise ImageError("JPEG cannot hold alpha: write PNG or TIFF")
    return _save(array_from_tensors(image.pixels, None, 8), "JPEG", image, quality=quality, subsampling=0)


def _save(array: np.ndarray, kind: str, image: Image, **options: int) -> bytes:
    from PIL import Image as PilImage

    stream = io.BytesIO()
    carried = {"icc_profile": image.icc, "exif": image.exif}
    PilImage.fromarray(array).save(stream, kind, **options, **{name: block for name, block in carried.items() if block})
    return stream.getvalue()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] if text else type(error).__name__
