"""Log spectra of small windows over log frequency and direction, where a larger blur is a shift."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tta_restore._core.color import is_gray, srgb_slope, srgb_to_linear

__all__ = ["DIRECTIONS", "SCALES", "STRIDE", "WINDOW", "WindowSpectra", "at_unit_radius"]

WINDOW, STRIDE = 32, 8  # pixels
SCALES, DIRECTIONS = 20, 16
_LOWEST, _HIGHEST = 1.5 / WINDOW, 0.5  # cycles per pixel
_CANONICAL_LOWEST, _CANONICAL_HIGHEST = 0.06, 1.0  # cycles per root mean square radius
_ROUNDING = 1.1  # power of read noise with rounding to 8 bits, relative to a read noise of 1/255 alone


class WindowSpectra(nn.Module):
    """Log signal-to-noise ratio of every window in linear light, where blur is a convolution.

    Shape:
        - x: (B, 3, H, W), RGB in [0, 1], H and W at least ``WINDOW``
        - output: (B, rows, columns, F, D) with F = ``SCALES``, D = ``DIRECTIONS``, windows every ``STRIDE`` pixels
    """

    def __init__(self) -> None:
        super().__init__()
        hann = torch.hann_window(WINDOW, periodic=False)
        self.register_buffer("taper", hann[:, None] * hann[None, :], persistent=False)
        self.register_buffer("polar", _log_polar_matrix(), persistent=False)

    def forward(self, x: Tensor, noise_std: float | Tensor = 1 / 255) -> Tensor:
        """Return the spectra of all windows.

        Args:
            x: images (B, 3, H, W).
            noise_std: standard deviation of the noise of the stored values, one for all images or (B,).
        """
        windows = _windows(srgb_to_linear(x.float()).mean(1))
        energy = self.taper.square()
        windows = (windows - (windows * self.taper).sum((-2, -1), keepdim=True) / self.taper.sum()) * self.taper
        power = torch.fft.fft2(windows).abs().square().flatten(-2) / energy.sum()
        # The slope of the transfer curve scales the noise; the mean of independent channels has less of its variance.
        spread = (_windows(srgb_slope(x.float()).square().mean(1)) * energy).sum((-2, -1)) / energy.sum()
        floor = noise_std**2 * _ROUNDING
        floor = floor.to(power).view(-1, 1, 1, 1) if isinstance(floor, Tensor) else floor
        channels = torch.where(is_gray(x), 1.0, 3.0).to(power).view(-1, 1, 1, 1)
        ratio = power @ self.polar.T / (floor / channels * spread[..., None])
        return torch.log1p(ratio).unflatten(-1, (SCALES, DIRECTIONS))


def at_unit_radius(spectra: Tensor, log_radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return spectra shifted to unit blur radius, with their level removed, and the validity of their bins.

    Args:
        spectra: spectra of windows.
        log_radius: log of the blur radius of each window in pixels.

    Shape:
        - spectra: (..., F, D)
        - log_radius: (...)
        - output: two of (..., F, D), over frequencies relative to the radius; validity in [0, 1]
    """
    span = math.log(_HIGHEST / _LOWEST)
    canonical = torch.linspace(math.log(_CANONICAL_LOWEST), math.log(_CANONICAL_HIGHEST), SCALES, device=spectra.device)
    place = (canonical - log_radius[..., None] - math.log(_LOWEST)) / span * (SCALES - 1)
    cell = torch.arange(SCALES, device=spectra.device)
    hat = (1 - (place[..., None] - cell).abs()).clamp(min=0)  # (..., canonical, measured)
    shifted = hat @ spectra
    # A bin is valid inside the measured frequency range and above the noise.
    valid = hat.sum(-1)[..., None] * torch.sigmoid(2 * (shifted - 1.5))
    level = (valid * shifted).sum((-2, -1), keepdim=True) / (valid.sum((-2, -1), keepdim=True) + 1e-3)
    return (shifted - level) * valid, valid


def _windows(values: Tensor) -> Tensor:
    return values.unfold(1, WINDOW, STRIDE).unfold(2, WINDOW, STRIDE)


def _log_polar_matrix() -> Tensor:
    """Return the matrix that samples a power spectrum at log-spaced frequencies and even directions: (cells, 32^2)."""
    steps = torch.linspace(0, 1, SCALES)
    frequency = _LOWEST * (_HIGHEST / _LOWEST) ** steps
    direction = torch.arange(DIRECTIONS, dtype=torch.float32) * (math.pi / DIRECTIONS)
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
