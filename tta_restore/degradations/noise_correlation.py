"""Blind estimation of what noise shares with neighboring pixels and other channels, from the smoothest blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.degradations._haar import bands, haar, is_clipped, quads
from tta_restore.degradations.noise import filter_taps

__all__ = ["NoiseCorrelation", "estimate_noise_correlation", "haar_energies", "noise_of_mean", "unevenness"]

_BLOCK = 8  # Haar coefficients per side of a block, 16 pixels
_QUANTILE = 0.1
_MIN_BLOCKS, _INSIDE = 10, 0.5  # blocks that an estimate needs, and the part of each that must not be clipped
_MIN_STD = 2.0 / 255
# What all channels share is noise if, in the smoothest of the blocks, it is as strong in every direction, and at least
# half of the blocks hold little more of it; ratios of standard deviations
_SMOOTHEST, _SMOOTHEST_BIAS, _WHITE, _EVEN, _MIN_CORRELATION = 0.2, 1.16, 1.2, 1.35, 0.15
# Differences of channels are noise if three tenths of the blocks hold little more of it than the smoothest, at full and
# at half size, and a Gaussian filter explains the energies; root mean square of the logarithms. The smoothest quarter
# gives the filter; noise that is weaker, or less strong along axes relative to the diagonal, counts as white.
_SMOOTH, _EVEN_DIFFERENCES, _MISFIT, _QUARTER, _QUARTER_BIAS = 0.3, (1.15, 1.25), 0.25, 0.25, 1.035
_MIN_FILTERED, _MIN_AXIAL = 3.0 / 255, 1.6
_FILTERS, _WIDEST = 26, 1.25  # filters that are compared, and the standard deviation of the last in pixels


@dataclass(frozen=True)
class NoiseCorrelation:
    """Estimated correlation of the noise of an image, between channels and between pixels.

    Attributes:
        std: standard deviation in [0, 1] values; 0 where neither correlation was found.
        between_channels: correlation of two channels in [0, 1], 1 for gray images; 0 where none was found.
        between_pixels: standard deviation in pixels of the Gaussian filter of :class:`Noise`, 0 for white noise; None
            where it is not certain.
    """

    std: float
    between_channels: float
    between_pixels: float | None


def estimate_noise_correlation(image: Tensor) -> NoiseCorrelation:
    """Estimate how noise correlates between neighboring pixels and between channels.

    Demosaicking and resizing correlate neighbors. Content is mostly the same in all channels, so that their differences
    show how. Film grain and cameras that remove color noise leave noise that all channels share, which content is, too:
    noise is as strong in all directions and in all blocks, fine content hardly is.

    Shape:
        - image: (C, H, W) in [0, 1], C = 1 or 3

    Raises:
        ValueError: the image has another shape.
    """
    checks.expect_shape("estimate_noise_correlation", "image", image, "(C, H, W)")
    shared, own = _block_energies(image)
    if shared.shape[1] < _MIN_BLOCKS:
        return NoiseCorrelation(0.0, 0.0, None)
    own_std, pixels = _filter_of(own)
    if pixels:  # as strong as white noise would be
        shared, own = (energy / haar_energies(pixels)[:, None].to(energy) for energy in (shared, own))
    total = shared[:3].sum(0)
    smoothest = total.argsort()[: math.ceil(_SMOOTHEST * len(total))]
    own_mean = float(own[:3, smoothest].mean())
    # the mean of C channels has 1 / C of the variance that is their own
    levels = shared[:3, smoothest].mean(1) * _SMOOTHEST_BIAS - own_mean / len(image)
    low, high = float(levels.min()), float(levels.max())
    if _unevenness(total) <= _EVEN and high <= _WHITE**2 * low and low >= _MIN_STD**2:
        level = float(levels.mean())
        between = level / (level + own_mean)
        if between >= _MIN_CORRELATION:
            return NoiseCorrelation(math.sqrt(level + own_mean), between, pixels)
    return NoiseCorrelation(own_std if pixels else 0.0, 0.0, pixels)


def unevenness(image: Tensor) -> float:
    """Return how much more half of the blocks of 16 x 16 pixels hold than the smoothest do: 1.07 for noise alone.

    Content that fills an image makes it more. The ratio is that of standard deviations, of what channels share.

    Shape:
        - image: (C, H, W) in [0, 1]
        - output: at least 1; 1 where fewer than 10 blocks can be judged

    Raises:
        ValueError: the image has another shape.
    """
    checks.expect_shape("unevenness", "image", image, "(C, H, W)")
    total = _block_energies(image)[0][:3].sum(0)
    return _unevenness(total) if len(total) >= _MIN_BLOCKS else 1.0


def noise_of_mean(channel_correlation: float) -> float:
    """Return the noise in the mean of three channels that correlate, relative to that of independent ones."""
    return math.sqrt(1 + 2 * channel_correlation)


def haar_energies(correlation: float) -> Tensor:
    """Return the energies of the Haar coefficients of noise of unit variance, 1 for white noise.

    Args:
        correlation: standard deviation of its Gaussian filter in pixels, see :class:`Noise`.

    Shape:
        - output: (6,), diagonal, horizontal and vertical at full size, and at half size
    """
    taps = filter_taps(torch.tensor([correlation], dtype=torch.float64))[0]
    taps = F.pad(taps, (0, 3))
    one, two, three = (float(taps @ taps.roll(shift)) for shift in (1, 2, 3))
    next_sum = (one + 2 * two + three) / 2  # covariance of sums of two neighbors with the next sum
    sums = 1 + one
    full = ((1 - one) ** 2, 1 - one**2, 1 - one**2)
    half = ((sums - next_sum) ** 2, sums**2 - next_sum**2, sums**2 - next_sum**2)
    return torch.tensor([*full, *half])


@cache
def _filters() -> tuple[Tensor, Tensor]:
    """Return standard deviations of filters (S,) and the logarithms of their energies (S, 6)."""
    filters = torch.linspace(0, _WIDEST, _FILTERS)
    return filters, torch.stack([haar_energies(float(one)) for one in filters]).log()


def _filter_of(own: Tensor) -> tuple[float, float | None]:
    """Return the standard deviation of noise with energies (6, N), and of its filter; 0, None if it is something else.

    Blocks are compared by level and by spectrum.
    """
    for part, limit in zip(own.split(3), _EVEN_DIFFERENCES, strict=True):
        if _unevenness(part.sum(0), _SMOOTH) > limit:
            return 0.0, None
    total = own.sum(0)
    smoothest = total.argsort()[: math.ceil(_QUARTER * len(total))]
    filters, energies = _filters()
    energy = own[:, smoothest].mean(1).cpu().clamp(min=1e-12)
    ratios = energy.log() - energies
    levels = ratios.mean(1)
    misfits = (ratios - levels[:, None]).square().mean(1).sqrt()
    best = int(misfits.argmin())
    std = _QUARTER_BIAS * math.exp(0.5 * float(levels[best]))
    if std < _MIN_STD or float(misfits[best]) > _MISFIT:
        return 0.0, None
    filtered = std >= _MIN_FILTERED and float(energy[1:3].mean()) >= _MIN_AXIAL * float(energy[0])
    return std, float(filters[best]) if filtered else 0.0


def _unevenness(total: Tensor, level: float = 0.5) -> float:
    return float((total.quantile(level) / total.quantile(_QUANTILE).clamp(min=1e-12)).sqrt())


def _block_energies(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Haar energies of the mean of channels, and of half their differences, of blocks that are not clipped.

    Shape:
        - image: (C, H, W) in [0, 1]
        - output: two of (6, N), in three directions at full size, and at half size
    """
    if min(image.shape[1:]) < 2 * _BLOCK:
        return image.new_zeros(6, 0), image.new_zeros(6, 0)
    x = bands(image).float()
    clipped = is_clipped(x).any(0).float()[None]  # of clipped noise channels share less
    enough = F.avg_pool2d((F.max_pool2d(clipped, 2) == 0).float(), _BLOCK)[0] >= _INSIDE
    shared, own = (
        torch.cat([_directions(part, clipped, scale) for scale in (1, 2)])[:, enough]
        for part in (x.mean(0, keepdim=True), (x[-2:] - x[:1]) / math.sqrt(2))
    )
    return shared, own


def _directions(x: Tensor, clipped: Tensor, scale: int) -> Tensor:
    """Return the mean Haar energy in three directions of 16 x 16 blocks of (C, H, W), where not clipped: (3, h, w)."""
    inside = (F.max_pool2d(clipped, 2 * scale) == 0).float()
    # an average of 4 pixels has a quarter of the variance
    energy = haar(*quads(F.avg_pool2d(x, scale))).square().mean(1) * scale**2
    share = F.avg_pool2d(inside, _BLOCK // scale)
    return F.avg_pool2d(energy * inside, _BLOCK // scale) / share.clamp(min=1e-6)
