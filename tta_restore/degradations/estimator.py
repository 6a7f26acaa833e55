"""Blind estimation of the degradation of a frame: noise, blur, JPEG compression."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore._core.ambient import with_usual_defaults
from tta_restore._core.color import is_gray
from tta_restore.degradations.asymmetry import MIN_RADIUS, asymmetric_pupils, estimate_asymmetry
from tta_restore.degradations.blur_statistics import BlurNet, blur_statistics
from tta_restore.degradations.jpeg_lattice import estimate_jpeg
from tta_restore.degradations.noise_correlation import (
    NoiseCorrelation,
    estimate_noise_correlation,
    haar_energies,
    noise_of_mean,
)
from tta_restore.degradations.noise_level import estimate_noise, estimate_noise_curve, largest_noise
from tta_restore.degradations.reading import Reading, file_jpeg
from tta_restore.degradations.statistics import StatisticsNet, frame_statistics
from tta_restore.models import create_model
from tta_restore.models.defocus.estimator import DefocusEstimate, DefocusEstimator, frame_crops, neighboring_radii

__all__ = ["Estimator"]

_MIN_SIZE = 32
_MAX_PAIRS = 512
_MIN_NOISE = 0.3 / 255  # rounding to 8 bits
_FOLDER = Path(__file__).parent / "weights"
_WEIGHTS, _BLUR_WEIGHTS = _FOLDER / "degradation_estimator.safetensors", _FOLDER / "blur_net.safetensors"
# Factors on the stated standard deviations of log radius and log noise, chosen on development photographs
_CALIBRATION = (1.15, 1.0)
_LAPLACE = math.sqrt(2)  # standard deviation of a Laplace distribution of scale 1
# Joint radii in pixels from which the defocus estimator counts, and from which it counts fully; its weight without
# noise and with noise of 8/255; the standard deviation of its log radius; the bias of the joint network on blurred
# frames. All from development photographs (TRAIN and DEV) and lenses.
_DEFOCUS_FROM = (0.5, 0.8)
_DEFOCUS_WEIGHT = (0.85, 0.5)
_DEFOCUS_STD = 0.25
_JOINT_BIAS = 0.2
_CORRELATED_STD = 0.08  # standard deviation of the log noise where it correlates between neighboring pixels


class Estimator(nn.Module):
    """Estimator of the degradation of frames, without a reference.

    JPEG compression is read from the lattice of the DCT coefficients, or from the tables of the file. Given that, a
    small network reads noise and blur together from statistics of the frame (``frame_statistics``), because noise
    looks like sharpness and softness like blur. Signal-dependent noise is read from several brightnesses,
    the shape of the defocus PSF and its variation over the frame by a ``DefocusEstimator``, given the noise.
    Reading a frame needs no gradient and changes nothing.

    Args:
        num_candidates: pupil functions that fit, per reading.
        defocus: estimator of the shape of the defocus PSF; the shipped one by default.

    Raises:
        ValueError: ``num_candidates`` is below 1.
        TypeError: ``num_candidates`` is no integer, or ``defocus`` no module.

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

    @with_usual_defaults
    def __init__(self, *, num_candidates: int = 8, defocus: DefocusEstimator | None = None) -> None:
        super().__init__()
        checks.expect_int("Estimator", "num_candidates", num_candidates, minimum=1)
        if defocus is not None and not isinstance(defocus, nn.Module):
            raise TypeError(f"Estimator: expected defocus to be a DefocusEstimator or None, got {defocus!r}")
        self.num_candidates = num_candidates
        shipped = create_model("lens_estimator", checkpoint="lens_estimator") if defocus is None else None
        self.defocus: Any = defocus if shipped is None else shipped.eval().requires_grad_(False)
        self.joint = StatisticsNet()
        self.joint.load_state_dict(load_file(_WEIGHTS))
        self.joint.eval().requires_grad_(False)
        self.blur_net = BlurNet()
        self.blur_net.load_state_dict(load_file(_BLUR_WEIGHTS))
        self.blur_net.eval().requires_grad_(False)

    @torch.no_grad()
    @with_usual_defaults
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
        if not all(math.isfinite(bound) for bound in frames.aminmax()):  # without a copy
            raise ValueError("Estimator.read: expected a finite frame, got NaN or infinity")
        readings = [self._read(_clamped(image.float()), tables) for image in frames.split(1)]
        return Reading.pool(readings, self) if len(readings) > 1 else readings[0]

    @with_usual_defaults
    def candidates(self, statistics: Tensor, asymmetry: Tensor, frames: int) -> Tensor:
        """Return pupil functions that fit the pooled statistics and asymmetry of frames, the most likely first.

        Shape:
            - statistics: (1, P); asymmetry: (2, 2)
            - output: (S, A, A)
        """
        device = next(self.defocus.parameters()).device
        symmetric = self.defocus.candidates(statistics[0].to(device), self.num_candidates).cpu()
        pupil, trust = asymmetric_pupils(asymmetry, frames)
        if pupil is None:
            return symmetric
        count = math.ceil(trust * self.num_candidates)
        return torch.cat([pupil.expand(count, -1, -1), symmetric[: self.num_candidates - count]])

    @torch.no_grad()
    @with_usual_defaults
    def code(self, statistics: Tensor) -> Tensor:
        """Return what pooled statistics (1, P) say of the pupil function, to compare lenses by: (D,)."""
        return self.defocus.code(statistics.to(next(self.defocus.parameters()).device))[0].cpu()

    def _read(self, image: Tensor, tables: Tensor | None) -> Reading:
        original = image[0]
        short = [max(_MIN_SIZE - side, 0) for side in image.shape[-2:]]
        image = F.pad(image, (0, short[1], 0, short[0]), mode="replicate").expand(-1, 3, -1, -1)
        if tables is not None:
            jpeg = file_jpeg(tables)
        else:
            found = estimate_jpeg(image[0])
            jpeg = torch.tensor([found.probability, found.quality, found.quality_std])
        device = next(self.defocus.parameters()).device
        parts = frame_crops(image).to(device)
        quality = float(jpeg[1]) if float(jpeg[0]) >= 0.5 else 100.0
        # compression removes colors, also those of noise
        correlation = estimate_noise_correlation(original) if quality == 100 else NoiseCorrelation(0.0, 0.0, None)
        in_mean = 1.0 if is_gray(original) else noise_of_mean(correlation.between_channels)  # spectra know gray images
        blur, noise = self._joint(parts, quality, in_mean)
        visible = float(estimate_noise(image).clamp(min=_MIN_NOISE))
        estimate = self.defocus(parts, visible * in_mean)
        blur = _fused_radius(blur, estimate, visible)
        radii, weights = _relative_radii(estimate)
        statistics = estimate.statistics.sum(0, keepdim=True).cpu()
        # compression removes the noise that its dependence on brightness would be read from
        shot = torch.zeros(2)
        if quality == 100:
            if correlation.between_pixels:  # the statistics are those of white noise
                noise = torch.tensor([math.log(correlation.std), _CORRELATED_STD])
            else:
                noise = _below(noise, largest_noise(original, correlation).cpu().clamp(min=_MIN_NOISE).log())
            shot = _shot_noise(image) / float(haar_energies(correlation.between_pixels or 0.0)[0])
            noise = _without_shot(noise, shot, image)
        radius = math.exp(float(blur[0]))
        asymmetry = torch.zeros(2, 2)
        if radius >= MIN_RADIUS:
            asymmetry = estimate_asymmetry(image[0], radius, visible)
        return Reading(
            noise=noise,
            shot=shot,
            blur=blur,
            jpeg=jpeg,
            tables=tables,
            pupils=self.candidates(statistics, asymmetry, 1),
            radii=radii,
            weights=weights,
            even_blur=self._even_blur(parts, quality),
            statistics=statistics,
            code=self.code(statistics),
            asymmetry=asymmetry,
            channel_correlation=_known(correlation.between_channels or None),
            correlation=_known(correlation.between_pixels),
        )

    def _even_blur(self, parts: Tensor, quality: float) -> Tensor:
        """Log odds that the frame is blurred, and if so alike everywhere mean and deviation of the log radius, (3,)."""
        odds, means, log_scales = (value.cpu() for value in self.blur_net(blur_statistics(parts, quality)))
        mean, std = _of_parts(means, log_scales.exp() * _LAPLACE)
        return torch.stack([odds.mean(), mean, std])

    def _joint(self, parts: Tensor, quality: float, noise_in_mean: float) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of log radius and of log noise, from one or several parts of a frame."""
        statistics = frame_statistics(
            parts, torch.full((len(parts),), quality), self.joint, noise_in_mean=noise_in_mean
        )
        means, log_scales = (value.cpu() for value in self.joint(statistics))
        mean, std = _of_parts(means, log_scales.exp() * _LAPLACE * torch.tensor(_CALIBRATION))
        return torch.stack([mean[0], std[0]]), torch.stack([mean[1], std[1]])


def _of_parts(means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of estimates from N parts of a frame, which share most of their error."""
    weight = 1 / deviations.square()
    return (weight * means).sum(0) / weight.sum(0), (1 / weight.mean(0)).sqrt()


def _known(value: float | None) -> Tensor:
    """Return a value, and whether the frame shows it, (2,)."""
    return torch.tensor([value or 0.0, float(value is not None)])


def _clamped(image: Tensor) -> Tensor:
    """Return an image in [0, 1], itself where it is: a copy of a large photo is hundreds of megabytes."""
    low, high = image.aminmax()
    return image if low >= 0 and high <= 1 else image.clamp(0, 1)


def _fused_radius(joint: Tensor, estimate: DefocusEstimate, noise_std: float) -> Tensor:
    """Combine the joint network's log radius (mean, standard deviation) with that of the defocus estimator.

    The joint network distinguishes sharp from blurred frames, and reads blur about a fifth too small, more where it
    varies over the frame; the defocus estimator measures visible blur well, but never reads less than about 0.7
    pixels, and pulls towards its mean where there is noise.
    """
    confidence = estimate.confidence
    defocus = float((estimate.radius.log() * confidence).sum() / confidence.sum())
    log_radius, deviation = joint.tolist()
    low, high = _DEFOCUS_FROM
    visible = min(max((math.exp(log_radius) - low) / (high - low), 0.0), 1.0)
    noisy = min(max((255 * noise_std - 2) / 6, 0.0), 1.0)
    weight = visible * (_DEFOCUS_WEIGHT[0] * (1 - noisy) + _DEFOCUS_WEIGHT[1] * noisy)
    corrected = log_radius + visible * _JOINT_BIAS
    mean = (1 - weight) * corrected + weight * defocus
    spread = weight * (1 - weight) * (defocus - corrected) ** 2
    variance = (1 - weight) ** 2 * deviation**2 + (weight * _DEFOCUS_STD * (1 + noisy)) ** 2 + spread
    return torch.tensor([mean, math.sqrt(variance)])


def _below(value: Tensor, bound: Tensor) -> Tensor:
    """Return mean and standard deviation (2,) of a normal distribution that is cut off above a bound."""
    mean, deviation = value.double()
    normal = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    beta = ((bound.double() - mean) / deviation).clamp(-5, 5)
    ratio = (normal.log_prob(beta).exp() / normal.cdf(beta)).float()
    kept = (1 - beta * ratio - ratio.square()).clamp(min=0.01)
    return torch.stack([torch.minimum(mean - deviation * ratio, bound.double()), deviation * kept.sqrt()]).to(value)


def _shot_noise(image: Tensor) -> Tensor:
    """Return the mean and standard deviation of the variance per value."""
    _, shot = estimate_noise_curve(image)
    return torch.tensor([float(shot[0]), 0.2 * float(shot[0])])


def _without_shot(noise: Tensor, shot: Tensor, image: Tensor) -> Tensor:
    """Turn the total noise, at the mean brightness, into the read noise."""
    if float(shot[0]) == 0:
        return noise
    variance = float(noise[0].exp()) ** 2 - float(shot[0]) * float(image.mean())
    # the difference of two estimates is less certain than either
    return torch.stack([torch.tensor(max(variance, _MIN_NOISE**2) ** 0.5).log(), noise[1] * math.sqrt(2)])


def _relative_radii(estimate: DefocusEstimate) -> tuple[Tensor, Tensor]:
    """Radii relative to their mean, at pairs of neighboring cells (M, 2), and their weights (M,)."""
    radii, weight = neighboring_radii(estimate)
    logs = radii.log()
    kept = torch.linspace(0, len(logs) - 1, min(len(logs), _MAX_PAIRS)).long()
    logs, weight = logs[kept], weight[kept]
    total = weight.sum()
    logs = logs - (logs.mean(1) * weight).sum() / total
    # part of the variation is the error of the estimates, whose Laplace scale is 1 / confidence
    variance = (logs.square().mean(1) * weight).sum() / total
    error = (2 / weight.square() * weight).sum() / total
    shrink = ((variance - error).clamp(min=0) / variance.clamp(min=1e-8)).sqrt()
    return (logs * shrink).exp(), weight
