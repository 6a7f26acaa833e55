"""A picture with everything a file said about it, so that what was not restored can be written back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


class ImageError(ValueError):
    """A file cannot be read or written as an image; the message is one line that begins with the path."""


@dataclass(frozen=True)
class Image:
    """Pixels as a restorer wants them, and what the file carried beside them.

    Shape:
        - pixels: (C, H, W), float32 in [0, 1], C = 3 (RGB) or 1 (gray), upright
        - alpha: (1, H, W), float32 in [0, 1], or `None`

    Args:
        bit_depth: of the file: 8, 16, or 32 for float.
        icc: the color profile, `None` when there was none.
        exif: the EXIF block with its orientation set to upright, `None` when there was none.
        resolution: dots per unit in x and y and the TIFF unit code, of TIFF files.
        premultiplied: the pixels are multiplied by alpha already (associated alpha, TIFF only).
        notes: remarks for the user, a line each: what was converted on reading, what was left out.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bit_depth: int = 8
    icc: bytes | None = None
    exif: bytes | None = None
    resolution: tuple[float, float, int] | None = None
    premultiplied: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[0] not in (1, 3):
            raise ValueError(f"Image: expected pixels of shape (3 or 1, H, W), got {tuple(self.pixels.shape)}")
        size = self.pixels.shape[1:]
        if self.alpha is not None and self.alpha.shape != (1, *size):
            raise ValueError(f"Image: expected alpha of shape {(1, *size)}, got {tuple(self.alpha.shape)}")

    def as_rgb(self, *, bit_depth: int | None = None) -> Tensor:
        """The pixels with three channels, a gray image repeating its own. Shape: (3, H, W).

        Args:
            bit_depth: 8 cuts the lower bits of an image of more off, as image readers do that know 8 bits only, and as
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
        """The same file with other pixels: a gray image takes the mean of the three channels; alpha grows with a scale.

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
        return replace(self, pixels=pixels, alpha=alpha)


def tensor_from_array(array: np.ndarray, orientation: int = 1) -> Tensor:
    """An upright float tensor from an array of unsigned integers or floats. Shape: (H, W) or (H, W, C) -> (C, H, W)."""
    if array.ndim == 2:
        array = array[..., None]
    array = upright(array, orientation)
    levels = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    # Reordered while the samples are still small: a float copy of a large photograph is hundreds of megabytes.
    planar = np.ascontiguousarray(array.transpose(2, 0, 1))
    pixels = torch.from_numpy(planar.astype(np.float32))
    return pixels.div_(levels) if levels != 1 else pixels


def array_from_tensors(pixels: Tensor, alpha: Tensor | None, bit_depth: int) -> np.ndarray:
    """The samples to be written: rounded to 8 or 16 bits, or floats at 32. Shape: (C, H, W) -> (H, W, C) or (H, W)."""
    planes = [*pixels, *(alpha if alpha is not None else ())]
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[bit_depth]
    array = np.empty((*pixels.shape[1:], len(planes)), dtype)
    for channel, plane in enumerate(planes):
        plane = plane.detach().float().cpu().clamp(0, 1)
        if bit_depth != 32:
            plane = plane.mul_(2**bit_depth - 1).round_()
        array[..., channel] = plane.numpy()
    return array if len(planes) > 1 else array[..., 0]


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image as its EXIF orientation (1 to 8) asks.

    Shape: (H, W, ...) -> (H, W, ...), or (W, H, ...) from orientation 5 on.
    """
    if orientation >= 5:  # stored with rows and columns exchanged
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
