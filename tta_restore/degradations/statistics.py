"""Statistics of a frame from which noise and blur are read together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.degradations._haar import haar, quads
from tta_restore.degradations.noise_level import block_energy, estimate_noise
from tta_restore.models.defocus.estimator import window_net
from tta_restore.models.defocus.spectra import WindowSpectra

__all__ = ["NUM_STATISTICS", "StatisticsNet", "frame_statistics"]

_BLOCK = 16  # pixels per side of a block whose energy counts once
_ENERGY_QUANTILES = (0.02, 0.1, 0.3, 0.6, 0.9)
_SPECTRUM_QUANTILES = (0.5, 0.9)
_RADIUS_QUANTILES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85)
_SCALES = 20  # of the window spectra
_LEAST_NOISE = 0.3 / 255  # rounding to 8 bits

NUM_STATISTICS = 6 * len(_ENERGY_QUANTILES) + len(_SPECTRUM_QUANTILES) * _SCALES + len(_RADIUS_QUANTILES) + 3 + 5
"""Number of statistics per frame."""


@torch.no_grad()
def frame_statistics(image: Tensor, quality: Tensor, net: StatisticsNet, *, noise_in_mean: float = 1.0) -> Tensor:
    """Return statistics that depend on noise, blur and compression, and little on the scene.

    These are quantiles over places, so that the few sharp edges and the few smooth areas count: energies of the Haar
    coefficients in three directions at two scales (noise); spectra of windows relative to the noise, and the blur radii
    that the ``window_net`` of ``net`` reads from them (blur); the level of the noise, brightness, contrast, and the
    JPEG quality. ``noise_in_mean`` is the noise in the mean of the channels relative to that of independent or gray
    ones.

    Shape:
        - image: (B, 3, H, W) in [0, 1], H and W at least 32
        - quality: (B,), JPEG quality of libjpeg; 100 for uncompressed images
        - output: (B, F), F = ``NUM_STATISTICS``
    """
    checks.expect_shape("frame_statistics", "image", image, "(B, C, H, W)", (None, 3, None, None))
    x = image.float()
    noise = estimate_noise(x).clamp(min=_LEAST_NOISE)
    spectra = net.spectra(x, noise * noise_in_mean).flatten(1, 2)
    reading = net.window_net(spectra.reshape(-1, *spectra.shape[-2:]) / 4 - 0.5).view(*spectra.shape[:2], 3)
    log_radius, log_confidence = reading[..., 0].clamp(-3, 2.2), reading[..., 1].clamp(-2, 4)
    weight = log_confidence.exp()
    mean_radius = (log_radius * weight).sum(1) / weight.sum(1)
    radii = _weighted_quantiles(log_radius, weight, _RADIUS_QUANTILES)
    profile = spectra.mean(-1)  # over directions: (B, windows, scales)
    levels = torch.tensor(_SPECTRUM_QUANTILES, device=x.device)
    profiles = profile.quantile(levels, dim=1).movedim(0, 1).flatten(1)
    compression = (100 - quality.to(x)) / 50
    luma = x.mean(1)
    single = [
        mean_radius, log_confidence.mean(1), log_confidence.amax(1), noise.log(), luma.mean((1, 2)),
        (luma.std((1, 2)) + 1 / 255).log(), compression, (compression > 0).float(),
    ]  # fmt: skip
    usable = block_energy(x)[2].flatten(1)
    energies = [_energies(x, _BLOCK // 2, usable), _energies(F.avg_pool2d(x, 2), _BLOCK // 4, usable)]
    return torch.cat([*energies, profiles, radii, torch.stack(single, 1)], 1)


def _energies(x: Tensor, block: int, usable: Tensor) -> Tensor:
    """Quantiles over unclipped blocks of the log root mean square Haar coefficients in three directions: (B, 3 Q)."""
    bands = haar(*quads(x)).transpose(0, 1)
    energy = F.avg_pool2d(bands.square().mean(2), block).flatten(2)
    energy = energy.masked_fill(~usable[:, None], float("nan"))
    levels = torch.tensor(_ENERGY_QUANTILES, device=x.device)
    return (0.5 * torch.log(energy.nanquantile(levels, dim=2) + _LEAST_NOISE**2)).movedim(0, 2).flatten(1)


def _weighted_quantiles(values: Tensor, weights: Tensor, levels: tuple[float, ...]) -> Tensor:
    ordered, order = values.sort(dim=1)
    share = weights.gather(1, order).cumsum(1)
    share = share / share[:, -1:]
    wanted = torch.tensor(levels, device=values.device).expand(len(values), -1).contiguous()
    return ordered.gather(1, torch.searchsorted(share, wanted).clamp(max=values.shape[1] - 1))


class StatisticsNet(nn.Module):
    """Read the logarithms of blur radius and noise level from the statistics of a frame.

    Some of the statistics are blur radii of windows, which the network reads with layers of its own: those of a
    :class:`DefocusEstimator` that it was trained with, and that do not change with the estimator in use.

    Shape:
        - statistics: (B, F), see ``frame_statistics``
        - output: means (B, 2) and log scales (B, 2) of Laplace distributions: log root mean square blur radius in
          pixels, log standard deviation of the noise in [0, 1] values
    """

    def __init__(self, *, width: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.spectra = WindowSpectra()
        self.window_net = window_net().requires_grad_(False)
        self.register_buffer("center", torch.zeros(NUM_STATISTICS))
        self.register_buffer("spread", torch.ones(NUM_STATISTICS))
        self.layers = nn.Sequential(
            nn.Linear(NUM_STATISTICS, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(width, 4),
        )  # fmt: skip

    def forward(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Read a batch."""
        # frames unlike the training material stay within what the layers were trained on
        normalized = ((statistics - self.center) / self.spread).clamp(-4, 4)
        means, log_scales = self.layers(normalized).chunk(2, dim=1)
        offset = means.new_tensor([0.0, -4.0])  # about the middle of the training distribution
        return means + offset, log_scales.clamp(-4, 1.5)
