"""Read images without losing bits, alpha, color profile, orientation or metadata."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tta_restore.data.io import boxes, color, exif, exr, jpeg, jxl, netpbm, png, raw, tiff
from tta_restore.data.io.declared_size import declared_size
from tta_restore.data.io.formats import detect_format, irregular_kind
from tta_restore.data.io.pixels import (
    Image,
    ImageError,
    one_line,
    tensor_from_array,
    too_large,
)

__all__ = ["MAX_PIXELS", "read_image"]
#: Default limit on the pixels of an image: what medium format cameras take, about 2 GB as RGB floats.
MAX_PIXELS = 160_000_000

_GRAY_MODES = ("1", "L", "LA")
# Formats that Pillow decodes: name here and in Pillow's registry.
_PILLOW = {"PNG": "PNG", "JPEG": "JPEG", "WebP": "WEBP", "AVIF": "AVIF", "BMP": "BMP", "GIF": "GIF"}
# An application extension whose data is the packet itself, closed by a trailer that ends every reading of blocks.
_GIF_XMP = re.compile(rb"\x21\xff\x0bXMP DataXMP(.*?)\x01\xff\xfe\xfd", re.DOTALL)
# Where the image ends, for formats whose files often hold more.
_ENDS = {
    "PNG": png.end_of_image,
    "JPEG": jpeg.end_of_image,
    "WebP": lambda content: 8 + int.from_bytes(content[4:8], "little"),
}


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, keep_going: bool = False) -> Image:
    """Read an image file, recognized by its content, upright and with all its bits.

    PNG, JPEG, TIFF, WebP, AVIF, HEIC (with pillow-heif), JPEG XL, JPEG 2000, BMP, GIF, PNM, OpenEXR, Radiance HDR,
    and camera files (with rawpy). Gray stays gray; palettes become RGB and CMYK becomes sRGB, with a note; of several
    images the first or main one is read, with a note. The EXIF orientation is applied to the pixels and set to upright
    in the block that is carried along.

    Args:
        path: the file.
        max_pixels: largest number of pixels; larger images are refused before memory is taken for them.
        keep_going: read what can be read of a truncated PNG or JPEG; what is lost is in ``losses`` of the image.

    Raises:
        ImageError: missing, no regular file, unreadable, empty, truncated, damaged, too large or no image; several
            pages; a color model or sample type that is not handled; float samples that are not finite or lie mostly
            outside [0, 1]; a package that is needed is missing.
    """
    path = Path(path)
    try:
        if (special := irregular_kind(path)) is not None:
            raise ImageError(f"{path}: not a regular file: {special}")
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise ImageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # a null character in the name
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: not a file name ({error})") from None
    if not head:
        raise ImageError(f"{path}: empty file")
    try:
        # Libraries warn about damaged metadata; the pixels decide, and each input gets one line.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path, head, max_pixels, keep_going)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except ImportError as error:
        raise ImageError(f"{path}: needs {error.name}: pip install 'tta-restore[io]'") from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it") from None
    except Exception as error:  # decoders raise whatever their parser stumbled over; all mean the same to the user
        raise ImageError(f"{path}: truncated or damaged ({one_line(error)})") from None


def _read(path: Path, head: bytes, max_pixels: int, keep_going: bool) -> Image:
    found = detect_format(head, path.suffix)
    if found is None:
        raise ImageError("not an image of a known format, nor a video")
    if found.kind == "video":
        raise ImageError(f"a video ({found.name}), not an image")
    if found.kind == "unsupported":
        raise ImageError(f"{found.name}: not read, export it as PNG or TIFF")
    if found.kind == "raw":
        return raw.develop_raw(path, found.name, max_pixels=max_pixels)
    if found.name == "TIFF":
        return tiff.read_tiff(path, max_pixels=max_pixels)
    _check_size(declared_size(head, found), max_pixels)
    content = path.read_bytes()
    _check_size(declared_size(content, found), max_pixels)
    if found.name == "EXR":
        return _checked_floats(exr.read_exr(path, content, max_pixels=max_pixels))
    if found.name == "Radiance HDR":
        return _checked_floats(exr.decode_radiance(content))
    if found.name == "PNM":
        return _checked_floats(netpbm.decode_netpbm(content))
    if found.name == "JPEG XL":
        return _read_jpeg_xl(content)
    if found.name == "JPEG 2000":
        return _read_jpeg_2000(content)
    if found.name == "HEIC":
        return _read_heic(content, max_pixels)
    if found.name == "AVIF" and boxes.avif_depth(content) > 8:
        return _read_deep_avif(content)
    if keep_going:
        return _salvage(content, found.name, max_pixels)
    return _decode(content, found.name, max_pixels)


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise ImageError(too_large(*size, max_pixels))


class _PillowLimit:
    """Lifts the limit that Pillow has for all threads of a process while any of them is in a ``with`` block."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._kept: int | None = None

    def __enter__(self) -> None:
        from PIL import Image as PilImage

        with self._lock:
            if self._inside == 0:
                self._kept, PilImage.MAX_IMAGE_PIXELS = PilImage.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        from PIL import Image as PilImage

        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                PilImage.MAX_IMAGE_PIXELS = self._kept


_pillow_limit = _PillowLimit()


def _open(content: bytes, kind: str, max_pixels: int) -> Any:
    """Open a file by Pillow's plugin of one format, past Pillow's own limit, which is not the caller's."""
    from PIL import Image as PilImage

    PilImage.init()
    factory, accept = PilImage.OPEN[_PILLOW[kind]]
    if accept is not None and not accept(content[:16]):
        raise SyntaxError("unknown header")
    picture = factory(io.BytesIO(content), "")
    _check_size(picture.size, max_pixels)
    return picture


def _decode(content: bytes, kind: str, max_pixels: int) -> Image:
    try:
        image = _decode_by_pillow(content, kind, max_pixels)
    except ImageError:
        if kind != "PNG" or len(samples := png.without_metadata(content)) == len(content):
            raise
        try:
            return _decode_by_pillow(content, kind, max_pixels, samples=samples)
        except ImageError:
            pass  # it was not the metadata
        raise
    with _pillow_limit:
        length = jpeg.compare_length(content) if kind == "JPEG" else 0
    if length < 0 or (kind == "JPEG" and jpeg.is_damaged(content)):
        raise ImageError("truncated or damaged JPEG: its samples end early, or cannot be decoded")
    if length > 0:
        return replace(image, notes=(*image.notes, "JPEG with samples behind its last row: damaged, or padded"))
    return image


def _decode_by_pillow(content: bytes, kind: str, max_pixels: int, *, samples: bytes | None = None) -> Image:
    """Return an image; `samples` is the file without metadata where Pillow refuses that."""
    with _pillow_limit:  # frames of a GIF and of an MPO are checked one by one
        return _decoded(content, kind, max_pixels, samples)


def _decoded(content: bytes, kind: str, max_pixels: int, samples: bytes | None) -> Image:
    if kind == "JPEG" and (process := jpeg.unsupported_process(content)) is not None:
        raise ImageError(f"{process}: not read, export it as PNG or TIFF")
    try:
        picture = _open(samples or content, kind, max_pixels)
    except ImageError:
        raise
    except (OSError, SyntaxError, struct.error, ValueError, IndexError, KeyError, TypeError) as error:
        raise ImageError(f"truncated or damaged {kind}: its header is incomplete ({one_line(error)})") from None
    notes: list[str] = []
    if (count := getattr(picture, "n_frames", 1)) > 1:
        name = "MPO" if picture.format == "MPO" else "animated PNG" if kind == "PNG" else kind
        notes.append(f"{name} of {count} images: the first one is read, the others are left out")
    icc = picture.info.get("icc_profile") or None
    if kind == "PNG":  # Pillow reads what lies behind the samples with these only
        profile, block = png.profile_and_exif(content, None if samples is None else notes)
        icc = icc if samples is None else profile
        block, orientation = exif.reset_orientation(block, notes)
    else:
        block, orientation = _exif_of(picture, notes)
    depth = 8
    header = png.read_header(content) if kind == "PNG" else None
    if header is not None and header.bit_depth == 16:
        depth = 16
    is_short = False
    transparent = picture.info.get("transparency")
    if header is not None and header.bit_depth in (2, 4) and isinstance(transparent, int) and header.color_type == 0:
        transparent *= 255 // (2**header.bit_depth - 1)  # as the decoder does with the samples
    try:
        if kind == "PNG" and depth == 16:
            array = png.decode_16_bit(samples or content)
        else:
            picture.load()
            if picture.mode in ("P", "PA"):
                if kind != "GIF":
                    notes.append("palette image: read as RGB")
                picture = picture.convert("RGBA" if transparent is not None or picture.mode == "PA" else "RGB")
                transparent = None
            elif picture.mode == "1":
                notes.append("1-bit image: read as 8-bit gray")
                picture = picture.convert("L")
            elif picture.mode not in (*_GRAY_MODES, "RGB", "RGBA", "CMYK"):
                raise ImageError(f"color mode {picture.mode}: convert it to RGB or gray first")
            array = np.asarray(picture)
            if kind == "PNG" and (header is None or header.is_interlaced or not array[-1].any()):
                is_short = png.ends_early(content)
            if picture.mode == "CMYK":  # Pillow has inverted Adobe's inks already
                array, note = color.cmyk_to_srgb(array, icc)
                notes.append(note)
                icc = None
    except (ImageError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"truncated or damaged {kind}: {one_line(error)}") from None
    if is_short:
        raise ImageError("truncated or damaged PNG: rows are missing")
    if array.ndim == 2:
        array = array[..., None]
    if transparent is not None and array.shape[2] in (1, 3):
        # One color is declared transparent: written out as alpha, which every format with alpha can hold.
        opaque = (array != np.asarray(transparent).reshape(-1)).any(-1, keepdims=True)
        array = np.concatenate([array, opaque.astype(array.dtype) * np.iinfo(array.dtype).max], axis=2)
    carried = _carried(content, kind, picture)
    notes += carried.pop("notes", [])
    if carried.pop("has_profile", False) and not picture.info.get("icc_profile"):
        notes.append("color profile of which parts are missing: left out, the samples are taken for sRGB")
    if orientation != 1:
        carried["xmp"] = exif.upright_xmp(carried.get("xmp"))
    if count == 1 and kind in _ENDS and (rest := _describe_rest(content[_ENDS[kind](content) :])):
        notes.append(f"behind the image in its file, left out: {rest}")
    return _image_of(array, orientation, bit_depth=depth, icc=icc, exif=block, notes=notes, **carried)


def _exif_of(picture: Any, notes: list[str]) -> tuple[bytes | None, int]:
    """Return the EXIF block of an opened file, set to upright, and the orientation of its pixels."""
    if picture.format != "AVIF":
        return exif.reset_orientation(picture.info.get("exif"), notes)
    try:  # the block in `info` is written anew where boxes demand another orientation
        *_, block, turned, _ = picture._decoder.get_info()
    except (AttributeError, ValueError):  # another version of Pillow
        return exif.reset_orientation(picture.info.get("exif"), notes)
    return exif.reset_orientation(block, notes)[0], turned


def _describe_rest(data: bytes) -> str:
    """Return what the bytes behind an image are, empty for padding."""
    if not data.strip(b"\0\xff\xd9"):  # the end of a JPEG image once more
        return ""
    found = detect_format(data[:4096])
    if found is None:
        return f"{len(data)} bytes of other data"
    return "a video, as of a motion photo" if found.kind == "video" else f"another image ({found.name}), as a gain map"


def _image_of(
    array: np.ndarray, orientation: int, *, notes: list[str], levels: int | None = None, **carried: Any
) -> Image:
    values = tensor_from_array(array, orientation, levels=levels)
    colors = 1 if len(values) <= 2 else 3
    alpha = values[colors:] if len(values) > colors else None
    return Image(pixels=values[:colors], alpha=alpha, notes=tuple(notes), **carried)


def _carried(content: bytes, kind: str, picture: Any) -> dict[str, Any]:
    """Return what a file carries next to samples, profile and EXIF."""
    found: dict[str, Any] = {}
    if kind == "PNG":
        return png.read_metadata(content)
    if kind == "JPEG":
        found = jpeg.read_metadata(content)
    elif picture.info.get("xmp"):
        found["xmp"] = bytes(picture.info["xmp"])
    elif kind == "GIF" and (packet := _GIF_XMP.search(content)) is not None:
        found["xmp"] = packet[1]
    if kind == "GIF" and picture.info.get("comment"):
        found["text"] = (("Comment", bytes(picture.info["comment"]).decode("utf-8", "replace")),)
    if kind == "AVIF":
        notes = [*boxes.further_boxes(content), *boxes.ignored_shapes(content)]
        found["cicp"], found["notes"] = boxes.color_numbers(content), notes
    if kind == "JPEG" and picture.info.get("jfif_unit") not in (1, 2):  # Pillow makes up 72 dots per inch then
        return found | {"resolution": exif.read_resolution(picture.info.get("exif"))}
    dpi = picture.info.get("dpi")
    if dpi and all(np.isfinite(float(value)) and 0 < float(value) < 1e6 for value in dpi):
        found["resolution"] = (float(dpi[0]), float(dpi[1]), 2)
    return found


def _salvage(content: bytes, kind: str, max_pixels: int) -> Image:
    """Read a file, or what can be read of it."""
    try:
        return _decode(content, kind, max_pixels)
    except ImageError:
        if kind == "JPEG":
            repaired = content + b"\xff\xd9"  # the end: the decoder fills the rest with gray
            lost = "truncated or damaged JPEG: the rest of the image is gray or garbled"
        elif kind == "PNG" and (rebuilt := png.repair(content)) is not None:
            repaired, fraction = rebuilt
            lost = f"truncated or damaged PNG: {fraction:.0%} of its rows are lost and black"
        else:
            raise
        image = _decode_by_pillow(repaired, kind, max_pixels)
        return replace(image, losses=(*image.losses, lost))


def _read_jpeg_xl(content: bytes) -> Image:
    import imagecodecs

    notes: list[str] = []
    array = np.asarray(imagecodecs.jpegxl_decode(content))
    if array.ndim == 4:  # the frames of an animation
        notes.append(f"JPEG XL of {len(array)} images: the first one is read, the others are left out")
        array = array[0]
    carried = boxes.jpeg_xl_metadata(content)
    notes += carried.pop("notes", [])
    header = jxl.read_code_stream(boxes.jpeg_xl_code_stream(content))
    if header is not None and header.encoding and not header.is_linear:
        notes.append(f"JPEG XL with {header.encoding}: left out, the samples are taken for sRGB")
    block, _ = exif.reset_orientation(carried.pop("exif", None), notes)  # the decoder has turned the pixels
    carried["xmp"] = exif.upright_xmp(carried.get("xmp"))
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        depth = 32
    else:
        depth = array.dtype.itemsize * 8
    is_linear = header is not None and header.is_linear
    image = _image_of(array, 1, bit_depth=depth, exif=block, notes=notes, is_linear=is_linear, **carried)
    return _checked_floats(image) if depth == 32 else image


def _read_jpeg_2000(content: bytes) -> Image:
    import imagecodecs

    notes: list[str] = []
    bits = boxes.jpeg_2000_size(content)[2]
    carried = boxes.jpeg_2000_metadata(content)
    notes += carried.pop("notes", [])
    block, _ = exif.reset_orientation(carried.pop("exif", None), notes)
    array = np.asarray(imagecodecs.jpeg2k_decode(content))
    if array.dtype.kind != "u" or not 1 <= bits <= 16 or (array.ndim == 3 and array.shape[2] > 4):
        raise ImageError("JPEG 2000 with other than unsigned gray or RGB samples of up to 16 bits")
    return _image_of(array, 1, bit_depth=8 if bits <= 8 else 16, levels=2**bits - 1, exif=block, notes=notes, **carried)


def _read_deep_avif(content: bytes) -> Image:
    import imagecodecs

    notes = [*boxes.further_boxes(content), *boxes.ignored_shapes(content)]
    array = np.asarray(imagecodecs.avif_decode(content))
    if array.ndim == 4:
        notes.append(f"AVIF of {len(array)} images: the first one is read, the others are left out")
        array = array[0]
    with _quiet_open(content, "AVIF") as picture:
        carried = {"icc": picture.info.get("icc_profile") or None, "xmp": picture.info.get("xmp") or None}
        block, orientation = _exif_of(picture, notes)
        if orientation != 1:
            carried["xmp"] = exif.upright_xmp(carried["xmp"])
    return _image_of(
        array, orientation, bit_depth=16, levels=2 ** boxes.avif_depth(content) - 1, exif=block, notes=notes,
        cicp=boxes.color_numbers(content), **carried
    )  # fmt: skip


def _quiet_open(content: bytes, kind: str) -> Any:
    return _open(content, kind, max_pixels=2**40)  # the size has been checked


def _read_heic(content: bytes, max_pixels: int) -> Image:
    try:
        import pillow_heif
    except ImportError:
        raise ImageError("HEIC: reading it needs pillow-heif: pip install 'tta-restore[heif]'") from None
    notes = boxes.further_boxes(content)
    file = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False)
    _check_size(file.size, max_pixels)
    if len(file) > 1:
        notes.append(f"HEIC of {len(file)} images: the main one is read, the others are left out")
    array = np.asarray(file)
    bits = int(file.info.get("bit_depth", 8))
    xmp: Any = file.info.get("xmp")
    # libheif has turned the pixels upright; the block may still say otherwise.
    block, _ = exif.reset_orientation(file.info.get("exif"), notes)
    return _image_of(
        array,
        1,
        bit_depth=8 if bits == 8 else 16,
        icc=file.info.get("icc_profile") or None,
        exif=block,
        xmp=exif.upright_xmp(xmp),
        cicp=boxes.color_numbers(content),
        notes=notes,
    )


def _checked_floats(image: Image) -> Image:
    planes = [image.pixels] if image.alpha is None else [image.pixels, image.alpha]
    broken = sum(int((~plane.isfinite()).sum()) for plane in planes)
    if broken:
        raise ImageError(f"{broken} of {sum(plane.numel() for plane in planes)} samples are NaN or infinite")
    outside = float(((image.pixels < 0) | (image.pixels > 1)).float().mean())
    if not outside:
        return image
    note = (
        f"high dynamic range: {outside:.2%} of the samples lie outside [0, 1]; they are restored from their clipped "
        "values, and what was clipped is added to the result"
    )
    return replace(image, notes=(*image.notes, note))
