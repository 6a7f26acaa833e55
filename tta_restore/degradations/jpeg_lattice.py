"""Blind reading of JPEG compression: decoded DCT coefficients lie on the lattice of the quantization steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.degradations.jpeg import quality_tables

__all__ = ["JpegReading", "estimate_jpeg"]

_ROUNDING = 0.4  # standard deviation of a DCT coefficient by rounding of luminance and RGB after decoding, of 255
_OUTLIER = 0.05  # fraction of coefficients that clipping and chroma move off the lattice
_BLOCKS = 1024  # blocks that are looked at
_SIDE = 2048  # of the center of larger images, pixels, in which these lie
_QUALITIES = torch.arange(2.0, 98.0, dtype=torch.float32, device="cpu")
_CERTAIN = 0.25  # gain in log-likelihood per informative coefficient that counts as proof; chance stays below 0.05


@dataclass(frozen=True)
class JpegReading:
    """JPEG compression of an image: probability, quality, and position of its grid.

    Attributes:
        probability: 1 where the image was compressed for certain, 0 where no trace is visible.
        quality: quality setting of libjpeg, 100 without compression.
        quality_std: uncertainty of ``quality``.
        tables: quantization tables (2, 64).
        offset: row and column of the first full 8 x 8 block.
    """

    probability: float
    quality: float
    quality_std: float
    tables: Tensor
    offset: tuple[int, int]


def estimate_jpeg(image: Tensor) -> JpegReading:
    """Read the JPEG quality of an image that was not changed since it was decoded, except by cropping.

    Each hypothesis is a quality of libjpeg. A DCT coefficient c gains ``log(T N(e; 0, s))`` against a continuous
    distribution, with the step T, the distance e to the nearest multiple of T and the rounding noise s.

    Shape:
        - image: (1 or 3, H, W) in [0, 1], H and W at least 16

    Raises:
        ValueError: the image has another shape or is smaller than 16 x 16.
    """
    checks.expect_shape("estimate_jpeg", "image", image, "(C, H, W)")
    if image.shape[0] not in (1, 3) or min(image.shape[1:]) < 16:
        raise ValueError(f"estimate_jpeg: expected image (1 or 3, H, W) with H, W >= 16, got {tuple(image.shape)}")
    # blocks keep their place on the grid
    top, left = (max(0, side - _SIDE) // 2 // 8 * 8 for side in image.shape[1:])
    values = image[:, top : top + _SIDE, left : left + _SIDE].detach().float().cpu()
    luma = values[0] if len(values) == 1 else torch.einsum("chw,c->hw", values, torch.tensor([0.299, 0.587, 0.114]))
    luma = luma * 255 - 128
    clipped = ((values <= 0.5 / 255) | (values >= 1 - 0.5 / 255)).any(0)
    best, gains, offset = -math.inf, torch.zeros(len(_QUALITIES)), (0, 0)
    for place in dict.fromkeys([(0, 0), *_grids(luma)]):
        found = _gains(luma[place[0] :, place[1] :], clipped[place[0] :, place[1] :])
        if float(found.max()) > best:
            best, gains, offset = float(found.max()), found, place
    index = int(gains.argmax())
    probability = min(max((best - 0.05) / (_CERTAIN - 0.05), 0.0), 1.0)
    quality = float(_QUALITIES[index])
    near = gains > best - 0.05 * abs(best)  # qualities with nearly the same tables
    spread = float((_QUALITIES[near] - quality).abs().max()) if probability > 0 else 50.0
    tables = quality_tables(torch.tensor([quality]))[0]
    return JpegReading(probability, quality if probability > 0 else 100.0, max(spread, 0.5), tables, offset)


def _grids(luma: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of the likely first blocks: there most coefficients are rounded to zero."""
    dct, shares = _dct_matrix(), {}
    for top in range(8):
        for left in range(8):
            height, width = (side // 8 * 8 for side in (luma.shape[0] - top, luma.shape[1] - left))
            blocks = luma[top : top + height, left : left + width].unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1)
            blocks = blocks[torch.linspace(0, len(blocks) - 1, min(len(blocks), _BLOCKS // 4)).long()]
            shares[top, left] = float(((dct @ blocks @ dct.T).abs() < 1.5 * _ROUNDING).float().mean())
    return sorted(shares, key=shares.__getitem__, reverse=True)[:2]


def _gains(luma: Tensor, clipped: Tensor) -> Tensor:
    """Return the mean gain per informative coefficient of each quality, (Q,)."""
    height, width = (side // 8 * 8 for side in luma.shape)
    if not height or not width:
        return torch.zeros(len(_QUALITIES))
    blocks, touched = (part[:height, :width].unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1) for part in (luma, clipped))
    blocks = blocks[~touched.any((1, 2))]  # clipping moves all coefficients of a block
    if not len(blocks):
        return torch.zeros(len(_QUALITIES))
    blocks = blocks[torch.linspace(0, len(blocks) - 1, min(len(blocks), _BLOCKS)).long()]
    dct = _dct_matrix()
    coefficients = (dct @ blocks @ dct.T).flatten(1)
    informative = coefficients.abs() > 3 * _ROUNDING
    informative[:, 0] = False  # the mean of a block lies on its lattice whatever the scene
    count = int(informative.sum())
    if count < 50:
        return torch.zeros(len(_QUALITIES))
    gains = []
    for steps in quality_tables(_QUALITIES)[:, 0].float():
        error = coefficients - (coefficients / steps).round() * steps
        density = torch.exp(-error.square() / (2 * _ROUNDING**2)) * steps / (_ROUNDING * math.sqrt(2 * math.pi))
        # a step below the rounding noise explains everything and is no evidence
        gain = torch.log((1 - _OUTLIER) * density + _OUTLIER).clamp(max=4) * (steps > 4 * _ROUNDING)
        gains.append((gain * informative).sum() / count)
    return torch.stack(gains)


def _dct_matrix() -> Tensor:
    index = torch.arange(8.0)
    matrix = torch.cos(math.pi / 8 * (index + 0.5)[None] * index[:, None]) * 0.5
    matrix[0] /= math.sqrt(2)
    return matrix
