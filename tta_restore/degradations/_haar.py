"""Haar coefficients, which show noise where content is smooth, and the pixels where clipping hides it."""

from __future__ import annotations

import torch
from torch import Tensor

_CLIPPED = 0.5 / 255
BAND_ROWS, MAX_PIXELS = 64, 4_000_000  # rows of a band; pixels above which bands of rows stand for an image


def quads(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four pixels of each 2 x 2 square of (..., H, W), row by row: four of (..., H // 2, W // 2)."""
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    return x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]


def haar(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return the diagonal, horizontal and vertical coefficients of squares of pixels, (3, ...)."""
    return torch.stack([a - b - c + d, a - b + c - d, a + b - c - d]) / 2


def bands(image: Tensor) -> Tensor:
    """Return evenly spaced bands of rows of a large image, which bounds time and memory; smaller ones unchanged."""
    height, width = image.shape[-2:]
    count = MAX_PIXELS // (BAND_ROWS * width)
    if height * width <= MAX_PIXELS or count < 1:
        return image
    starts = [round(i * (height - BAND_ROWS) / max(count - 1, 1)) for i in range(count)]
    return torch.cat([image[:, start : start + BAND_ROWS] for start in starts], 1)


def is_clipped(x: Tensor) -> Tensor:
    """Return which values in [0, 1] are black or white."""
    return (x <= _CLIPPED) | (x >= 1 - _CLIPPED)
