"""PSF estimates of single frames: stored per frame, pooled, and compared to detect a PSF change."""

from __future__ import annotations

import torch
from torch import Tensor

from tta_restore.models.defocus.estimator import DefocusEstimate

_LOOK, _LOOKS = 256, 3  # large frames are read at 3 x 3 places of this many pixels
_NEIGHBOUR = 4  # cells of 8 pixels between two radii that one patch runs through
_LARGEST_ERROR = 1.0  # of the logarithm of a radius, whatever the estimator says

Reading = dict[str, Tensor]
"""Of one frame: "statistics" of the aperture (1, P), pairs of neighboring "radii" (N, 2), their "weights" (N,)."""


def looks(image: Tensor) -> Tensor:
    """Return the frame, or where it is large, 3 x 3 parts of it: (B or 9 B, C, h, w)."""
    height, width = image.shape[-2:]
    if max(height, width) <= _LOOK * _LOOKS:
        return image
    sides = [min(side, _LOOK) for side in (height, width)]
    starts = [
        [round(i * (n - s) / (_LOOKS - 1)) for i in range(_LOOKS)] for n, s in zip((height, width), sides, strict=True)
    ]
    return torch.cat([image[..., y : y + sides[0], x : x + sides[1]] for y in starts[0] for x in starts[1]])


def reading_of(estimate: DefocusEstimate) -> Reading:
    """Return the PSF estimate of a frame on the CPU."""
    radius, confidence = estimate.radius.cpu(), estimate.confidence.clamp(max=10).cpu()
    pairs, weights = [], []
    for axis in (1, 2):
        reach = min(_NEIGHBOUR, radius.shape[axis] - 1)
        count = radius.shape[axis] - reach
        for store, values in ((pairs, radius), (weights, confidence)):
            two = torch.stack([values.narrow(axis, 0, count), values.narrow(axis, reach, count)], dim=-1)
            store.append(two.reshape(-1, 2))
    return {
        "statistics": estimate.statistics.sum(0, keepdim=True).cpu(),
        "radii": torch.cat(pairs),
        "weights": torch.cat(weights).amin(1),
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
