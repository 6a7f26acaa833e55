"""Blind estimation of the degradation of a frame: noise, blur, JPEG compression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.degradations.jpeg_lattice import estimate_jpeg
from tta_restore.degradations.noise_level import estimate_noise
from tta_restore.degradations.reading import Reading, file_jpeg
from tta_restore.models import create_model
from tta_restore.models.defocus.estimator import DefocusEstimate, DefocusEstimator

__all__ = ["Estimator"]

_LOOK, _LOOKS = 256, 3  # large frames are read at 3 x 3 places of this many pixels
_NEIGHBOR = 4  # cells of 8 pixels between two radii that one patch runs through
_MIN_SIZE = 32
_MAX_PAIRS = 512
_MIN_NOISE = 0.3 / 255  # rounding to 8 bits


class Estimator(nn.Module):
    """Estimator of the degradation of frames, without a reference.

    Noise is read from the smoothest parts, JPEG compression from the lattice of the DCT coefficients or from the tables
    of the file, the defocus PSF by a :class:`DefocusEstimator` that is told the noise. Reading a frame needs no
    gradient and changes nothing.

    Args:
        num_candidates: pupil functions that fit, per reading.

    Example:
        >>> import torch
        >>> from tta_restore.degradations import Estimator
        >>> reading = Estimator().read(torch.rand(1, 3, 64, 64))
        >>> sorted(reading.mean)
        ['blur_radius', 'jpeg_quality', 'noise_shot', 'noise_std']
        >>> generator = torch.Generator().manual_seed(0)
        >>> camera, parameters = reading.degradation(), reading.sample(generator, 4)
        >>> camera.apply(torch.rand(4, 3, 48, 48), parameters, generator).shape
        torch.Size([4, 3, 48, 48])
    """

    def __init__(self, *, num_candidates: int = 8) -> None:
        super().__init__()
        checks.expect_int("Estimator", "num_candidates", num_candidates, minimum=1)
        self.num_candidates = num_candidates
        defocus = create_model("lens_estimator", checkpoint="lens_estimator")
        assert isinstance(defocus, DefocusEstimator)  # noqa: S101
        self.defocus = defocus.eval().requires_grad_(False)

    @torch.no_grad()
    def read(self, frame: Tensor, *, tables: Tensor | None = None) -> Reading:
        """Read the degradation of a frame.

        Args:
            frame: one frame, or B frames of one camera, which are pooled. Smaller ones than 32 x 32 are continued by
                their border.
            tables: quantization tables of the JPEG file (2, 64), if there is one, see :func:`file_tables`; blind
                otherwise.

        Shape:
            - frame: (C, H, W) or (B, C, H, W) in [0, 1], C = 1 or 3

        Raises:
            ValueError: the frame has another shape, or is not finite.
        """
        frames = frame[None] if frame.ndim == 3 else frame
        checks.expect_shape("Estimator.read", "frame", frames, "(B, C, H, W)")
        checks.expect_floating("Estimator.read", frame=frames)
        if frames.shape[1] not in (1, 3) or not len(frames):
            raise ValueError(
                f"Estimator.read: expected frame (C, H, W) or (B, C, H, W) with C = 1 or 3, got {tuple(frame.shape)}"
            )
        if not bool(frames.isfinite().all()):
            raise ValueError("Estimator.read: expected a finite frame, got NaN or infinity")
        readings = [self._read(image, tables) for image in frames.float().clamp(0, 1).split(1)]
        return Reading.pool(readings, self) if len(readings) > 1 else readings[0]

    def candidates(self, statistics: Tensor) -> Tensor:
        """Return pupil functions that fit pooled statistics, the most likely first: (1, P) -> (S, A, A)."""
        device = next(self.defocus.parameters()).device
        return self.defocus.candidates(statistics[0].to(device), self.num_candidates).cpu()

    def _read(self, image: Tensor, tables: Tensor | None) -> Reading:
        short = [max(_MIN_SIZE - side, 0) for side in image.shape[-2:]]
        image = F.pad(image, (0, short[1], 0, short[0]), mode="replicate").expand(-1, 3, -1, -1)
        noise = estimate_noise(image).clamp(min=_MIN_NOISE).cpu()
        if tables is not None:
            jpeg = file_jpeg(tables)
        else:
            found = estimate_jpeg(image[0])
            jpeg = torch.tensor([found.probability, found.quality, found.quality_std])
        device = next(self.defocus.parameters()).device
        estimate = self.defocus(looks(image).to(device), float(noise))
        log_radius, error, radii, weights = _radii(estimate)
        statistics = estimate.statistics.sum(0, keepdim=True).cpu()
        return Reading(
            noise=torch.stack([noise.log()[0], torch.tensor(0.15)]),
            shot=torch.zeros(2),
            blur=torch.stack([log_radius, error]),
            jpeg=jpeg,
            tables=tables,
            pupils=self.candidates(statistics),
            radii=radii,
            weights=weights,
            statistics=statistics,
        )


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


def _radii(estimate: DefocusEstimate) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted mean log radius, its error, and relative radii at pairs of neighboring cells with their weights."""
    radius, confidence = estimate.radius.cpu(), estimate.confidence.clamp(max=10).cpu()
    pairs, weights = [], []
    for axis in (1, 2):
        reach = min(_NEIGHBOR, radius.shape[axis] - 1)
        count = radius.shape[axis] - reach
        for store, values in ((pairs, radius), (weights, confidence)):
            two = torch.stack([values.narrow(axis, 0, count), values.narrow(axis, reach, count)], dim=-1)
            store.append(two.reshape(-1, 2))
    radii, weight = torch.cat(pairs), torch.cat(weights).amin(1)
    kept = torch.linspace(0, len(radii) - 1, min(len(radii), _MAX_PAIRS)).long()
    radii, weight = radii[kept], weight[kept]
    mean = (radii.log().mean(1) * weight).sum() / weight.sum()
    error = (1 / weight.mean()).clamp(0.1, 1.0)
    return mean, error, radii / mean.exp(), weight
