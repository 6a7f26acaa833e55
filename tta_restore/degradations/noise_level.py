"""Blind estimation of the noise level from the diagonal Haar coefficients of the smoothest parts of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks

__all__ = ["estimate_noise"]

_BLOCK = 8  # Haar coefficients per side of a block, 16 pixels
_QUANTILE = 0.1
_BIAS = 1.08  # the quantile of noise alone lies this factor below its standard deviation
_CLIPPED = 0.5 / 255


def estimate_noise(image: Tensor) -> Tensor:
    """Estimate the standard deviation of white noise.

    The diagonal Haar coefficient of 2 x 2 pixels has the standard deviation of the noise and hardly any signal where an
    image is smooth. Blocks that touch 0 or 1 are left out, because clipping hides noise there; where
    noise makes most blocks touch, those that do least remain.

    Shape:
        - image: (B, C, H, W) in [0, 1], H and W at least 16
        - output: (B,), in [0, 1] values

    Raises:
        ValueError: the image is not (B, C, H, W) or smaller than 16 x 16.
    """
    checks.expect_shape("estimate_noise", "image", image, "(B, C, H, W)")
    if min(image.shape[-2:]) < 2 * _BLOCK:
        raise ValueError(f"estimate_noise: expected image (B, C, H, W) with H, W >= 16, got {tuple(image.shape)}")
    energy, _, usable = block_energy(image)
    energy = torch.where(usable, energy, torch.full_like(energy, math.nan)).flatten(1)
    return energy.nanquantile(_QUANTILE, dim=1).sqrt() * _BIAS


def block_energy(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the diagonal Haar energy, the mean value and whether nothing is clipped, of 16 x 16 blocks: (B, h, w)."""
    x = image.float()[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    energy = F.avg_pool2d(((a - b - c + d) / 2).square().mean(1, keepdim=True), _BLOCK)[:, 0]
    level = F.avg_pool2d(((a + b + c + d) / 4).mean(1, keepdim=True), _BLOCK)[:, 0]
    touched = ((x <= _CLIPPED) | (x >= 1 - _CLIPPED)).any(1, keepdim=True).float()
    share = F.avg_pool2d(touched, 2 * _BLOCK)[:, 0]
    share = share[..., : energy.shape[-2], : energy.shape[-1]]
    return energy, level, share <= share.flatten(1).quantile(0.3, dim=1)[:, None, None].clamp(min=0.01)
