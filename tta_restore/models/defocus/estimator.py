"""Estimator of the pupil function and the defocus map from blurred images.

Shape and size of the blur are estimated separately: a lens has one pupil function, and depth scales it from pixel to
pixel. Blur multiplies the spectrum of the scene by that of the point spread function (PSF), so every small window is
described by its log power spectrum over log frequency and direction. In this domain a larger blur is a shift along the
frequency axis: the radius of a window is predicted first, the spectrum is shifted to unit radius, and evidence on the
pupil function is predicted from the shifted spectrum. Averaging the evidence of many windows, of one image or several
images with the same lens, suppresses the scene. Rotating the lens rotates the spectrum: all convolutions are circular
along the direction axis.

The mean is a point estimate with which many pupil functions are consistent. The estimator therefore also stores its
predictions for a library of known pupil functions and can return those whose stored predictions are nearest to the
current one (k-nearest neighbors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core.ambient import with_usual_defaults
from tta_restore.models.defocus.pupil import (
    align_pupils,
    cartesian_matrix,
    polar_samples,
    rasterize_pupil,
    rotate_pupil,
)
from tta_restore.models.defocus.spectra import DIRECTIONS, SCALES, STRIDE, WINDOW, WindowSpectra, at_unit_radius
from tta_restore.models.registry import register_model

__all__ = [
    "DefocusEstimate",
    "DefocusEstimator",
    "WindowEstimate",
    "frame_crops",
    "lens_estimator",
    "neighboring_radii",
    "window_net",
]

_CROP, _CROPS = 256, 3  # large frames are read in 3 x 3 crops of this many pixels
_NEIGHBOR = 4  # cells of 8 pixels between two radii that occur within one patch


@dataclass(frozen=True)
class DefocusEstimate:
    """Estimate of the defocus of one or more images.

    Attributes:
        radius: defocus map (B, h, w): root mean square radius of the blur in pixels, one value per 8 x 8 pixels.
        confidence: (B, h, w), reciprocal scale of the error of the log radius.
        statistics: (B, P), sums over windows that determine the pupil function; those of images with the same lens add
            up.
    """

    radius: Tensor
    confidence: Tensor
    statistics: Tensor

    def __getitem__(self, part: slice) -> DefocusEstimate:
        return DefocusEstimate(*(getattr(self, field.name)[part] for field in fields(self)))

    @staticmethod
    def pool(estimates: Sequence[DefocusEstimate]) -> Tensor:
        """Return the joint statistics of several estimates of one lens: (B, P)."""
        return torch.stack([estimate.statistics for estimate in estimates]).sum(0)


@dataclass(frozen=True)
class WindowEstimate:
    """Predictions per window: log radius and log confidence (...), evidence (..., E, D) and its weight (...)."""

    log_radius: Tensor
    log_confidence: Tensor
    evidence: Tensor
    weight: Tensor


class DefocusEstimator(nn.Module):
    """Estimator of the pupil function and the defocus map of an image.

    Args:
        width: channels of the evidence.
        aperture_width: channels of the network that predicts the pupil function.
        rings: radial samples of the pupil function.
        aperture_size: side A of the rasterized pupil function in pixels.
        reach: half side of the raster in units of the root mean square radius.
        known: number of known pupil functions that can be stored.

    Shape: x (B, 3, H, W), RGB in [0, 1], H and W at least 32 -> :class:`DefocusEstimate`.

    Raises:
        ValueError: The image is not (B, 3, H, W) or smaller than 32 x 32.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        aperture_width: int = 192,
        rings: int = 14,
        aperture_size: int = 23,
        reach: float = 2.3,
        known: int = 1536,
    ) -> None:
        super().__init__()
        self.width, self.rings, self.aperture_size, self.reach = width, rings, aperture_size, reach
        self.code_dim = rings * DIRECTIONS
        self.spectra = WindowSpectra()
        self.window_net = window_net()
        self.evidence_net = nn.Sequential(
            _around(2 * SCALES, width), nn.GELU(), _around(width, width, 3), _Share(width), nn.GELU(),
            _around(width, width, 1),
        )  # fmt: skip
        wide = aperture_width
        self.aperture_net = nn.Sequential(
            _around(width + 1, wide), nn.GELU(), _around(wide, wide), _Share(wide), nn.GELU(), _around(wide, wide),
            nn.GELU(), _around(wide, rings, 1),
        )  # fmt: skip
        self.register_buffer("cartesian", cartesian_matrix(rings, DIRECTIONS, aperture_size, reach), persistent=False)
        # Known pupil functions, and the predictions for them; empty until add_known. 8 and 16 bits keep the file small.
        self.register_buffer("known", torch.zeros(known, aperture_size, aperture_size, dtype=torch.uint8))
        self.register_buffer("said", torch.zeros(known, rings, DIRECTIONS, dtype=torch.float16))

    @with_usual_defaults
    def forward(self, x: Tensor, noise_std: float | Tensor = 1 / 255) -> DefocusEstimate:
        """Return the estimate for images.

        Args:
            x: images (B, 3, H, W).
            noise_std: standard deviation of the noise of the stored values, one for all images or (B,). The part of
                the spectrum below the noise does not count as blur.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < WINDOW:
            raise ValueError(f"DefocusEstimator: expected (B, 3, H, W) with H, W >= {WINDOW}, got {tuple(x.shape)}")
        reading = self.read(self.spectra(x, noise_std).flatten(1, 2))
        cells, windows = ([(n - cut) // STRIDE + more for n in x.shape[-2:]] for cut, more in ((0, 0), (WINDOW, 1)))

        def on_grid(values: Tensor) -> Tensor:
            # Windows are larger than the cells of the map: the outermost cells take the value of the nearest window.
            grid = values.view(len(x), 1, *windows)
            side = [n - m for n, m in zip(cells, windows, strict=True)]
            pad = (side[1] // 2, side[1] - side[1] // 2, side[0] // 2, side[0] - side[0] // 2)
            return F.pad(grid, pad, mode="replicate")[:, 0]

        return DefocusEstimate(
            radius=on_grid(reading.log_radius.exp()),
            confidence=on_grid(reading.log_confidence.exp()),
            statistics=self.statistics(reading),
        )

    @with_usual_defaults
    def read(self, spectra: Tensor) -> WindowEstimate:
        """Return the predictions for window spectra (..., F, D) of :class:`WindowSpectra`."""
        shape = spectra.shape[:-2]
        answer = self.window_net(spectra.reshape(-1, SCALES, DIRECTIONS) / 4 - 0.5).view(*shape, 3)
        log_radius, log_confidence, log_weight = answer.unbind(-1)
        log_radius = log_radius.clamp(-3, 2.2)
        seen = torch.cat(at_unit_radius(spectra, log_radius), dim=-2)
        evidence = self.evidence_net(seen.reshape(-1, 2 * SCALES, DIRECTIONS)).view(*shape, self.width, DIRECTIONS)
        return WindowEstimate(log_radius, log_confidence.clamp(-2, 4), evidence, log_weight.clamp(-8, 4).exp())

    @with_usual_defaults
    def statistics(self, reading: WindowEstimate) -> Tensor:
        """Return the evidence summed over windows: (..., windows) -> (..., P)."""
        sums = (reading.evidence * reading.weight[..., None, None]).sum(-3).flatten(-2)
        return torch.cat([sums, reading.weight.sum(-1, keepdim=True)], dim=-1)

    def code(self, statistics: Tensor) -> Tensor:
        """Return the log transmission of the pupil function in polar coordinates: (B, P) -> (B, rings * directions)."""
        sums, total = statistics[:, :-1], statistics[:, -1:]
        mean = (sums / (total + 1e-3)).view(-1, self.width, DIRECTIONS)
        amount = (total / 20).log1p()[..., None].expand(-1, -1, DIRECTIONS)
        return self.aperture_net(torch.cat([mean, amount], dim=1)).flatten(1)

    def aperture(self, statistics: Tensor) -> Tensor:
        """Return the estimated pupil function, with unit sum: (B, P) -> (B, A, A)."""
        logits = self.code(statistics) @ self.cartesian.T
        return torch.softmax(logits, dim=-1).unflatten(1, (self.aperture_size, self.aperture_size))

    @with_usual_defaults
    def candidates(self, statistics: Tensor, count: int) -> Tensor:
        """Return candidate pupil functions, the most likely first, each with unit sum.

        Candidates are the known pupil functions whose stored predictions are nearest to the current one, rotated and
        reflected to fit. Without known ones (:meth:`add_known`) the estimate is repeated.

        Args:
            statistics: statistics of an estimate.
            count: number of candidates N.

        Shape: statistics (P,) -> (N, A, A).
        """
        mean = self.aperture(statistics[None])
        if not bool(self.said.any()):
            return mean.expand(count, -1, -1)
        said = polar_samples(mean, self.rings, DIRECTIONS)[0]
        distance, angle, mirrored = align_pupils(said, self.said.float())
        near = distance.topk(min(count, len(distance)), largest=False).indices
        return rotate_pupil(self.known[near].float(), angle[near], mirrored[near])

    def add_known(self, statistics: Tensor, apertures: Tensor) -> None:
        """Store the predictions for known pupil functions: statistics (L, P), apertures (L, A, A), L = ``known``."""
        self.said.copy_(polar_samples(self.aperture(statistics), self.rings, DIRECTIONS))
        self.known.copy_((apertures / apertures.amax((1, 2), keepdim=True) * 255).round())

    @with_usual_defaults
    def kernels(self, statistics: Tensor, radius: Tensor, *, size: int = 17) -> Tensor:
        """Return the PSFs of the estimated pupil function at root mean square radii: (P,), (L,) -> (L, K, K)."""
        return rasterize_pupil(self.aperture(statistics[None])[0], radius, size=size, reach=self.reach)


def window_net() -> nn.Sequential:
    """Build the network that reads log radius, log confidence and log weight from spectra of windows (N, F, D)."""
    return nn.Sequential(
        _around(SCALES, 64), nn.GELU(), _around(64, 64), nn.GELU(), _Mean(), nn.Linear(64, 128), nn.GELU(),
        nn.Linear(128, 3),
    )  # fmt: skip


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


class _Share(nn.Module):
    """Layer that adds a function of the mean over directions to every direction."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(x).mean(-1))[..., None]


def _around(inputs: int, outputs: int, size: int = 5) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, size, padding=size // 2, padding_mode="circular")


def frame_crops(image: Tensor) -> Tensor:
    """Return the frame, or 3 x 3 crops of a large one: (B, C, H, W) -> (B or 9 B, C, h, w)."""
    height, width = image.shape[-2:]
    if max(height, width) <= _CROP * _CROPS:
        return image
    sides = [min(side, _CROP) for side in (height, width)]
    starts = [
        [round(i * (n - s) / (_CROPS - 1)) for i in range(_CROPS)] for n, s in zip((height, width), sides, strict=True)
    ]
    return torch.cat([image[..., y : y + sides[0], x : x + sides[1]] for y in starts[0] for x in starts[1]])


def neighboring_radii(estimate: DefocusEstimate) -> tuple[Tensor, Tensor]:
    """Return the radii of pairs of neighboring cells, (M, 2) in pixels, and their confidences, (M,), on the CPU."""
    radius, confidence = estimate.radius.cpu(), estimate.confidence.clamp(max=10).cpu()
    pairs, weights = [], []
    for axis in (1, 2):
        reach = min(_NEIGHBOR, radius.shape[axis] - 1)
        count = radius.shape[axis] - reach
        for store, values in ((pairs, radius), (weights, confidence)):
            two = torch.stack([values.narrow(axis, 0, count), values.narrow(axis, reach, count)], dim=-1)
            store.append(two.reshape(-1, 2))
    return torch.cat(pairs), torch.cat(weights).amin(1)


@register_model("lens_estimator", kind="estimator")
def lens_estimator(**config: Any) -> DefocusEstimator:
    """Build a :class:`DefocusEstimator`; weights are included as "lens_estimator"."""
    return DefocusEstimator(**config)
