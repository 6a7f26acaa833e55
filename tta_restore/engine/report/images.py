"""Encode images for reports, put several side by side, and find the part of an image that is worth showing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PilImage
from torch import Tensor

__all__ = ["contact_sheet", "crop", "find_most_changed", "kernel_overlap", "kernel_sheet", "png_uri", "to_bytes"]

_GAP = 4
_POSITIONS = 4  # of a part per side length


def contact_sheet(tiles: Sequence[Tensor], *, columns: int) -> Tensor:
    """Lay images of one size out in rows, on white.

    Shape: each (3, H, W) or (1, H, W) in [0, 1] -> (3, R * (H + 4) - 4, columns * (W + 4) - 4), on the CPU.
    """
    height, width = tiles[0].shape[-2:]
    rows = -(-len(tiles) // columns)
    canvas = torch.ones(3, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        canvas[:, top : top + height, left : left + width] = tile.detach().float().cpu().clamp(0, 1)
    return canvas


def png_uri(image: Tensor) -> str:
    """Return an image as a `data:` URI, lossless at 8 bits. Shape: (3, H, W) or (1, H, W) in [0, 1], or uint8."""
    if image.dtype != torch.uint8:
        image = to_bytes(image)
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    stream = io.BytesIO()
    PilImage.fromarray(array if array.shape[2] == 3 else array[..., 0]).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def to_bytes(image: Tensor) -> Tensor:
    """Rounded to 8 bits, as it is shown. Any shape, [0, 1] -> uint8."""
    return (image.detach().float().clamp(0, 1) * 255).round().byte().cpu()


def kernel_sheet(kernels: Tensor, *, gap: int = 2) -> Tensor:
    """Point spread functions laid out as they lie in the frame, each stretched to its own brightest value.

    Shape: (G, G, K, K) -> (3, G*K + (G+1)*gap, same), uint8, dark on white.
    """
    rows, columns, size, _ = kernels.shape
    # The square root shows the faint outer parts that decide how a lens looks.
    shades = (kernels / kernels.amax((-2, -1), keepdim=True).clamp(min=1e-12)).clamp(0, 1).sqrt().cpu().numpy()
    step = size + gap
    sheet = np.ones((rows * step + gap, columns * step + gap, 3), np.float32) * np.array([0.85, 0.88, 0.91], np.float32)
    ink = np.array([0.0, 0.30, 0.48], np.float32)
    for row in range(rows):
        for column in range(columns):
            tile = shades[row, column][..., None]
            top, left = gap + row * step, gap + column * step
            sheet[top : top + size, left : left + size] = 1 - tile * (1 - ink)
    return torch.from_numpy((sheet * 255).round().astype(np.uint8)).permute(2, 0, 1)


def kernel_overlap(estimated: Tensor, true: Tensor) -> float:
    """Share of the light that two sets of kernels send to the same pixels, mean over the frame: 1 when equal.

    Shape: both (G, G, K, K), each kernel summing to 1. Different K are compared about their centers.
    """
    size = max(estimated.shape[-1], true.shape[-1])

    def grown(kernels: Tensor) -> Tensor:
        margin = (size - kernels.shape[-1]) // 2
        return F.pad(kernels, (margin, margin, margin, margin))

    return float(torch.minimum(grown(estimated), grown(true)).sum((-2, -1)).mean())


def find_most_changed(before: Tensor, after: Tensor, side: int) -> tuple[int, int, int, int] | None:
    """Return the part (top, left, H, W) where two images differ most; None where the whole is no larger than a part.

    Args:
        before: (3, H, W).
        after: (3, H, W).
        side: longest side of the part in pixels.
    """
    height, width = (min(side, length) for length in before.shape[-2:])
    if (height, width) == tuple(before.shape[-2:]):
        return None
    step = max(side // _POSITIONS, 1)
    difference = (after - before).abs().mean(0, keepdim=True)
    mean = F.avg_pool2d(difference, (height, width), step)
    row, column = divmod(int(mean.argmax()), mean.shape[-1])
    return row * step, column * step, height, width


def crop(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Return the part (top, left, H, W) of an image (C, H, W)."""
    top, left, height, width = box
    return image[:, top : top + height, left : left + width]
