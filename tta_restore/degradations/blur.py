"""Blur by a lens or by given point spread functions, the same everywhere or varying over the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.degradations import lens as optics
from tta_restore.degradations._convolve import convolve
from tta_restore.degradations._ranges import Range, expect_range, on_cpu, rand, spaced
from tta_restore.degradations.degradation import (
    Degradation,
    Parameters,
    at_least_float32,
    just_noticeable,
    normal,
    quantity,
)
from tta_restore.degradations.registry import register_degradation
from tta_restore.models.defocus.pupil import rasterize_pupil

__all__ = ["PUPIL_REACH", "PUPIL_SIZE", "Blur", "BlurParameters", "pupil_kernels", "rotate_pupils"]

PUPIL_SIZE = 23
"""Side of a sampled pupil function."""
PUPIL_REACH = 2.3
"""Half the side that a sampled pupil function covers, in units of its root mean square radius."""

_NAMED = {
    "disk": optics.disk,
    "gaussian": optics.gaussian,
    "exponential": optics.exponential,
    "ring": optics.ring(),
    "bubble": optics.bubble,
    "triangle": optics.polygon(3),
    "square": optics.polygon(4),
    "hexagon": optics.polygon(6),
    "cat_eye": optics.cat_eye(),
    "ellipse": optics.ellipse(),
    "coma": optics.center_pupil(optics.coma),
}
_INVISIBLE = 0.4  # root mean square radius in pixels that cannot be told from none, about
_PUPIL_STEP = 0.15  # squared relative distance of two pupil functions that is just noticeable


@dataclass(frozen=True, eq=False)
class BlurParameters(Parameters):
    """Point spread functions at R evenly spaced positions of a map, their radii, and the map."""

    kernels: Tensor = quantity("share of the light, sums to 1", minimum=0, maximum=1 + 1e-4, shape="(N, R, K, K)")
    radius: Tensor = quantity("root mean square radius in pixels, before sampling", minimum=0, shape="(N, R)")
    position: Tensor | None = quantity(
        "position between the first and the last kernel", minimum=0, maximum=1, shape="(N, h, w)", default=None
    )


@register_degradation("blur")
@dataclass(frozen=True, eq=False)
class Blur(Degradation):
    """Blur of light by a defocused or imperfect lens, or by given point spread functions (PSFs).

    Args:
        radius: root mean square radius of the PSF in pixels, drawn log-uniformly above 0.1. A Gaussian of standard
            deviation s has the radius ``s * sqrt(2)``.
        lens: pupil functions to draw from: names ("disk", "gaussian", "exponential", "ring", "bubble", "triangle",
            "square", "hexagon", "cat_eye", "ellipse", "coma"), "random" for a broad prior of symmetric and asymmetric
            shapes (:func:`tta_restore.degradations.lens.random_lens`), a ``Lens``, a tensor (M, A, A) of pupil
            functions sampled over [-2.3, 2.3] root mean square radii, or a tuple of these. Turned by a random angle.
        psf: PSFs in pixels, (K, K) or (M, K, K), K odd, used as they are instead of ``lens`` and ``radius``.
        varying_prob: probability that the radius varies over the image, between two draws, along a smooth random map.
        levels: kernels that a varying blur interpolates between.
        linear: blur linear light; False blurs stored values.
        log_uniform: False draws the radius uniformly.

    Raises:
        ValueError: a setting is out of range.
    """

    radius: Range = (0.3, 4.0)
    lens: str | optics.Lens | Tensor | tuple[str | optics.Lens, ...] = ("gaussian", "disk", "random")
    psf: Tensor | None = None
    varying_prob: float = 0.0
    levels: int = 6
    linear: bool = True
    log_uniform: bool = True

    Parameters = BlurParameters

    def __post_init__(self) -> None:
        expect_range("Blur", "radius", self.radius, minimum=0, maximum=64)
        checks.expect_number("Blur", "varying_prob", self.varying_prob, minimum=0, maximum=1)
        checks.expect_int("Blur", "levels", self.levels, minimum=2)
        if self.psf is not None:
            psf = self.psf if self.psf.ndim == 3 else self.psf[None]
            shape = checks.expect_shape("Blur", "psf", psf, "(M, K, K)")
            if shape[1] != shape[2] or shape[1] % 2 == 0 or bool((psf < 0).any()):
                raise ValueError(f"Blur: expected psf (M, K, K) with odd K and values >= 0, got {shape}")
            object.__setattr__(self, "psf", psf / psf.sum((1, 2), keepdim=True))
        if not isinstance(self.lens, Tensor):
            for name in self._lenses():
                if not isinstance(name, optics.Lens):
                    checks.expect_choice("Blur", "lens", name, (*_NAMED, "random"))
            if any(isinstance(item, optics.Lens) for item in self._lenses()) and "random" not in self._lenses():
                # pupil functions of lenses are code; their samples can be saved
                object.__setattr__(self, "lens", optics.rasterize_pupils([_lens(item) for item in self._lenses()]))
        else:
            shape = checks.expect_shape("Blur", "lens", self.lens, "(M, A, A)")
            if shape[1] != shape[2]:
                raise ValueError(f"Blur: expected lens (M, A, A), got {shape}")

    def sample(self, generator: torch.Generator, n: int) -> BlurParameters:
        """Draw ``n`` sets of parameters."""
        if self.psf is not None:
            index = (rand(generator, n) * len(self.psf)).long().clamp(max=len(self.psf) - 1)
            kernels = self.psf[index].cpu().float()[:, None]
            return BlurParameters(kernels, _spread(kernels))
        pupils = self._draw_pupils(generator, n)
        first = spaced(self.radius, generator, n, floor=0.1, log=self.log_uniform)
        if self.varying_prob == 0:
            return BlurParameters(pupil_kernels(pupils, first[:, None]), first[:, None])
        second, varies = (
            spaced(self.radius, generator, n, floor=0.1, log=self.log_uniform),
            rand(generator, n) < self.varying_prob,
        )
        second = torch.where(varies, second, first)
        steps = torch.linspace(0, 1, self.levels)
        field = normal((n, 1, 5, 5), generator, first)
        position = torch.special.ndtr(1.3 * F.interpolate(field, size=(32, 32), mode="bicubic", align_corners=True))
        radius = first[:, None] + (second - first)[:, None] * steps
        return BlurParameters(pupil_kernels(pupils, radius), radius, position[:, 0])

    def apply(self, sharp: Tensor, parameters: BlurParameters, generator: torch.Generator | None = None) -> Tensor:
        """Blur the images, with mirrored borders; see :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters)
        x = at_least_float32(sharp)
        x = srgb_to_linear(x) if self.linear else x
        kernels, weights = parameters.kernels.to(x), None
        if parameters.position is not None:
            position = parameters.position.to(x)[:, None]
            position = F.interpolate(position, size=x.shape[-2:], mode="bilinear", align_corners=True)
            place = position * (kernels.shape[1] - 1)
            index = torch.arange(kernels.shape[1], device=x.device, dtype=x.dtype).view(1, -1, 1, 1)
            weights = (1 - (place - index).abs()).clamp(min=0)
        out = convolve(x, kernels, weights)
        return (linear_to_srgb(out) if self.linear else out).to(sharp.dtype)

    def distance(self, a: BlurParameters, b: BlurParameters) -> Tensor:
        """Return the distance of the root mean square radii at both ends and of the shapes, (N,)."""
        size = just_noticeable(a.radius[:, [0, -1]], b.radius[:, [0, -1]], _INVISIBLE).square().mean(1).sqrt()
        first, second = (_second_moments(part.kernels.mean(1)) for part in (a, b))
        shape = (first - second).square().sum(1) / (first.square() + second.square()).sum(1).clamp(min=_INVISIBLE**4)
        return torch.hypot(size, shape / _PUPIL_STEP)

    def _lenses(self) -> tuple[str | optics.Lens, ...]:
        return tuple(self.lens) if isinstance(self.lens, (tuple, list)) else (self.lens,)  # type: ignore[return-value]

    def _draw_pupils(self, generator: torch.Generator, n: int) -> Tensor:
        if isinstance(self.lens, Tensor):
            known: Sequence[Tensor] = list(self.lens.cpu().float())
        else:
            known = [torch.empty(0) if item == "random" else _sampled(item) for item in self._lenses()]
        chosen = (rand(generator, n) * len(known)).long().clamp(max=len(known) - 1).tolist()
        drawn, cpu = [], on_cpu(generator)
        for index in chosen:
            pupil = known[index]
            if pupil.numel() == 0:
                lens = optics.random_lens(cpu, radius=(1.0, 1.0), tails=0.2)
                pupil = optics.rasterize_pupils([lens], size=PUPIL_SIZE, reach=PUPIL_REACH)[0]
            drawn.append(pupil)
        if not drawn:
            return torch.zeros(0, PUPIL_SIZE, PUPIL_SIZE)
        return rotate_pupils(torch.stack(drawn), 2 * math.pi * rand(generator, n))


def pupil_kernels(pupils: Tensor, radius: Tensor, *, max_size: int | None = None) -> Tensor:
    """Scale pupil functions to point spread functions.

    Args:
        pupils: sampled over [-2.3, 2.3] root mean square radii.
        radius: root mean square radii in pixels.
        max_size: largest side of the kernels; light beyond is cut off.

    Shape:
        - pupils: (N, A, A); radius: (N, R)
        - output: (N, R, K, K), each summing to 1; K odd, as small as the largest radius allows
    """
    largest = float(radius.max()) if radius.numel() else 0.0
    size = 2 * max(math.ceil(largest * PUPIL_REACH - 0.5), 1) + 1
    size = size if max_size is None else min(size, max_size)
    n, levels = radius.shape
    repeated = pupils.repeat_interleave(levels, 0)
    return rasterize_pupil(repeated, radius.flatten(), size=size, reach=PUPIL_REACH).view(n, levels, size, size)


def _lens(item: str | optics.Lens) -> optics.Lens:
    return item if isinstance(item, optics.Lens) else optics.Lens(item, _NAMED[item], (1.0, 1.0))


def _sampled(item: str | optics.Lens) -> Tensor:
    return optics.rasterize_pupils([_lens(item)], size=PUPIL_SIZE, reach=PUPIL_REACH)[0]


def rotate_pupils(pupils: Tensor, angle: Tensor) -> Tensor:
    """Turn pupil functions (N, A, A) by angles (N,) in radians; each sums to 1."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, [len(pupils), 1, *pupils.shape[1:]], align_corners=False)
    turned = F.grid_sample(pupils[:, None], grid, align_corners=False)[:, 0].clamp(min=0)
    return turned / turned.sum((1, 2), keepdim=True)


def _spread(kernels: Tensor) -> Tensor:
    moments = _second_moments(kernels)
    return (moments[..., 0] + moments[..., 1]).clamp(min=0).sqrt()


def _second_moments(kernels: Tensor) -> Tensor:
    """Variances along x and y and twice the covariance, in pixels squared: (..., K, K) -> (..., 3)."""
    axis = torch.arange(kernels.shape[-1], dtype=kernels.dtype, device=kernels.device)
    across, down = kernels.sum(-2), kernels.sum(-1)
    x, y = (across * axis).sum(-1), (down * axis).sum(-1)
    xx, yy = (across * axis.square()).sum(-1) - x * x, (down * axis.square()).sum(-1) - y * y
    xy = torch.einsum("...yx,x,y->...", kernels, axis, axis) - x * y
    return torch.stack([xx, yy, 2 * xy], -1)
