"""PSF estimates of single frames: stored per frame, pooled, and compared to detect a PSF change."""

from __future__ import annotations

import torch
from torch import Tensor

from tta_restore.models.defocus.estimator import DefocusEstimate, neighboring_radii

_LARGEST_ERROR = 1.0  # of the logarithm of a radius, whatever the estimator says

Reading = dict[str, Tensor]
"""Of one frame: "statistics" of the aperture (1, P), pairs of neighboring "radii" (N, 2), their "weights" (N,)."""


def reading_of(estimate: DefocusEstimate) -> Reading:
    """Return the PSF estimate of a frame on the CPU."""
    radii, weights = neighboring_radii(estimate)
    return {
        "statistics": estimate.statistics.sum(0, keepdim=True).cpu(),
        "radii": radii,
        "weights": weights,
    }


def radii_of(readings: list[Reading], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Radii that were read, surer ones more often, and what their logarithms may be off by: (256, 2), (256, 1)."""
    weights = torch.cat([reading["weights"] for reading in readings])
    chosen = torch.multinomial(weights, 256, replacement=True, generator=generator)
    error = (1 / weights[chosen, None]).clamp(max=_LARGEST_ERROR)
    return torch.cat([reading["radii"] for reading in readings])[chosen], error


def mean_log_radius(readings: list[Reading]) -> float:
    """Return the confidence-weighted mean log radius of the given estimates."""
    weights = torch.cat([reading["weights"] for reading in readings])
    logs = torch.cat([reading["radii"] for reading in readings]).log().mean(1)
    return float((logs * weights).sum() / weights.sum())


def aperture_distance(first: Tensor, second: Tensor) -> float:
    """Squared distance of two aperture pictures, (A, A), over the mean of their squares: 0 equal, 2 disjoint."""
    return float((first - second).square().sum() / (first.square().sum() + second.square().sum()) * 2)


def nearest(apertures: Tensor, other: Tensor) -> float:
    """Distance of the nearest of several pictures, (N, A, A), from another one, (A, A)."""
    return min(aperture_distance(aperture, other) for aperture in apertures)
