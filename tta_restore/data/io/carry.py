"""Decide what of an image's metadata a format carries, and name what it cannot."""

from __future__ import annotations

from dataclasses import replace

from tta_restore.data.io import color
from tta_restore.data.io.pixels import Image

__all__ = ["fit_format", "strip_metadata"]

# What a format holds next to the samples, besides its own entries; the rest is named in a note.
_CARRIES = {
    "png": {"icc", "exif", "xmp", "text", "gamma", "cicp", "resolution"},
    "jpeg": {"icc", "exif", "xmp", "iptc", "comment", "resolution"},
    "tiff": {"icc", "exif", "xmp", "iptc", "resolution"},
    "webp": {"icc", "exif", "xmp"},
    "avif": {"icc", "exif", "xmp", "cicp"},
    "jxl": {"exif", "xmp"},
    "exr": set(),
}
_ENTRIES = {"png": "PNG chunks", "tiff": "TIFF tags", "exr": "EXR attributes"}
_LARGEST_SEGMENT = 65000  # bytes of one JPEG segment
_SHOWN = 8  # names in one note
_UNBOUNDED = (("exr", 16), ("exr", 32), ("tiff", 32))  # formats and depths of samples beyond [0, 1]
_HALF_LEVEL = 0.5 / 255


def strip_metadata(image: Image) -> Image:
    """Return an image without EXIF, XMP, IPTC, text, resolution and entries of its format, but those on color."""
    extras = tuple(extra for extra in image.extras if extra.is_color)
    return replace(image, exif=None, xmp=None, iptc=None, text=(), resolution=None, extras=extras)


def fit_format(image: Image, kind: str, depth: int, *, embeds_exif: bool = True) -> tuple[Image, list[str]]:
    """Return an image as a format holds it, and a line for each part that it cannot hold.

    Args:
        image: what is going to be written.
        kind: one of :data:`tta_restore.data.io.image_writer.FORMATS`.
        depth: bits per sample in the file.
        embeds_exif: whether the writer adds EXIF, for which a TIFF file has to fit into memory.
    """
    notes: list[str] = []
    given, cicp = image, image.cicp
    carries = _CARRIES[kind] if (kind, depth) != ("avif", 16) else _CARRIES[kind] - {"icc"}  # imagecodecs takes none
    if kind == "exr":
        if not image.is_linear:
            image = color.to_linear(image)
    elif image.is_linear:
        image = color.to_srgb(image)
    elif (image.icc and "icc" not in carries) or (image.gamma and "gamma" not in carries):
        what = "color profile" if image.icc else "gamma (gAMA)"
        if not color.is_srgb(image):
            notes.append(f"{what}: converted to sRGB, which {kind.upper()} is written in")
        image = color.to_srgb(image)
    has_range = not (given.icc or given.gamma) if kind == "exr" else image.pixels is given.pixels
    if not (has_range and (kind, depth) in _UNBOUNDED) and (outside := _fraction_outside(given)):
        notes.append(f"{outside:.2%} of the samples lie outside [0, 1]: clipped, {kind.upper()} is written in sRGB")
    lost = {
        "EXIF": image.exif and "exif" not in carries,
        "XMP": image.xmp and "xmp" not in carries,
        "IPTC": image.iptc and "iptc" not in carries,
        "cICP": cicp and "cicp" not in carries,
        "resolution (DPI)": image.resolution and "resolution" not in carries,
    }
    notes += [f"{name} left out: {kind.upper()} is written without it" for name, is_lost in lost.items() if is_lost]
    if image.text and "text" not in carries:
        comments = [value for keyword, value in image.text if keyword == "Comment"]
        kept = comments[:1] if "comment" in carries else []
        if rest := [keyword for keyword, value in image.text if not (keyword == "Comment" and value in kept)]:
            notes.append(f"text left out: {_names(rest)}")
    for source, label in _ENTRIES.items():
        if names := [extra.name for extra in image.extras if extra.format == source != kind and not extra.is_default]:
            notes.append(f"{label} left out: {_names(names)}")
    if kind == "jpeg":
        image = _fit_segments(image, notes)
    if kind == "tiff" and image.exif and not embeds_exif:
        notes.append("EXIF left out: a TIFF file of this size is written without it")
        image = replace(image, exif=None)
    return image, notes


def _fraction_outside(image: Image) -> float:
    """Return the fraction of float samples that lie outside [0, 1] by more than 8 bits show."""
    if image.bit_depth != 32:
        return 0.0
    return float(((image.pixels < -_HALF_LEVEL) | (image.pixels > 1 + _HALF_LEVEL)).float().mean())


def _fit_segments(image: Image, notes: list[str]) -> Image:
    """Return an image without the blocks that exceed a JPEG segment."""
    sizes = {"EXIF": len(image.exif or b""), "XMP": len(image.xmp or b""), "IPTC": len(image.iptc or b"")}
    large = {name for name, size in sizes.items() if size > _LARGEST_SEGMENT}
    notes += [f"{name} left out: {sizes[name]} bytes, more than JPEG holds" for name in sorted(large)]
    return replace(
        image,
        exif=None if "EXIF" in large else image.exif,
        xmp=None if "XMP" in large else image.xmp,
        iptc=None if "IPTC" in large else image.iptc,
    )


def _names(names: list[str]) -> str:
    """Return the first names of a list, each once, in one line."""
    distinct = list(dict.fromkeys(names))
    rest = len(distinct) - _SHOWN
    return ", ".join(distinct[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
