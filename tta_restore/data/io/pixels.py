"""An image with everything its file carried, so that what was not restored can be written back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Extra",
    "Image",
    "ImageError",
    "apply_orientation",
    "array_from_tensors",
    "one_line",
    "tensor_from_array",
    "too_large",
]


class ImageError(ValueError):
    """A file cannot be read or written as an image; the message is one line that begins with the path."""


@dataclass(frozen=True)
class Extra:
    """An entry of a file that only its own format has: a PNG chunk, a TIFF tag, an EXR attribute.

    Args:
        format: ``"png"``, ``"tiff"`` or ``"exr"``.
        name: of the entry, for messages.
        value: as the writer of the format takes it.
        is_color: whether it describes colors, and stays when metadata is left out.
        is_default: whether it states what other formats assume without it.
        is_sized: whether it counts pixels, and is wrong for an enlarged image.
    """

    format: str
    name: str
    value: Any
    is_color: bool = False
    is_default: bool = False
    is_sized: bool = False


@dataclass(frozen=True)
class Image:
    """Pixels as a restorer wants them, and what the file carried with them.

    Shape:
        - pixels: (C, H, W), float32, C = 3 (RGB) or 1 (gray), upright. In [0, 1], except for float samples of high
          dynamic range
        - alpha: (1, H, W), float32 in [0, 1], or `None`

    Args:
        bit_depth: bits per sample of the file: 8, 16 (from 9 bits on), or 32 for float.
        icc: the color profile, `None` when there was none.
        exif: the EXIF block with its orientation set to upright, `None` when there was none.
        xmp: the XMP packet, `None` when there was none.
        iptc: the IPTC-IIM records, `None` when there were none.
        text: keyword and text of each PNG text chunk; a JPEG comment has the keyword "Comment".
        gamma: exponent that a PNG file declares for its samples (gAMA), `None` when there was none.
        cicp: numbers of primaries, transfer curve, matrix and range of a PNG file (cICP).
        resolution: dots per unit in x and y and the TIFF unit code (1 none, 2 inch, 3 centimeter).
        premultiplied: the pixels are multiplied by alpha already (associated alpha, TIFF and EXR).
        is_linear: the samples are linear light (EXR, Radiance HDR), not sRGB-encoded.
        is_half: the float samples have 16 bits (EXR).
        extras: entries that only the format of the file has; they are written back to the same format.
        notes: messages for the user, a line each: what was converted on reading, what was left out.
        losses: messages about parts of a damaged file that could not be read.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bit_depth: int = 8
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    text: tuple[tuple[str, str], ...] = ()
    gamma: float | None = None
    cicp: tuple[int, int, int, int] | None = None
    resolution: tuple[float, float, int] | None = None
    premultiplied: bool = False
    is_linear: bool = False
    is_half: bool = False
    extras: tuple[Extra, ...] = ()
    notes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[0] not in (1, 3):
            raise ValueError(f"Image: expected pixels of shape (3 or 1, H, W), got {tuple(self.pixels.shape)}")
        size = self.pixels.shape[1:]
        if self.alpha is not None and self.alpha.shape != (1, *size):
            raise ValueError(f"Image: expected alpha of shape {(1, *size)}, got {tuple(self.alpha.shape)}")

    def as_rgb(self, *, bit_depth: int | None = None) -> Tensor:
        """Return the samples with three channels; a gray image repeats its own. Shape: (3, H, W).

        Color profiles are not applied; :func:`tta_restore.data.io.color.to_model_space` does that.

        Args:
            bit_depth: 8 cuts the lower bits of images with more bits, as readers do that support 8 bits only, and as
                results on 8 bits were published; None keeps all of them.

        Raises:
            ValueError: ``bit_depth`` is something else.
        """
        if bit_depth not in (None, 8):
            raise ValueError(f"Image.as_rgb: expected bit_depth to be 8 or None, got {bit_depth}")
        pixels = self.pixels
        if bit_depth == 8 and self.bit_depth > 8:
            pixels = (pixels * 65535).round().div(256, rounding_mode="floor") / 255
        return pixels.expand(3, -1, -1)

    def with_rgb(self, pixels: Tensor) -> Image:
        """Return the same file with other pixels: a gray image takes the mean of the channels; alpha is enlarged, too.

        Shape: pixels (3, s*H, s*W) for an integer s >= 1.

        Raises:
            ValueError: the size is not a multiple of this image's.
        """
        height, width = self.pixels.shape[1:]
        scale = pixels.shape[-1] // width
        if pixels.ndim != 3 or scale < 1 or pixels.shape != (3, scale * height, scale * width):
            raise ValueError(
                f"Image.with_rgb: expected shape (3, s*{height}, s*{width}) with an integer s, "
                f"got {tuple(pixels.shape)}"
            )
        alpha = self.alpha
        if alpha is not None and scale > 1:
            alpha = torch.nn.functional.interpolate(alpha[None], scale_factor=scale, mode="bilinear")[0]
        if self.pixels.shape[0] == 1:
            pixels = pixels.mean(0, keepdim=True)
        return replace(self.without_sized(scale), pixels=pixels, alpha=alpha)

    def without_sized(self, scale: int) -> Image:
        """Return the image without entries that count pixels, named in a note, if it is enlarged."""
        sized = [extra.name for extra in self.extras if extra.is_sized]
        if scale == 1 or not sized:
            return self
        note = f"left out, since the image is {scale} times as large: {', '.join(sized)}"
        extras = tuple(extra for extra in self.extras if not extra.is_sized)
        return replace(self, extras=extras, notes=(*self.notes, note))


def tensor_from_array(array: np.ndarray, orientation: int = 1, *, levels: int | None = None) -> Tensor:
    """Return an upright float tensor from an array of unsigned integers or floats.

    Args:
        array: the samples.
        orientation: EXIF orientation, 1 to 8.
        levels: the largest sample, None for that of the integer type.

    Shape: (H, W) or (H, W, C) -> (C, H, W).
    """
    if array.ndim == 2:
        array = array[..., None]
    array = apply_orientation(array, orientation)
    levels = levels or (np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1)
    # Reordered while the samples are still small: a float copy of a large photo is hundreds of megabytes.
    planar = np.ascontiguousarray(array.transpose(2, 0, 1))
    pixels = torch.from_numpy(planar.astype(np.float32))
    return pixels.div_(levels) if levels != 1 else pixels


def array_from_tensors(
    pixels: Tensor, alpha: Tensor | None, bit_depth: int, *, levels: int | None = None
) -> np.ndarray:
    """Return the samples to be written: rounded to 8 or 16 bits, or floats at 32.

    Args:
        pixels: color channels.
        alpha: alpha channel, if any.
        bit_depth: 8, 16 or 32.
        levels: the largest integer sample, None for that of the type.

    Shape: (C, H, W) -> (H, W, C) or (H, W).
    """
    planes = [*pixels, *(alpha if alpha is not None else ())]
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[bit_depth]
    array = np.empty((*pixels.shape[1:], len(planes)), dtype)
    for channel, plane in enumerate(planes):
        plane = plane.detach().float().cpu()
        if bit_depth != 32:
            plane = plane.clamp(0, 1).mul_(levels or 2**bit_depth - 1).round_()
        array[..., channel] = plane.numpy()
    return array if len(planes) > 1 else array[..., 0]


def apply_orientation(array: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror an image as its EXIF orientation (1 to 8) demands.

    Shape: (H, W, ...) -> (H, W, ...), or (W, H, ...) from orientation 5 on.
    """
    if orientation >= 5:  # stored with rows and columns exchanged
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def one_line(error: BaseException) -> str:
    """Return the message of a library's exception as one line of at most 160 characters."""
    content = error.args[0] if len(error.args) == 1 else None
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(error)
    text = " ".join(text.split())
    return text[:160] if text else type(error).__name__


def too_large(width: int, height: int, max_pixels: int) -> str:
    """Return the message on an image that declares more pixels than the limit."""
    return (
        f"declares {width} x {height} = {_millions(width * height)} pixels, above the limit of "
        f"{_millions(max_pixels)}: raise it by max_pixels (--max-pixels {width * height})"
    )


def _millions(count: int) -> str:
    if count < 1e5:
        return str(count)
    return f"{count / 1e6:.0f} million" if count >= 1e9 else f"{count / 1e6:.4g} million"
