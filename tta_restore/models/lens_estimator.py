"""Reads the lens from blurred pictures: the shape of its aperture, and the blur radius everywhere.

Shape and size are estimated apart, because they are apart in the world: one lens has one aperture, and depth scales it
from pixel to pixel. Blur multiplies the spectrum of the scene with that of the aperture, so each small window is looked
at as its log power spectrum over log frequency and direction. There, a larger blur is a shift along the frequency axis:
a window first tells its radius, is shifted to unit radius, and then all windows, of one picture or of many taken
through the same lens, are averaged until the scene fades and the aperture stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.models.registry import register_model

_WINDOW, _STRIDE = 32, 8
_SCALES, _DIRECTIONS = 20, 16
_LOWEST, _HIGHEST = 1.5 / _WINDOW, 0.5  # cycles per pixel
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

    def __init__(self, *, width: int = 192, code_dim: int = 48, aperture_size: int = 23, reach: float = 2.3):
        super().__init__()
        self.code_dim, self.aperture_size, self.reach = code_dim, aperture_size, reach
        cells = _SCALES * _DIRECTIONS
        self.window_net = nn.Sequential(
            nn.Linear(cells, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3)
        )
        self.code_net = nn.Sequential(
            nn.Linear(2 * cells, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.GELU(),
            nn.Linear(width, code_dim),
        )
        self.aperture_net = nn.Sequential(
            nn.Linear(code_dim, width), nn.GELU(), nn.Linear(width, 2 * width), nn.GELU(),
            nn.Linear(2 * width, aperture_size**2),
        )  # fmt: skip
        self.register_buffer("hann", torch.hann_window(_WINDOW, periodic=False), persistent=False)
        self.register_buffer("polar", _log_polar_matrix(), persistent=False)

    def forward(self, x: Tensor) -> LensEstimate:
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < _WINDOW:
            raise ValueError(f"LensEstimator: expected (B, 3, H, W) with H, W >= {_WINDOW}, got {tuple(x.shape)}")
        spectra, rows, columns = self._spectra(x)
        answer = self.window_net(spectra.flatten(2) / 4 - 0.5)
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
        """The aperture as a short code: (B, P) -> (B, D)."""
        sums, weights, total = statistics.split([_SCALES * _DIRECTIONS, _SCALES * _DIRECTIONS, 1], dim=1)
        mean = sums / (weights + 1e-3 * total + 1e-6)
        return self.code_net(torch.cat([mean, weights / (total + 1e-6)], dim=1))

    def aperture(self, statistics: Tensor) -> Tensor:
        """Picture of the aperture at unit root mean square radius: (B, P) -> (B, A, A), summing to 1."""
        logits = self.aperture_net(self.code(statistics))
        return torch.softmax(logits, dim=-1).view(-1, self.aperture_size, self.aperture_size)

    def _spectra(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Log signal to noise of every window over log frequency and direction: (B, windows, scales, directions)."""
        grey = x.float().mean(1)
        windows = grey.unfold(1, _WINDOW, _STRIDE).unfold(2, _WINDOW, _STRIDE)
        rows, columns = windows.shape[1:3]
        windows = windows.reshape(len(x), rows * columns, _WINDOW, _WINDOW)
        taper = self.hann[:, None] * self.hann[None, :]
        windows = (windows - (windows * taper).sum((-2, -1), keepdim=True) / taper.sum()) * taper
        power = torch.fft.fft2(windows).abs().square().flatten(2) / taper.square().sum()
        # the mean of three channels carries a third of the noise of one
        return torch.log1p(power @ self.polar.T / (_NOISE / 3)).unflatten(2, (_SCALES, _DIRECTIONS)), rows, columns


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
    fx = (frequency[:, None] * torch.cos(direction)).flatten() * _WINDOW
    fy = (frequency[:, None] * torch.sin(direction)).flatten() * _WINDOW
    matrix = torch.zeros(len(fx), _WINDOW, _WINDOW)
    cells = torch.arange(len(fx))
    for dy in (0, 1):
        for dx in (0, 1):
            ix, iy = fx.floor() + dx, fy.floor() + dy
            weight = (1 - (fx - ix).abs()) * (1 - (fy - iy).abs())
            matrix.index_put_((cells, iy.long() % _WINDOW, ix.long() % _WINDOW), weight, accumulate=True)
    return matrix.flatten(1)


def _canonical_statistics(spectra: Tensor, log_radius: Tensor, weight: Tensor) -> Tensor:
    """Windows shifted to unit radius, without their level, and summed: (B, 2 * cells + 1)."""
    span = math.log(_HIGHEST / _LOWEST)
    canonical = torch.linspace(math.log(_CANONICAL_LOWEST), math.log(_CANONICAL_HIGHEST), _SCALES, device=spectra.device)
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
def lens_estimator(**config) -> LensEstimator:
    return LensEstimator(**config)
