"""Statistics of a frame that tell blur from content that is soft itself.

A lens blurs everything before the sensor adds noise: no edge of the frame is steeper than the blur lets it be, and the
spectrum falls off to a flat one of noise. Soft content leaves some edge steep, and its spectrum falls off evenly.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks

__all__ = ["NUM_BLUR_STATISTICS", "BlurNet", "blur_statistics"]

_SIDE, _PER_AXIS = 128, 3  # largest side of a tile in pixels, and most tiles per axis
_BANDS = (0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 1.0)  # edges in cycles per pixel
_QUANTILES = (0.5, 0.9, 0.99)
_CONTRASTS = (0.06, 0.2)  # ranges of values from which a neighborhood of 5 x 5 pixels has an edge
_LEAST_EDGES = 20  # places with an edge from which their quantiles count
_SCALES = 3
_LEAST = 1e-10  # power

NUM_BLUR_STATISTICS = len(_CONTRASTS) * (1 + len(_QUANTILES)) + len(_BANDS) - 2 + 2 * _SCALES + 1
"""Number of statistics per tile."""


@torch.no_grad()
def blur_statistics(image: Tensor, quality: float = 100.0) -> Tensor:
    """Return statistics of up to 3 x 3 tiles of an image, which do not depend on its contrast.

    They are how steep edges are relative to the range of values around them, ratios of the power in neighboring bands
    of the spectrum, and how rare large differences of neighbors are at three scales; and the JPEG quality.

    Shape:
        - image: (B, C, H, W) in [0, 1], H and W at least 32
        - output: (T * B, F), T tiles, F = ``NUM_BLUR_STATISTICS``
    """
    checks.expect_shape("blur_statistics", "image", image, "(B, C, H, W)")
    luma = _tiles(image.float().mean(1, keepdim=True))
    compression = luma.new_full((len(luma), 1), (100 - quality) / 50)
    return torch.cat([_steepness(luma), _spectrum(luma[:, 0]).diff(dim=1), _sparsity(luma), compression], 1)


def _tiles(image: Tensor) -> Tensor:
    def starts(side: int) -> list[int]:
        count = min(math.ceil(side / _SIDE), _PER_AXIS)
        return [0] if count == 1 else [round(i * (side - _SIDE) / (count - 1)) for i in range(count)]

    rows, columns = (starts(side) for side in image.shape[-2:])
    return torch.cat([image[..., top : top + _SIDE, left : left + _SIDE] for top in rows for left in columns])


def _steepness(luma: Tensor) -> Tensor:
    """Quantiles of the largest difference of neighbors relative to the range around them, where there are edges."""
    extent = F.max_pool2d(luma, 5, 1, 2) + F.max_pool2d(-luma, 5, 1, 2)
    across = F.pad(luma.diff(dim=-1).abs(), (0, 1))
    down = F.pad(luma.diff(dim=-2).abs(), (0, 0, 0, 1))
    steepness = torch.maximum(across, down) / extent.clamp(min=1e-3)
    levels, found = luma.new_tensor(_QUANTILES), []
    for contrast in _CONTRASTS:
        edge = extent > contrast
        quantiles = steepness.masked_fill(~edge, math.nan).flatten(1).nanquantile(levels, dim=1).mT
        enough = edge.flatten(1).sum(1, keepdim=True) > _LEAST_EDGES
        found += [edge.float().flatten(1).mean(1, keepdim=True), torch.where(enough, quantiles, 0.0)]
    return torch.cat(found, 1)


def _spectrum(luma: Tensor) -> Tensor:
    """Log power in bands of the radial frequency: (B, H, W) -> (B, bands)."""
    height, width = luma.shape[-2:]
    vertical, horizontal = (torch.hann_window(side, device=luma.device) for side in (height, width))
    window = vertical[:, None] * horizontal
    centered = luma - luma.mean((1, 2), keepdim=True)
    power = torch.fft.rfft2(centered * window).abs().square() / window.square().sum()
    across, down = torch.fft.rfftfreq(width, device=luma.device), torch.fft.fftfreq(height, device=luma.device)
    frequency = torch.hypot(down[:, None], across)
    bands = [power[:, (frequency >= low) & (frequency < high)].mean(1) for low, high in itertools.pairwise(_BANDS)]
    return torch.stack(bands, 1).clamp(min=_LEAST).log()


def _sparsity(luma: Tensor) -> Tensor:
    """Log kurtosis, and 99 % quantile relative to the root mean square, of the differences of neighbors, by scale."""
    found = []
    for _ in range(_SCALES):
        steps = torch.cat([luma.diff(dim=-1).flatten(1), luma.diff(dim=-2).flatten(1)], 1)
        energy = steps.square().mean(1) + 1e-12
        found += [((steps**4).mean(1) / energy.square()).log(), steps.abs().quantile(0.99, dim=1) / energy.sqrt()]
        luma = F.avg_pool2d(luma, 2)
    return torch.stack(found, 1).clamp(-20, 20)


class BlurNet(nn.Module):
    """Read from statistics whether tiles are blurred, and by how much.

    Shape:
        - statistics: (T, F), see :func:`blur_statistics`
        - output: log odds that a tile is blurred (T,); of blurred ones the mean and the log scale of a Laplace
          distribution of the log root mean square radius in pixels, (T,) each
    """

    def __init__(self, *, width: int = 48, dropout: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(NUM_BLUR_STATISTICS))
        self.register_buffer("spread", torch.ones(NUM_BLUR_STATISTICS))
        self.layers = nn.Sequential(
            nn.Linear(NUM_BLUR_STATISTICS, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(width, 3),
        )  # fmt: skip

    def forward(self, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read a batch of tiles."""
        # tiles unlike the training material stay within what the layers were trained on
        odds, mean, log_scale = self.layers(((statistics - self.center) / self.spread).clamp(-4, 4)).unbind(1)
        return odds, mean, log_scale.clamp(-3, 1.5)
