"""Reads the lens from blurred pictures: the shape of its aperture, and the blur radius everywhere.

Shape and size are estimated apart, because they are apart in the world: one lens has one aperture, and depth scales it
from pixel to pixel. Blur multiplies the spectrum of the scene with that of the aperture, so each small window is looked
at as its log power spectrum over log frequency and direction. There, a larger blur is a shift along the frequency axis:
a window first tells its radius, is shifted to unit radius, and then all windows, of one picture or of many taken
through the same lens, are averaged until the scene fades and the aperture stays. A lens that is turned turns its
spectrum: the networks see directions as a circle and treat all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.models.registry import register_model

WINDOW, _STRIDE = 32, 8
_SCALES, _DIRECTIONS = 20, 16
_LOWEST, _HIGHEST = 1.5 / WINDOW, 0.5  # cycles per pixel
_CANONICAL_LOWEST, _CANONICAL_HIGHEST = 0.06, 1.0  # cycles per root mean square radius
_NOISE = (1.0 / 255) ** 2 * 1.1  # power of read noise and rounding that the estimator was trained for


@dataclass(frozen=True)
class LensEstimate:
    """What one or more pictures say about their lens.

    Shape:
        - radius: (B, h, w), root mean square radius of the blur in pixels, one value per 8 x 8 pixels
        - confidence: (B, h, w), how sharply the logarithm of the radius is known (reciprocal scale of its error)
        - statistics: (B, P), sums over windows from which the aperture is read; those of pictures taken through the
          same lens add up
    """

    radius: Tensor
    confidence: Tensor
    statistics: Tensor

    def __getitem__(self, part: slice) -> LensEstimate:
        return LensEstimate(*(getattr(self, field.name)[part] for field in fields(self)))

    @staticmethod
    def pool(estimates: Sequence[LensEstimate]) -> Tensor:
        """The statistics of several estimates of one lens: (B, P)."""
        return torch.stack([estimate.statistics for estimate in estimates]).sum(0)


class LensEstimator(nn.Module):
    """Estimates the lens that took a picture.

    Shape:
        - input: (B, 3, H, W), RGB in [0, 1], H and W at least 32
        - output: :class:`LensEstimate`

    Raises:
        ValueError: the picture is not (B, 3, H, W) or smaller than 32 x 32.
    """

    def __init__(self, *, width: int = 96, rings: int = 14, aperture_size: int = 23, reach: float = 2.3) -> None:
        super().__init__()
        self.aperture_size, self.reach, self.rings = aperture_size, reach, rings
        self.code_dim = rings * _DIRECTIONS
        self.window_net = nn.Sequential(
            _around(_SCALES, 64), nn.GELU(), _around(64, 64), nn.GELU(), _Mean(), nn.Linear(64, 128), nn.GELU(),
            nn.Linear(128, 3),
        )  # fmt: skip
        self.aperture_net = nn.Sequential(
            _around(2 * _SCALES, 2 * width), nn.GELU(), _around(2 * width, 2 * width), _Share(2 * width), nn.GELU(),
            _around(2 * width, 2 * width), nn.GELU(), _around(2 * width, rings, 1),
        )  # fmt: skip
        self.register_buffer("hann", torch.hann_window(WINDOW, periodic=False), persistent=False)
        self.register_buffer("polar", _log_polar_matrix(), persistent=False)
        self.register_buffer("cartesian", _cartesian_matrix(rings, aperture_size, reach), persistent=False)

    def forward(self, x: Tensor) -> LensEstimate:
        """Read the lens from (B, 3, H, W)."""
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < WINDOW:
            raise ValueError(f"LensEstimator: expected (B, 3, H, W) with H, W >= {WINDOW}, got {tuple(x.shape)}")
        spectra, rows, columns = self._spectra(x)
        answer = self.window_net(spectra.flatten(0, 1) / 4 - 0.5).unflatten(0, spectra.shape[:2])
        log_radius, log_confidence, log_weight = answer.unbind(2)
        log_radius, log_weight = log_radius.clamp(-3, 2.2), log_weight.clamp(-8, 8)

        def on_grid(values: Tensor) -> Tensor:
            # windows reach over the grid of cells, the outermost cells take the nearest window's answer
            shape = (x.shape[-2] // _STRIDE, x.shape[-1] // _STRIDE)
            grid = values.view(len(x), 1, rows, columns)
            side = [(n - m) for n, m in zip(shape, (rows, columns), strict=True)]
            pad = (side[1] // 2, side[1] - side[1] // 2, side[0] // 2, side[0] - side[0] // 2)
            return F.pad(grid, pad, mode="replicate")[:, 0]

        return LensEstimate(
            radius=on_grid(log_radius.exp()),
            confidence=on_grid(log_confidence.clamp(-2, 4).exp()),
            statistics=_canonical_statistics(spectra, log_radius, log_weight.exp()),
        )

    def code(self, statistics: Tensor) -> Tensor:
        """The aperture in polar coordinates, as log transmission: (B, P) -> (B, D), D = rings * directions."""
        sums, weights, total = statistics.split([_SCALES * _DIRECTIONS, _SCALES * _DIRECTIONS, 1], dim=1)
        mean = sums / (weights + 1e-3 * total + 1e-6)
        seen = torch.stack([mean, weights / (total + 1e-6)], dim=1).unflatten(2, (_SCALES, _DIRECTIONS)).flatten(1, 2)
        return self.aperture_net(seen).flatten(1)

    def aperture(self, statistics: Tensor) -> Tensor:
        """Picture of the aperture at unit root mean square radius: (B, P) -> (B, A, A), summing to 1."""
        logits = self.code(statistics) @ self.cartesian.T
        return torch.softmax(logits, dim=-1).unflatten(1, (self.aperture_size, self.aperture_size))

    def kernels(self, statistics: Tensor, radius: Tensor, *, size: int = 17) -> Tensor:
        """Point spread functions of the estimated aperture: (P,), (L,) root mean square radii -> (L, K, K)."""
        return rasterize_picture(self.aperture(statistics[None])[0], radius, size=size, reach=self.reach)

    def _spectra(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Log signal to noise of every window over log frequency and direction: (B, windows, scales, directions)."""
        grey = x.float().mean(1)
        windows = grey.unfold(1, WINDOW, _STRIDE).unfold(2, WINDOW, _STRIDE)
        rows, columns = windows.shape[1:3]
        windows = windows.reshape(len(x), rows * columns, WINDOW, WINDOW)
        taper = self.hann[:, None] * self.hann[None, :]
        windows = (windows - (windows * taper).sum((-2, -1), keepdim=True) / taper.sum()) * taper
        power = torch.fft.fft2(windows).abs().square().flatten(2) / taper.square().sum()
        # the mean of three channels carries a third of the noise of one
        return torch.log1p(power @ self.polar.T / (_NOISE / 3)).unflatten(2, (_SCALES, _DIRECTIONS)), rows, columns


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


class _Share(nn.Module):
    """Tells every direction what the others are like on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(x).mean(-1))[..., None]


def _around(inputs: int, outputs: int, size: int = 5) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, size, padding=size // 2, padding_mode="circular")


def rasterize_picture(picture: Tensor, radius: Tensor, *, size: int, reach: float, supersample: int = 3) -> Tensor:
    """Scale an aperture picture to root mean square radii in pixels.

    Shape:
        - picture: (A, A) over [-reach, reach] in units of its root mean square radius
        - radius: (L,), pixels
        - output: (L, K, K) with K = `size`, each summing to 1
    """
    fine = size * supersample
    axis = (torch.arange(fine, dtype=picture.dtype, device=picture.device) - (fine - 1) / 2) / supersample
    scaled = axis / (radius.clamp(min=0.05)[:, None] * reach)  # (L, fine), the picture spans [-1, 1]
    grid = torch.stack(torch.broadcast_tensors(scaled[:, None, :], scaled[:, :, None]), dim=-1)
    sampled = F.grid_sample(picture.expand(len(radius), 1, -1, -1), grid, align_corners=False)
    kernels = F.avg_pool2d(sampled, supersample)[:, 0]
    total = kernels.sum((-2, -1), keepdim=True)
    delta = torch.zeros_like(kernels)
    delta[:, size // 2, size // 2] = 1
    return torch.where(total > 0, kernels / total.clamp(min=1e-12), delta)


def _log_polar_matrix() -> Tensor:
    """Bilinear samples of a window's power spectrum at log spaced frequencies and even directions: (cells, 32 * 32)."""
    steps = torch.linspace(0, 1, _SCALES)
    frequency = _LOWEST * (_HIGHEST / _LOWEST) ** steps
    direction = torch.arange(_DIRECTIONS) * (math.pi / _DIRECTIONS)
    fx = (frequency[:, None] * torch.cos(direction)).flatten() * WINDOW
    fy = (frequency[:, None] * torch.sin(direction)).flatten() * WINDOW
    matrix = torch.zeros(len(fx), WINDOW, WINDOW)
    cells = torch.arange(len(fx))
    for dy in (0, 1):
        for dx in (0, 1):
            ix, iy = fx.floor() + dx, fy.floor() + dy
            weight = (1 - (fx - ix).abs()) * (1 - (fy - iy).abs())
            matrix.index_put_((cells, iy.long() % WINDOW, ix.long() % WINDOW), weight, accumulate=True)
    return matrix.flatten(1)


def _cartesian_matrix(rings: int, size: int, reach: float) -> Tensor:
    """Bilinear samples of polar values (rings, directions over half a turn, the other half alike): (size^2, cells)."""
    axis = ((torch.arange(size) + 0.5) / size * 2 - 1) * reach
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    ring = ((x * x + y * y).sqrt() / reach * rings - 0.5).clamp(0, rings - 1).flatten()
    direction = (torch.remainder(torch.atan2(y, x), math.pi) / math.pi * _DIRECTIONS).flatten()
    matrix = torch.zeros(size * size, rings, _DIRECTIONS)
    points = torch.arange(size * size)
    for dr in (0, 1):
        for dd in (0, 1):
            r, d = ring.floor() + dr, direction.floor() + dd
            weight = (1 - (ring - r).abs()) * (1 - (direction - d).abs())
            place = (points, r.long().clamp(max=rings - 1), d.long() % _DIRECTIONS)
            matrix.index_put_(place, weight, accumulate=True)
    return matrix.flatten(1)


def _canonical_statistics(spectra: Tensor, log_radius: Tensor, weight: Tensor) -> Tensor:
    """Windows shifted to unit radius, without their level, and summed: (B, 2 * cells + 1)."""
    span = math.log(_HIGHEST / _LOWEST)
    canonical = torch.linspace(
        math.log(_CANONICAL_LOWEST), math.log(_CANONICAL_HIGHEST), _SCALES, device=spectra.device
    )
    place = (canonical - log_radius[..., None] - math.log(_LOWEST)) / span * (_SCALES - 1)  # (B, windows, scales)
    cell = torch.arange(_SCALES, device=spectra.device)
    hat = (1 - (place[..., None] - cell).abs()).clamp(min=0)  # (B, windows, canonical, measured)
    shifted = hat @ spectra
    # a bin counts where it lies in what the window shows and stands out of the noise
    valid = hat.sum(-1)[..., None] * torch.sigmoid(2 * (shifted - 1.5))
    level = (valid * shifted).sum((2, 3), keepdim=True) / (valid.sum((2, 3), keepdim=True) + 1e-3)
    weighted = valid * weight[..., None, None]
    sums = (weighted * (shifted - level)).sum(1).flatten(1)
    return torch.cat([sums, weighted.sum(1).flatten(1), weight.sum(1, keepdim=True)], dim=1)


@register_model("lens_estimator", kind="estimator")
def lens_estimator(**config: Any) -> LensEstimator:
    """:class:`LensEstimator`; shipped as "lens_estimator"."""
    return LensEstimator(**config)
