"""Traces of JPEG compression in images whose DCT coefficients do not show it: smooth, saturated or noisy ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core.color import is_gray
from tta_restore.degradations._haar import haar, quads
from tta_restore.degradations.noise_correlation import estimate_noise_correlation

__all__ = ["detail_grid", "lacks_color", "zeros_grid"]

# How many more coefficients round to zero on the grid of the blocks than on others: a sign of compression, and proof
_ZEROS = (0.06, 0.09)
_FEW_BLOCKS, _FEW_ZEROS = 49, 0.6  # blocks, and fraction of zeros, up to which the grid is no proof
_BLOCKS = 256  # blocks per position of the grid that are looked at
# How much more detail there is across the borders of blocks than inside, relative, and in standard errors: a sign of
# compression, and proof
_DETAIL, _DETAIL_ERRORS = (0.04, 0.08), (5.0, 7.0)
_CAP = 3.0  # multiple of the median that the detail of a pixel counts at most: edges are few and strong
_NEAR = (-3, -2, -1, 1, 2, 3)  # neighbors of a border that it is compared with
# Noise is white if details in three directions and at two scales are as strong; in 1/255 from which it is looked for
_WHITE, _WHITE_SCALE, _MIN_NOISE = 1.4, 1.5, 3.0
_COLOR_NOISE = 0.3  # noise in differences of channels relative to that of luminance: 1.6 where channels are independent
_ROUNDING = 0.7  # detail in differences of channels by rounding
# Detail of colors at half the size relative to full size, and to nothing, above which colors were stored at half
_HALVED, _NO_DETAIL, _EVERYWHERE = 1.3, 0.1, 0.15
_MIN_LINES = 6  # borders of blocks that are enough to judge by


def zeros_grid(luma: Tensor, dct: Tensor, zero: float) -> tuple[float, list[tuple[int, int]]]:
    """Return the probability of a grid, and the two likeliest places of its first block: there most coefficients are 0.

    Args:
        luma: luminance of 255, (H, W).
        dct: matrix of the transform, (8, 8).
        zero: absolute value up to which a coefficient counts as zero.
    """
    shares = {}
    for top in range(8):
        for left in range(8):
            height, width = (side // 8 * 8 for side in (luma.shape[0] - top, luma.shape[1] - left))
            blocks = luma[top : top + height, left : left + width].unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1)
            blocks = blocks[torch.linspace(0, len(blocks) - 1, min(len(blocks), _BLOCKS)).long()]
            shares[top, left] = float(((dct @ blocks @ dct.T).abs() < zero).float().mean())
    places = sorted(shares, key=shares.__getitem__, reverse=True)
    if (luma.shape[0] // 8) * (luma.shape[1] // 8) <= _FEW_BLOCKS or shares[places[0]] <= _FEW_ZEROS:
        return 0.0, places[:2]
    excess = shares[places[0]] - shares[places[len(places) // 2]]
    return _position(excess, _ZEROS), places[:2]


def detail_grid(luma: Tensor) -> tuple[float, tuple[int, int]]:
    """Return the probability of a grid, and the place of its first block: quantization removes detail inside of blocks.

    Args:
        luma: luminance of 255, (H, W).
    """
    detail = haar(luma[:-1, :-1], luma[:-1, 1:], luma[1:, :-1], luma[1:, 1:])[0].abs()
    detail = detail.clamp(max=float(_CAP * detail.median() + 1))
    (rows, row_errors, top), (columns, column_errors, left) = _phase(detail.mean(1)), _phase(detail.mean(0))
    errors = (row_errors + column_errors) / 2**0.5
    return _position(min(rows, columns), _DETAIL) * _position(errors, _DETAIL_ERRORS), (top, left)


def lacks_color(image: Tensor) -> tuple[bool, bool]:
    """Return whether an image lacks detail in its colors, which are stored at half the size, and has noise elsewhere.

    The first is true of all images with subsampled colors that were not changed since. The second also asks for white
    noise in the luminance, which is a proof by itself, unless it may be noise that the channels share: that is in the
    colors at no size. Neither is true of gray images, which have no colors to lack.

    Args:
        image: (3, H, W) in [0, 1].
    """
    if min(image.shape[1:]) < 32 or is_gray(image):
        return False, False
    values = 255 * image
    luma = values.mean(0)
    coarse = F.avg_pool2d(luma[None], 2)[0]
    color = torch.stack([values[0] - values[1], values[2] - values[1]]) / 2**0.5
    fine = _blocks(haar(*quads(luma)), 8)
    half = 4 * _blocks(haar(*quads(coarse)), 4)  # an average of 4 pixels has a quarter of the variance
    colored = _blocks(haar(*quads(color))[0], 8).mean(0)
    halved = 4 * _blocks(haar(*quads(F.avg_pool2d(color[None], 2)[0]))[0], 4).mean(0)
    height, width = (min(sides) for sides in zip(fine.shape[1:], half.shape[1:], strict=True))
    fine, half, colored, halved = (part[..., :height, :width].flatten(-2) for part in (fine, half, colored, halved))
    smooth = fine[0].argsort()[: max(fine.shape[1] // 2, 4)]  # medians: a few of them have edges
    diagonal, across, down = fine[:, smooth].median(1).values.sqrt().tolist()
    coarser, level = (float(part[smooth].median().sqrt()) for part in (half[0], colored))
    halved_level = float(halved[smooth].quantile(_EVERYWHERE).sqrt())  # content has colors in some places only
    white = max(across, down) < _WHITE * diagonal and coarser < _WHITE_SCALE * diagonal
    lacking = level < _COLOR_NOISE * diagonal
    noisy = lacking and white and diagonal > _MIN_NOISE
    if noisy and halved_level <= _HALVED * level + _NO_DETAIL:
        noisy = estimate_noise_correlation(image).between_channels == 0
    return lacking or level < _ROUNDING, noisy


def _phase(detail: Tensor) -> tuple[float, float, int]:
    """Return by how much the mean detail of every eighth row exceeds its neighbors', in standard errors, and the first.

    A row of detail is the difference of two rows of pixels. What other rows of eight exceed theirs by is subtracted:
    the filter of a sensor repeats after two pixels.
    """
    excesses, errors = [], []
    for phase in range(8):
        places = torch.arange(phase, len(detail), 8)
        places = places[(places >= 3) & (places < len(detail) - 3)]
        if len(places) < _MIN_LINES:
            return 0.0, 0.0, 0
        near = torch.stack([detail[places + k] for k in _NEAR]).mean(0)
        more = detail[places] - near
        excesses.append(float(more.mean() / detail.mean().clamp(min=1e-6)))
        errors.append(float(more.mean() / (more.std() / len(more) ** 0.5).clamp(min=1e-6)))
    best, other = sorted(range(8), key=excesses.__getitem__, reverse=True)[:2]
    excess = excesses[best] - max(excesses[other], 0.0)
    return excess, errors[best], (best + 1) % 8


def _blocks(coefficients: Tensor, size: int) -> Tensor:
    """Return the mean energy of blocks of coefficients."""
    return F.avg_pool2d(coefficients.square()[None], size)[0]


def _position(value: float, between: tuple[float, float]) -> float:
    low, high = between
    return min(max((value - low) / (high - low), 0.0), 1.0)
