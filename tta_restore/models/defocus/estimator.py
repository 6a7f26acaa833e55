"""Reads the lens from blurred pictures: the shape of its aperture, and the blur radius everywhere.

Shape and size are estimated apart, because they are apart in the world: one lens has one aperture, and depth scales it
from pixel to pixel. Blur multiplies the spectrum of the scene with that of the aperture, so each small window is looked
at as its log power spectrum over log frequency and direction. There, a larger blur is a shift along the frequency axis:
a window first tells its radius, is shifted to unit radius, and then tells what it knows of the aperture. What all
windows know, of one picture or of many taken through the same lens, is averaged until the scene fades and the aperture
stays. A lens that is turned turns its spectrum: the networks see directions as a circle and treat all of them alike.

An average is not sure: many apertures would have looked much the same. The estimator therefore also remembers what it
said of lenses that were known, and answers with those of which it said nearly what it says now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.models.defocus.pupil import (
    align_pupils,
    cartesian_matrix,
    polar_samples,
    rasterize_pupil,
    rotate_pupil,
)
from tta_restore.models.defocus.spectra import DIRECTIONS, SCALES, STRIDE, WINDOW, WindowSpectra, at_unit_radius
from tta_restore.models.registry import register_model


@dataclass(frozen=True)
class DefocusEstimate:
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

    def __getitem__(self, part: slice) -> DefocusEstimate:
        return DefocusEstimate(*(getattr(self, field.name)[part] for field in fields(self)))

    @staticmethod
    def pool(estimates: Sequence[DefocusEstimate]) -> Tensor:
        """The statistics of several estimates of one lens: (B, P)."""
        return torch.stack([estimate.statistics for estimate in estimates]).sum(0)


@dataclass(frozen=True)
class WindowEstimate:
    """What every window says: log radius and log confidence (...), evidence (..., E, D), its weight (...)."""

    log_radius: Tensor
    log_confidence: Tensor
    evidence: Tensor
    weight: Tensor


class DefocusEstimator(nn.Module):
    """Estimates the lens that took a picture.

    Shape:
        - input: (B, 3, H, W), RGB in [0, 1], H and W at least 32
        - output: :class:`DefocusEstimate`

    Raises:
        ValueError: the picture is not (B, 3, H, W) or smaller than 32 x 32.
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
        self.window_net = nn.Sequential(
            _around(SCALES, 64), nn.GELU(), _around(64, 64), nn.GELU(), _Mean(), nn.Linear(64, 128), nn.GELU(),
            nn.Linear(128, 3),
        )  # fmt: skip
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
        # known apertures, and what was said of them; empty until :meth:`add_known`
        self.register_buffer("known", torch.zeros(known, aperture_size, aperture_size, dtype=torch.uint8))
        self.register_buffer("said", torch.zeros(known, rings, DIRECTIONS, dtype=torch.float16))

    def forward(self, x: Tensor, noise_std: float | Tensor = 1 / 255) -> DefocusEstimate:
        """Read the lens from (B, 3, H, W).

        Args:
            x: images.
            noise_std: standard deviation of the noise of stored values, one for all images or (B,); what lies below
                it in the spectrum is not taken for blur.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < WINDOW:
            raise ValueError(f"DefocusEstimator: expected (B, 3, H, W) with H, W >= {WINDOW}, got {tuple(x.shape)}")
        reading = self.read(self.spectra(x, noise_std).flatten(1, 2))
        cells, windows = ([(n - cut) // STRIDE + more for n in x.shape[-2:]] for cut, more in ((0, 0), (WINDOW, 1)))

        def on_grid(values: Tensor) -> Tensor:
            # windows reach over the grid of cells, the outermost cells take the nearest window's answer
            grid = values.view(len(x), 1, *windows)
            side = [n - m for n, m in zip(cells, windows, strict=True)]
            pad = (side[1] // 2, side[1] - side[1] // 2, side[0] // 2, side[0] - side[0] // 2)
            return F.pad(grid, pad, mode="replicate")[:, 0]

        return DefocusEstimate(
            radius=on_grid(reading.log_radius.exp()),
            confidence=on_grid(reading.log_confidence.exp()),
            statistics=self.statistics(reading),
        )

    def read(self, spectra: Tensor) -> WindowEstimate:
        """What every window says: (..., F, D) of :class:`WindowSpectra` -> (...)."""
        shape = spectra.shape[:-2]
        answer = self.window_net(spectra.reshape(-1, SCALES, DIRECTIONS) / 4 - 0.5).view(*shape, 3)
        log_radius, log_confidence, log_weight = answer.unbind(-1)
        log_radius = log_radius.clamp(-3, 2.2)
        seen = torch.cat(at_unit_radius(spectra, log_radius), dim=-2)
        evidence = self.evidence_net(seen.reshape(-1, 2 * SCALES, DIRECTIONS)).view(*shape, self.width, DIRECTIONS)
        return WindowEstimate(log_radius, log_confidence.clamp(-2, 4), evidence, log_weight.clamp(-8, 4).exp())

    def statistics(self, reading: WindowEstimate) -> Tensor:
        """Evidence summed over windows: (..., windows) -> (..., P)."""
        sums = (reading.evidence * reading.weight[..., None, None]).sum(-3).flatten(-2)
        return torch.cat([sums, reading.weight.sum(-1, keepdim=True)], dim=-1)

    def code(self, statistics: Tensor) -> Tensor:
        """The aperture in polar coordinates, as log transmission: (B, P) -> (B, D), D = rings * directions."""
        sums, total = statistics[:, :-1], statistics[:, -1:]
        mean = (sums / (total + 1e-3)).view(-1, self.width, DIRECTIONS)
        amount = (total / 20).log1p()[..., None].expand(-1, -1, DIRECTIONS)
        return self.aperture_net(torch.cat([mean, amount], dim=1)).flatten(1)

    def aperture(self, statistics: Tensor) -> Tensor:
        """Mean of the apertures that fit, at unit root mean square radius: (B, P) -> (B, A, A), summing to 1."""
        logits = self.code(statistics) @ self.cartesian.T
        return torch.softmax(logits, dim=-1).unflatten(1, (self.aperture_size, self.aperture_size))

    def candidates(self, statistics: Tensor, count: int) -> Tensor:
        """Apertures that fit, the most likely first: (P,) -> (N, A, A), N = `count`, each summing to 1.

        They are known apertures of which the estimator said nearly what it says now, turned and mirrored to fit; one
        that has not been told any (:meth:`add_known`) can only repeat the mean.
        """
        mean = self.aperture(statistics[None])
        if not bool(self.said.any()):
            return mean.expand(count, -1, -1)
        said = polar_samples(mean, self.rings, DIRECTIONS)[0]
        distance, angle, mirrored = align_pupils(said, self.said.float())
        near = distance.topk(min(count, len(distance)), largest=False).indices
        return rotate_pupil(self.known[near].float(), angle[near], mirrored[near])

    def add_known(self, statistics: Tensor, apertures: Tensor) -> None:
        """Be told the truth about lenses: (L, P) and (L, A, A), L as many as the estimator was made for."""
        self.said.copy_(polar_samples(self.aperture(statistics), self.rings, DIRECTIONS))
        self.known.copy_((apertures / apertures.amax((1, 2), keepdim=True) * 255).round())

    def kernels(self, statistics: Tensor, radius: Tensor, *, size: int = 17) -> Tensor:
        """Point spread functions of the estimated aperture: (P,), (L,) root mean square radii -> (L, K, K)."""
        return rasterize_pupil(self.aperture(statistics[None])[0], radius, size=size, reach=self.reach)


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


@register_model("lens_estimator", kind="estimator")
def lens_estimator(**config: Any) -> DefocusEstimator:
    """:class:`DefocusEstimator`; shipped as "lens_estimator"."""
    return DefocusEstimator(**config)
