"""Blind estimation of noise, its level and what channels share of it, from the smoothest parts of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import is_gray

__all__ = ["estimate_noise", "estimate_noise_curve", "estimate_shared_noise", "largest_noise", "unevenness"]

_BLOCK = 8  # Haar coefficients per side of a block, 16 pixels
_QUANTILE = 0.1
_BIAS = 1.08  # the quantile of noise alone lies this factor below its standard deviation
_CLIPPED = 0.5 / 255
_GROUP, _MAX_GROUPS = 24, 8  # blocks per group of one brightness, groups
_ROWS = 256  # pixel rows looked at together, whole blocks: bounds the memory on large images
_MIN_STD = 0.29 / 255  # rounding to 8 bits
_NORMAL_MEDIAN = 0.6745  # of the absolute values of a standard normal distribution
_CEILING = 1.3  # the median without clipped pixels lies up to this factor below the noise
_MIN_PIXELS = 64  # Haar coefficients
_BAND, _MAX_PIXELS = 64, 4_000_000  # rows; pixels above which bands of rows give the median of all
_MARGIN = 1.1  # the same for pixels far from black and white
_INDEPENDENT = 0.6  # noise in differences of channels, relative to that in channels, from which it is independent
# What all channels share is noise if, in the smoothest of at least so many blocks, it is as strong in every direction,
# and at least half of the blocks hold little more of it; ratios of standard deviations, the least one in 1/255
_SHARED_BLOCKS, _INSIDE, _SMOOTHEST, _SMOOTHEST_BIAS = 10, 0.5, 0.2, 1.16
_WHITE, _EVEN, _MIN_SHARED, _MIN_CORRELATION = 1.2, 1.35, 2.0, 0.15


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


def estimate_shared_noise(image: Tensor) -> tuple[float, float]:
    """Estimate the standard deviation of white noise that channels share, and its correlation between channels.

    Film grain and cameras that remove color noise leave noise that all channels share, which content is, too. Noise
    is as strong in all three Haar directions and in all blocks, fine content hardly is.

    Shape:
        - image: (1 or 3, H, W) in [0, 1]
        - output: standard deviation in [0, 1] values; correlation in [0, 1], 1 for gray images. Both are 0 where it is
          not certain that there is such noise.
    """
    shared, own = _shared_and_own(image)
    total = shared.sum(0)
    if len(total) < _SHARED_BLOCKS:
        return 0.0, 0.0
    smoothest = total.argsort()[: math.ceil(_SMOOTHEST * len(total))]
    own_mean = float(own[:, smoothest].mean())
    # the mean of C channels has 1 / C of the variance that is their own
    levels = shared[:, smoothest].mean(1) * _SMOOTHEST_BIAS - own_mean / len(image)
    low, high = float(levels.min()), float(levels.max())
    if not (_unevenness(total) <= _EVEN and high <= _WHITE**2 * low and low >= (_MIN_SHARED / 255) ** 2):
        return 0.0, 0.0
    level = float(levels.mean())
    correlation = level / (level + own_mean)
    return (math.sqrt(level + own_mean), correlation) if correlation >= _MIN_CORRELATION else (0.0, 0.0)


def unevenness(image: Tensor) -> float:
    """Return how much more half of the blocks of 16 x 16 pixels hold than the smoothest do: 1.07 for noise alone.

    Content that fills an image makes it more. The ratio is that of standard deviations, of what channels share.

    Shape:
        - image: (C, H, W) in [0, 1]
        - output: at least 1; 1 where fewer than 10 blocks can be judged
    """
    total = _shared_and_own(image)[0].sum(0)
    return _unevenness(total) if len(total) >= _SHARED_BLOCKS else 1.0


def _unevenness(total: Tensor) -> float:
    return float((total.median() / total.quantile(_QUANTILE).clamp(min=1e-12)).sqrt())


def _shared_and_own(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Haar energy of the mean of channels, and of half their differences, of blocks that are not clipped.

    Shape:
        - image: (C, H, W) in [0, 1]
        - output: two of (3, N), in three directions
    """
    if min(image.shape[1:]) < 2 * _BLOCK:
        return image.new_zeros(3, 0), image.new_zeros(3, 0)
    x = _bands(image.float())
    differences = (x[-2:] - x[:1]) / math.sqrt(2)
    inside = F.max_pool2d(_clipped(x).any(0).float()[None], 2)[0] == 0  # of clipped noise channels share less
    enough = F.avg_pool2d(inside.float()[None], _BLOCK)[0] >= _INSIDE
    mean = x.mean(0, keepdim=True)
    return _directions(mean, inside)[:, enough], _directions(differences, inside)[:, enough]


def noise_of_mean(channel_correlation: float) -> float:
    """Return the noise in the mean of three channels that correlate, relative to that of independent ones."""
    return math.sqrt(1 + 2 * channel_correlation)


def _directions(image: Tensor, inside: Tensor) -> Tensor:
    """Return the mean Haar energy of (C, H, W) in three directions of 16 x 16 blocks, where ``inside``: (3, h, w)."""
    x = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    bands = torch.stack([a - b - c + d, a - b + c - d, a + b - c - d]) / 2
    count = F.avg_pool2d(inside.float()[None], _BLOCK).clamp(min=1e-6)
    return F.avg_pool2d(bands.square().mean(1) * inside, _BLOCK) / count


def largest_noise(image: Tensor) -> Tensor:
    """Return an upper bound on the standard deviation of white noise.

    At most half of the diagonal Haar coefficients exceed the median of the noise, however strong the content of the
    other half; and content, unlike noise, is mostly equal in all channels, so that their differences show the noise,
    unless they share it, of which :func:`estimate_shared_noise` gives a narrower one.

    Shape:
        - image: (C, H, W) in [0, 1], H and W at least 2
        - output: (), in [0, 1] values; infinite where nearly all pixels are clipped

    Source: Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994.
    """
    image = _bands(image)
    level = _median_level(image)
    shared, _ = estimate_shared_noise(image)
    if shared:
        return torch.minimum(_CEILING * level, level.new_tensor(_MARGIN * shared))
    if is_gray(image):
        return _CEILING * level
    differences = (image[1:] - image[:1]) / math.sqrt(2)
    difference = _median_level(differences, _clipped(image).any(0))
    if difference >= _INDEPENDENT * level:
        # near black and white, clipping makes the noise of what is left smaller
        local = F.avg_pool2d(image[None].float(), 7, stride=1, padding=3, count_include_pad=False)[0]
        far = 2.5 * _CEILING * float(difference.clamp(max=0.15))
        inside = _median_level(differences, ((local < far) | (local > 1 - far)).any(0))
        # clipping only lowers the median of all, and few pixels inside are a bad sample
        return (_MARGIN * inside).clamp(_MARGIN * difference, _CEILING * difference)
    # demosaicking and color noise reduction make noise less in the differences than in the channels
    return torch.minimum(_CEILING * level, 2 * _CEILING * difference + 1 / 255)


def _bands(image: Tensor) -> Tensor:
    """Return evenly spaced bands of rows of a large image, which bounds time and memory; smaller ones unchanged."""
    height, width = image.shape[-2:]
    count = _MAX_PIXELS // (_BAND * width)
    if height * width <= _MAX_PIXELS or count < 1:
        return image
    starts = [round(i * (height - _BAND) / max(count - 1, 1)) for i in range(count)]
    return torch.cat([image[:, start : start + _BAND] for start in starts], 1)


def _clipped(x: Tensor) -> Tensor:
    return (x <= _CLIPPED) | (x >= 1 - _CLIPPED)


def _median_level(x: Tensor, clipped: Tensor | None = None) -> Tensor:
    x = x.float()[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    touched = (_clipped(x) if clipped is None else clipped[: x.shape[-2], : x.shape[-1]].expand_as(x)).float()
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
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
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    energy = F.avg_pool2d(((a - b - c + d) / 2).square().mean(1, keepdim=True), _BLOCK)[:, 0]
    level = F.avg_pool2d(((a + b + c + d) / 4).mean(1, keepdim=True), _BLOCK)[:, 0]
    touched = ((x <= _CLIPPED) | (x >= 1 - _CLIPPED)).any(1, keepdim=True).float()
    return energy, level, F.avg_pool2d(touched, 2 * _BLOCK)[:, 0]
