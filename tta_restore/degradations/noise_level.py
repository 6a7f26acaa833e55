"""Blind estimation of the level of noise, from the smoothest parts of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import is_gray
from tta_restore.degradations._haar import bands, is_clipped, quads
from tta_restore.degradations.noise_correlation import NoiseCorrelation, estimate_noise_correlation

__all__ = ["estimate_noise", "estimate_noise_curve", "largest_noise"]

_BLOCK = 8  # Haar coefficients per side of a block, 16 pixels
_QUANTILE = 0.1
_BIAS = 1.08  # the quantile of noise alone lies this factor below its standard deviation
_GROUP, _MAX_GROUPS = 24, 8  # blocks per group of one brightness, groups
_ROWS = 256  # pixel rows looked at together, whole blocks: bounds the memory on large images
_MIN_STD = 0.29 / 255  # rounding to 8 bits
_NORMAL_MEDIAN = 0.6745  # of the absolute values of a standard normal distribution
_CEILING = 1.3  # the median without clipped pixels lies up to this factor below the noise
_MIN_PIXELS = 64  # Haar coefficients
_MARGIN = 1.1  # the same for pixels far from black and white
_INDEPENDENT = 0.6  # noise in differences of channels, relative to that in channels, from which it is independent


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


def estimate_noise_curve(image: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate read noise and photon noise: the variance ``read_std^2 + shot * value``.

    Blocks are sorted by brightness into groups; the smoothest tenth of each group gives its variance, and a line is
    fitted to the variances with both coefficients >= 0.

    Shape:
        - image: (B, C, H, W) in [0, 1], H and W at least 16
        - output: read_std (B,), in [0, 1] values; shot (B,), variance per value

    Raises:
        ValueError: the image is not (B, C, H, W) or smaller than 16 x 16.
    """
    total = estimate_noise(image)
    energy, level, usable = block_energy(image)
    curves = [_fit_line(*values) for values in zip(energy, level, usable, total.square(), strict=True)]
    read, shot = torch.tensor(curves, dtype=torch.float32, device=image.device).unbind(1)
    return read, shot


def largest_noise(image: Tensor, correlation: NoiseCorrelation | None = None) -> Tensor:
    """Return an upper bound on the standard deviation of white noise.

    At most half of the diagonal Haar coefficients exceed the median of the noise, however strong the content of the
    other half; and content, unlike noise, is mostly equal in all channels, so that their differences show the noise,
    unless they share it, of which :func:`estimate_noise_correlation` gives a narrower one.

    Args:
        image: to be judged.
        correlation: of its noise; None to estimate it.

    Shape:
        - image: (C, H, W) in [0, 1], H and W at least 2
        - output: (), in [0, 1] values; infinite where nearly all pixels are clipped

    Source: Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994.
    """
    image = bands(image)
    level = _median_level(image)
    found = estimate_noise_correlation(image) if correlation is None else correlation
    if found.between_channels:
        return torch.minimum(_CEILING * level, level.new_tensor(_MARGIN * found.std))
    if is_gray(image):
        return _CEILING * level
    differences = (image[1:] - image[:1]) / math.sqrt(2)
    difference = _median_level(differences, is_clipped(image).any(0))
    if difference >= _INDEPENDENT * level:
        # near black and white, clipping makes the noise of what is left smaller
        local = F.avg_pool2d(image[None].float(), 7, stride=1, padding=3, count_include_pad=False)[0]
        far = 2.5 * _CEILING * float(difference.clamp(max=0.15))
        inside = _median_level(differences, ((local < far) | (local > 1 - far)).any(0))
        # clipping only lowers the median of all, and few pixels inside are a bad sample
        return (_MARGIN * inside).clamp(_MARGIN * difference, _CEILING * difference)
    # demosaicking and color noise reduction make noise less in the differences than in the channels
    return torch.minimum(_CEILING * level, 2 * _CEILING * difference + 1 / 255)


def _median_level(x: Tensor, clipped: Tensor | None = None) -> Tensor:
    touched = (is_clipped(x) if clipped is None else clipped.expand_as(x)).float()
    a, b, c, d = quads(x.float())
    values = ((a - b - c + d) / 2)[F.max_pool2d(touched, 2) == 0].abs()
    return values.median() / _NORMAL_MEDIAN if values.numel() >= _MIN_PIXELS else values.new_tensor(math.inf)


def _fit_line(energy: Tensor, level: Tensor, usable: Tensor, total: Tensor) -> tuple[float, float]:
    energy, level = energy[usable], level[usable]
    groups = min(len(energy) // _GROUP, _MAX_GROUPS)
    flat = float(total.sqrt()), 0.0
    if groups < 3:
        return flat
    order = level.argsort()
    values, places = [], []
    for part in order.tensor_split(groups):
        variance = energy[part].quantile(_QUANTILE) * _BIAS**2
        smooth = part[energy[part] <= variance * 1.3]
        values.append(variance)
        places.append(level[smooth].mean())
    y, x = torch.stack(values).double(), torch.stack(places).double()
    if float(y.median()) == 0:
        return flat
    # variances are known to a fraction of their value, and texture only raises them
    weight = 1 / (y + y.median() * 0.2).square()
    mean_x, mean_y = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    spread = (weight * (x - mean_x).square()).sum()
    slope = float((weight * (x - mean_x) * (y - mean_y)).sum() / spread.clamp(min=1e-12))
    if slope <= 0:
        return flat
    offset = float(mean_y) - slope * float(mean_x)
    if offset < 0:
        offset, slope = 0.0, float((weight * x * y).sum() / (weight * x * x).sum())
    line = offset + slope * x
    unexplained = float((weight * (y - line).square()).sum() / (weight * (y - mean_y).square()).sum().clamp(min=1e-12))
    if unexplained > 0.5 or slope * float(x.max() - x.min()) < 0.25 * float(mean_y):
        return flat
    return max(offset, _MIN_STD**2) ** 0.5, slope


def block_energy(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the diagonal Haar energy, the mean value and whether nothing is clipped, of 16 x 16 blocks: (B, h, w)."""
    parts = [_block_rows(rows) for rows in image.split(_ROWS, -2) if rows.shape[-2] >= 2 * _BLOCK]
    energy, level, share = (torch.cat(values, 1) for values in zip(*parts, strict=True))
    return energy, level, share <= share.flatten(1).quantile(0.3, dim=1)[:, None, None].clamp(min=0.01)


def _block_rows(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return energy, mean value and fraction of clipped pixels of the blocks of some rows."""
    x = image.float()[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    a, b, c, d = quads(x)
    energy = F.avg_pool2d(((a - b - c + d) / 2).square().mean(1, keepdim=True), _BLOCK)[:, 0]
    level = F.avg_pool2d(((a + b + c + d) / 4).mean(1, keepdim=True), _BLOCK)[:, 0]
    touched = is_clipped(x).any(1, keepdim=True).float()
    return energy, level, F.avg_pool2d(touched, 2 * _BLOCK)[:, 0]
