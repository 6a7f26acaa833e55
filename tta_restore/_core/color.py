"""sRGB transfer curve (IEC 61966-2-1), luma, and gray images."""

from __future__ import annotations

import torch
from torch import Tensor

BT601 = (0.299, 0.587, 0.114)
_BT601_VIDEO = (65.738 / 256, 129.057 / 256, 25.064 / 256)  # the same weights in the 16..235 range of 8-bit video
_VIDEO_BLACK = 16 / 255
_COLORED = 1 / 255  # mean range of the channels from which an image is not gray


def srgb_to_linear(x: Tensor) -> Tensor:
    """Convert sRGB values in [0, 1] to linear light."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: Tensor) -> Tensor:
    """Convert linear light in [0, 1] to sRGB values."""
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def srgb_slope(x: Tensor) -> Tensor:
    """Return the derivative of :func:`srgb_to_linear` at sRGB values in [0, 1], by which the curve scales noise."""
    return torch.where(x <= 0.04045, 1 / 12.92, 2.4 / 1.055 * ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 1.4)


def luma(image: Tensor, weights: tuple[float, float, float] = BT601) -> Tensor:
    """Return the weighted sum of the three color channels. Shape: (..., 3, H, W) -> (..., 1, H, W)."""
    factors = torch.tensor(weights, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image * factors).sum(-3, keepdim=True)


def is_gray(image: Tensor) -> Tensor:
    """Return whether images in [0, 1] have one channel, or several that are equal. Shape: (..., C, H, W) -> (...)."""
    return (image.amax(-3) - image.amin(-3)).mean((-2, -1)) < _COLORED


def video_luma(image: Tensor) -> Tensor:
    """Return BT.601 luma in the 16..235 range of 8-bit video, the "Y channel" of the restoration literature.

    Shape: (..., 3, H, W) in [0, 1] -> (..., 1, H, W) in [16/255, 235/255].
    """
    return luma(image, _BT601_VIDEO) + _VIDEO_BLACK


def luma_8bit(image: Tensor) -> Tensor:
    """Return BT.601 luma of integers 0..255 in 15-bit fixed point, as image libraries compute it.

    Shape: (..., 3, H, W) int64 -> (..., 1, H, W) int64.
    """
    red, green, blue = image.split(1, -3)
    return (9798 * red + 19235 * green + 3735 * blue + 16384) >> 15
