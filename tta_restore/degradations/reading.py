"""Degradation estimates of frames: means, uncertainties, and samples that fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.ambient import with_usual_defaults
from tta_restore.degradations._ranges import choice, rand
from tta_restore.degradations.blur import Blur, BlurParameters, pupil_kernels
from tta_restore.degradations.compose import Compose, ComposeParameters
from tta_restore.degradations.degradation import (
    STEP,
    Degradation,
    Parameters,
    just_noticeable,
    normal,
    tensor_from_json,
    tensor_to_json,
)
from tta_restore.degradations.jpeg import Jpeg, JpegParameters, quality_tables, tables_quality
from tta_restore.degradations.noise import Noise, NoiseParameters
from tta_restore.degradations.quantize import Clip, Quantize
from tta_restore.degradations.resize import Resize

__all__ = ["PARTS", "Reading"]

PARTS = ("blur", "noise", "jpeg")
"""Degradations that a reading is about, in the order of the camera."""

_SURE = 20.0  # log odds of a blur that is not in question
# Log odds of an even blur between which its radius turns from that of a frame without blur, in pixels, to the one read
_DOUBTFUL, _NO_BLUR, _NO_BLUR_STD = (-1.0, 1.0), 0.25, 0.3
_SHARED = 0.3  # share of the error's variance that frames of one camera have in common, which pooling does not remove
_MAX_RADII = 2048
_FILTER_FLOOR = 1.0  # pixels added to the standard deviations of filters before they are compared
_PUPIL_STEP = 0.144  # relative squared distance of two predictions of a pupil function that counts as a step
_ABSENT = 0.35  # root mean square radius in pixels below which no blur is applied


@dataclass(frozen=True, eq=False)
class Reading:
    """Degradation of one or more frames of one camera.

    Attributes:
        noise: mean and standard deviation of the logarithm of the read noise, (2,).
        shot: mean and standard deviation of the variance per value, (2,).
        blur: mean and standard deviation of the logarithm of the root mean square radius in pixels, (2,).
        jpeg: probability that the frames were compressed, quality, standard deviation of the quality, (3,).
        tables: quantization tables of the files, (2, 64); None where they are not known.
        pupils: pupil functions that fit, the most likely first, over [-2.3, 2.3] root mean square radii, (S, A, A).
        radii: radii relative to the mean, at pairs of neighboring places, (M, 2).
        weights: confidence of each pair, (M,).
        statistics: sums from which symmetric ``pupils`` were found, of all frames, (1, P).
        asymmetry: mean of :func:`tta_restore.degradations.asymmetry.estimate_asymmetry` over the frames, (2, 2).
        frames: number of frames.
        channel_correlation: correlation of the noise between channels, and fraction of the frames that show it, (2,).
        even_blur: if the blur is the same everywhere: log odds that there is any, of half a pixel or more, rather than
            soft content, mean and standard deviation of the logarithm of its radius in pixels, (3,); 0 if not read.
        blurred: log odds that there is the ``blur`` and not only soft content, ().
        correlation: standard deviation of the noise's Gaussian filter in pixels, 0 for white noise, and fraction of the
            frames that show it, (2,).
        code: what the defocus estimator predicts of the pupil function, which lenses are compared by, (D,); if it is
            empty they are compared by the size of the blur alone.
    """

    noise: Tensor
    shot: Tensor
    blur: Tensor
    jpeg: Tensor
    tables: Tensor | None
    pupils: Tensor
    radii: Tensor
    weights: Tensor
    statistics: Tensor
    asymmetry: Tensor
    frames: int = 1
    channel_correlation: Tensor = field(default_factory=lambda: torch.zeros(2))
    correlation: Tensor = field(default_factory=lambda: torch.zeros(2))
    even_blur: Tensor = field(default_factory=lambda: torch.zeros(3))
    blurred: Tensor = field(default_factory=lambda: torch.tensor(_SURE))
    code: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def mean(self) -> dict[str, float]:
        """Return the mean of every parameter; noise and shot in [0, 1] values, blur in pixels, JPEG as a quality."""
        probability, quality, _ = self.jpeg.tolist()
        return {
            "noise_std": math.exp(float(self.noise[0])),
            "noise_shot": float(self.shot[0]),
            "blur_radius": math.exp(float(self.blur[0])),
            "jpeg_quality": quality if probability >= 0.5 else 100.0,
        }

    @property
    def uncertainty(self) -> dict[str, float]:
        """Standard deviation of every parameter, in its unit."""
        mean = self.mean
        return {
            "noise_std": mean["noise_std"] * float(self.noise[1]),
            "noise_shot": float(self.shot[1]),
            "blur_radius": mean["blur_radius"] * float(self.blur[1]),
            "jpeg_quality": float(self.jpeg[2]),
        }

    @property
    def between_channels(self) -> float:
        """Correlation of the noise between channels, in [0, 1]; 0 where fewer than half of the frames show it."""
        return _shown(self.channel_correlation)

    @property
    def between_pixels(self) -> float:
        """Standard deviation in pixels of the Gaussian filter that correlates the noise.

        0 for white noise, and where fewer than half of the frames show which it is.
        """
        return _shown(self.correlation)

    def with_even_blur(self) -> Reading:
        """Return the reading whose blur is ``even_blur``, or hardly any where the odds are against it.

        Frames that upscalers get were blurred alike and then reduced; what is soft there is mostly content.
        """
        odds, mean, deviation = self.even_blur
        if deviation == 0:
            return self
        low, high = _DOUBTFUL
        blurred, sharp = ((odds - low) / (high - low)).clamp(0, 1), math.log(_NO_BLUR)
        variance = blurred * deviation**2 + (1 - blurred) * (_NO_BLUR_STD**2 + blurred * (mean - sharp) ** 2)
        return replace(self, blur=torch.stack([sharp + blurred * (mean - sharp), variance.sqrt()]), blurred=odds)

    def degradation(self, include: Collection[str] = PARTS, *, scale: int = 1, kernel: str = "bicubic") -> Compose:
        """Return the degradation whose parameters :meth:`sample` draws, in the order of the camera.

        Args:
            include: parts to apply, of "blur", "noise", "jpeg"; values are always clipped and rounded to 8 bits.
            scale: factor by which the frame is smaller than the image wanted.
            kernel: kernel of the downscaling, see :class:`Resize`.
        """
        _expect_parts("degradation", include)
        items: list[Degradation] = [Blur()] if "blur" in include else []
        items += [Resize(scale, kernel)] if scale > 1 else []
        items += [Noise()] if "noise" in include else []
        items += [Clip(), Quantize()]
        return Compose([*items, Jpeg()] if "jpeg" in include else items)

    @with_usual_defaults
    def sample(
        self,
        generator: torch.Generator,
        n: int,
        include: Collection[str] = PARTS,
        *,
        scale: int = 1,
        spread: float = 1.0,
        varying: bool = True,
        max_size: int | None = None,
    ) -> ComposeParameters:
        """Draw ``n`` sets of parameters that fit the frames, for :meth:`degradation` with the same parts and scale.

        Args:
            generator: source of randomness.
            n: number of sets.
            include: parts to draw, of "blur", "noise", "jpeg".
            scale: factor by which the frame is smaller; blur is drawn in pixels of the large image.
            spread: multiple of the uncertainty that the draws vary by; 0 draws means.
            varying: let the blur radius vary over an image as it does between neighboring places of the frames.
            max_size: largest side of the blur kernels in pixels; None for what the radii need.
        """
        _expect_parts("sample", include)
        drawn: dict[str, Parameters] = {}
        if "blur" in include:
            drawn["blur"] = self._sample_blur(generator, n, scale, spread, varying, max_size)
        if "noise" in include:
            level = (self.noise[0] + spread * self.noise[1] * normal((n,), generator, self.noise)).exp()
            shot = self.shot[0] + spread * self.shot[1] * normal((n,), generator, self.noise)
            shot = shot.clamp(0, 1) if float(self.shot[0]) > 0 else torch.zeros(n)
            between = torch.full((n,), self.between_channels) if self.between_channels else None
            drawn["noise"] = NoiseParameters(level.clamp(0, 1), shot, torch.full((n,), self.between_pixels), between)
        if "jpeg" in include:
            probability, quality, deviation = self.jpeg.tolist()
            applied = (rand(generator, n) < probability).long()
            if self.tables is not None:
                tables = self.tables.expand(n, 2, 64)
            else:
                drawn_quality = quality + spread * deviation * normal((n,), generator, self.noise)
                tables = quality_tables(drawn_quality.clamp(2, 100))
            drawn["jpeg"] = JpegParameters(tables, torch.full((n,), 2), applied)
        template = self.degradation(include, scale=scale)
        return ComposeParameters(
            tuple(
                drawn[item.kind] if item.kind in drawn else item.sample(generator, n) for item in template.degradations
            )
        )

    def _sample_blur(
        self, generator: torch.Generator, n: int, scale: int, spread: float, varying: bool, max_size: int | None
    ) -> BlurParameters:
        # the most likely pupil functions more often
        rank = torch.arange(len(self.pupils), dtype=torch.float32)
        pupils = self.pupils[choice(torch.exp(-rank / max(len(self.pupils) / 2, 1)), generator, n)]
        relative = self.radii[choice(self.weights, generator, n)] if varying else torch.ones(n, 2)
        center = (self.blur[0] + spread * self.blur[1] * normal((n,), generator, self.blur)).exp()
        radius = center[:, None] * relative
        radius = torch.where(radius < _ABSENT, torch.zeros_like(radius), radius) * scale
        levels = 5 if varying else 1
        steps = torch.linspace(0, 1, levels)
        radius = radius[:, :1] + (radius[:, 1:] - radius[:, :1]) * steps
        kernels = pupil_kernels(pupils, radius, max_size=max_size)
        if not varying:
            return BlurParameters(kernels, radius)
        ramp = torch.linspace(0, 1, 16)
        grid_y, grid_x = torch.meshgrid(ramp, ramp, indexing="ij")
        angle = 2 * math.pi * rand(generator, n)[:, None, None]
        position = 0.5 + angle.cos() * (grid_x - 0.5) + angle.sin() * (grid_y - 0.5)
        return BlurParameters(kernels, radius, position.clamp(0, 1))

    @with_usual_defaults
    def distance(self, other: Reading, include: Collection[str] = PARTS) -> float:
        """Return how far two readings are apart, in just noticeable steps (about 20 %), over what is visible.

        Where noise and blur are not known to a step, their standard deviation counts as one: readings are far from
        each other only if they are different beyond doubt.

        Args:
            other: reading of other frames.
            include: parts to compare, of "blur", "noise", "jpeg".
        """
        _expect_parts("distance", include)
        floors = {"noise": 1 / 255, "blur": 0.4}
        steps = [self._steps(other, name, floor) for name, floor in floors.items() if name in include]
        if "jpeg" in include:
            qualities = torch.tensor([self.mean["jpeg_quality"], other.mean["jpeg_quality"]])
            first, second = quality_tables(qualities)[:, 0].float()
            steps.append(just_noticeable(first, second, 3.0).mean())
        if "blur" in include and self.code.numel() and self.code.shape == other.code.shape:
            size = self.code.square().sum() + other.code.square().sum()
            apart = (self.code - other.code).square().sum() / size.clamp(min=1e-12)
            # the shape of a small blur is not visible
            visible = min(self.mean["blur_radius"], other.mean["blur_radius"], 1.0)
            steps.append(apart / _PUPIL_STEP * visible)
        if "noise" in include and min(float(self.correlation[1]), float(other.correlation[1])) >= 0.5:
            # whether the noise is white; noise that cannot be seen has no correlation
            noise = min(self.mean["noise_std"], other.mean["noise_std"])
            between = just_noticeable(self.correlation[0], other.correlation[0], _FILTER_FLOOR)
            steps.append(between * noise / (noise + 1 / 255))
        return float(torch.stack(steps).square().sum().sqrt())

    def _steps(self, other: Reading, name: str, floor: float) -> Tensor:
        first, second = getattr(self, name), getattr(other, name)
        step = just_noticeable(first[0].exp(), second[0].exp(), floor)
        variance = first[1].square() + second[1].square()
        if name == "blur":  # which may be soft content
            chances = torch.stack([self.blurred, other.blurred]).sigmoid()
            variance = variance + (chances * (1 - chances)).sum() * (first[0] - second[0]).square()
        return step / torch.sqrt(1 + variance / STEP**2)

    @staticmethod
    @with_usual_defaults
    def pool(readings: Sequence[Reading], estimator: Any = None) -> Reading:
        """Combine readings of frames of one camera.

        Args:
            readings: at least one.
            estimator: the :class:`Estimator`, which finds the pupil functions, and the code that they are compared by,
                again from the statistics of all frames; without it they are those of the readings, in turn.

        Raises:
            ValueError: there is no reading.
        """
        if not readings:
            raise ValueError("Reading.pool: expected at least one reading, got none")
        if len(readings) == 1:
            return readings[0]
        frames = sum(reading.frames for reading in readings)
        count = torch.tensor([float(reading.frames) for reading in readings])

        def combine(name: str) -> Tensor:
            values = torch.stack([getattr(reading, name) for reading in readings])
            weight = count / values[:, 1].square().clamp(min=1e-8)
            mean = (weight * values[:, 0]).sum() / weight.sum()
            single = (count * values[:, 1].square()).sum() / count.sum()
            # errors of one frame average out, those that the frames share stay
            scatter = (weight * (values[:, 0] - mean).square()).sum() / weight.sum()
            shrink = _SHARED + (1 - _SHARED) / frames
            # the blur of a camera differs from frame to frame with the distance of the scene
            variance = torch.maximum(single * shrink, scatter if name == "blur" else scatter * shrink)
            return torch.stack([mean, variance.sqrt()])

        jpeg = torch.stack([reading.jpeg for reading in readings])
        present = (count * jpeg[:, 0]).sum() / count.sum()
        weight = count * jpeg[:, 0].clamp(min=1e-6)
        quality = (weight * jpeg[:, 1]).sum() / weight.sum()
        deviation = ((weight * (jpeg[:, 2].square() + (jpeg[:, 1] - quality).square())).sum() / weight.sum()).sqrt()
        tables = [reading.tables for reading in readings]
        radii, weights = (torch.cat([getattr(reading, name) for reading in readings]) for name in ("radii", "weights"))
        kept = torch.linspace(0, len(radii) - 1, min(len(radii), _MAX_RADII)).long()
        statistics = torch.stack([reading.statistics for reading in readings]).sum(0)

        def mean_of(name: str) -> Tensor:
            values = torch.stack([getattr(reading, name) for reading in readings])
            return (count.view(-1, *[1] * (values.ndim - 1)) * values).sum(0) / count.sum()

        waves = torch.stack([reading.asymmetry for reading in readings])
        asymmetry = (count[:, None, None] * waves).sum(0) / count.sum()

        def of_shown(name: str) -> Tensor:
            value, shown = torch.stack([getattr(reading, name) for reading in readings]).unbind(1)
            showing = count * shown
            return torch.stack([(showing * value).sum() / showing.sum().clamp(min=1e-6), showing.sum() / count.sum()])

        if estimator is not None:
            pupils = estimator.candidates(statistics, asymmetry, frames)
            code = estimator.code(statistics) if hasattr(estimator, "code") else torch.zeros(0)
        else:
            longest = max(len(reading.pupils) for reading in readings)
            in_turn = [r.pupils[i] for i in range(longest) for r in readings if i < len(r.pupils)]
            pupils, code = torch.stack(in_turn[:longest]), readings[0].code
            if all(reading.code.shape == code.shape for reading in readings):
                code = mean_of("code")
        return Reading(
            noise=combine("noise"),
            shot=combine("shot"),
            blur=combine("blur"),
            jpeg=torch.stack([present, quality, deviation]),
            tables=None if any(table is None for table in tables) or not _all_equal(tables) else tables[0],
            pupils=pupils,
            radii=radii[kept],
            weights=weights[kept],
            statistics=statistics,
            asymmetry=asymmetry,
            frames=frames,
            channel_correlation=of_shown("channel_correlation"),
            correlation=of_shown("correlation"),
            even_blur=mean_of("even_blur"),
            blurred=mean_of("blurred"),
            code=code,
        )

    @with_usual_defaults
    def tensors(self) -> dict[str, Tensor]:
        """Return all fields as tensors, for a state dict; :meth:`from_tensors` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: torch.as_tensor(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Reading:
        """Return the reading that :meth:`tensors` wrote."""
        checks.expect_known("Reading", tensors, [field.name for field in fields(cls)])
        values: dict[str, Any] = {"tables": None} | dict(tensors)
        return cls(**(values | {"frames": int(tensors["frames"])}))

    def to_dict(self) -> dict[str, Any]:
        """Return the reading as JSON; :meth:`from_dict` reads it back."""
        return {name: tensor_to_json(value) for name, value in self.tensors().items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Reading:
        """Return the reading that :meth:`to_dict` wrote."""
        return cls.from_tensors({name: tensor_from_json(value) for name, value in content.items()})


def file_jpeg(tables: Tensor) -> Tensor:
    """Return the JPEG part of a reading from the tables of a file: certain."""
    return torch.tensor([1.0, tables_quality(tables), 0.5])


def _shown(value: Tensor) -> float:
    """Return what at least half of the frames show: the first of (2,), and 0 for fewer."""
    mean, shown = value.tolist()
    return mean if shown >= 0.5 else 0.0


def _expect_parts(function: str, include: Collection[str]) -> None:
    for name in include:
        checks.expect_choice(function, "include", name, PARTS)


def _all_equal(tables: Sequence[Tensor | None]) -> bool:
    first = tables[0]
    return first is not None and all(table is not None and torch.equal(table, first) for table in tables)
