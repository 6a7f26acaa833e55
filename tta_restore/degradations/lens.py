"""Optics of defocus: pupil functions, lenses, and their point spread functions (PSFs).

A pupil function is the transmission of a lens, scaled to unit radius; the PSF at a pixel is the pupil function
scaled to the blur radius there. A lens adds the range of radii that the depth of the scene selects from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core.color import srgb_to_linear
from tta_restore.degradations.sensor import apply_sensor_model

__all__ = [
    "KERNEL_SIZE", "Lens", "Pupil", "blur_with_mixture", "bubble", "cat_eye", "center_pupil", "coma", "disk", "ellipse",
    "exponential", "gaussian", "interpolation_weights", "polygon", "random_defocus_map", "random_lens", "rasterize",
    "rasterize_pupils", "ring", "rms_radius", "simulate_capture",
]  # fmt: skip

Pupil = Callable[[Tensor, Tensor], Tensor]
"""Transmission at (u, v), the unit disk being the nominal opening; anything >= 0, need not be normalized."""

KERNEL_SIZE = 17
"""Side of the rasterized point spread functions, in pixels."""


@dataclass(frozen=True)
class Lens:
    """A lens family member: its name, its pupil and the range of blur radii (pixels) that depth selects from."""

    family: str
    pupil: Pupil
    radius: tuple[float, float]


# ---- pupil functions ------------------------------------------------------------------------------------------------


def disk(u: Tensor, v: Tensor) -> Tensor:
    """Uniform circular opening: geometric defocus of an ideal lens."""
    return (u * u + v * v <= 1).float()


def gaussian(u: Tensor, v: Tensor) -> Tensor:
    """Gaussian of standard deviation 0.6: an apodized or badly corrected lens."""
    return torch.exp(-(u * u + v * v) / (2 * 0.6**2))


def exponential(u: Tensor, v: Tensor) -> Tensor:
    """Sharp core with long tails: scatter on top of defocus."""
    return torch.exp(-(u * u + v * v).sqrt() / 0.35)


def ring(inner: float = 0.65) -> Pupil:
    """Disk with its center obstructed up to the radius `inner`: a mirror lens."""
    return lambda u, v: ((r2 := u * u + v * v) <= 1).float() * (r2 >= inner * inner).float()


def bubble(u: Tensor, v: Tensor) -> Tensor:
    """Disk that brightens towards its edge: over-corrected spherical aberration."""
    r2 = u * u + v * v
    return (r2 <= 1).float() * (0.35 + r2 * r2)


def polygon(blades: int = 6, angle: float = 0.2) -> Pupil:
    """Regular polygon in the unit circle: an iris of that many straight blades, turned by `angle` (rad)."""

    def pupil(u: Tensor, v: Tensor) -> Tensor:
        theta = torch.atan2(v, u) - angle
        wedge = 2 * math.pi / blades
        offset = torch.remainder(theta, wedge) - wedge / 2
        return ((u * u + v * v).sqrt() * torch.cos(offset) <= math.cos(wedge / 2)).float()

    return pupil


def cat_eye(shift: float = 0.45, angle: float = 0.61) -> Pupil:
    """Overlap of two unit disks `shift` off the center along `angle` (rad): mechanical vignetting off the axis."""
    du, dv = shift * math.cos(angle), shift * math.sin(angle)
    return lambda u, v: disk(u - du, v - dv) * disk(u + du, v + dv)


def ellipse(ratio: float = 0.5, angle: float = 1.1) -> Pupil:
    """Disk squeezed to `ratio` along `angle` (rad): astigmatism, anamorphic lenses."""
    cos, sin = math.cos(angle), math.sin(angle)
    return lambda u, v: disk((cos * u + sin * v) / ratio, cos * v - sin * u)


def coma(u: Tensor, v: Tensor) -> Tensor:
    """Comatic flare of a point off the axis: circles that grow as they move away from a bright tip."""
    total = torch.zeros_like(u)
    for step in range(1, 13):
        zone = step / 12
        distance = ((u + 0.9 - 1.5 * zone * zone).square() + v * v).sqrt() - 0.55 * zone
        total = total + torch.exp(-distance.square() / (2 * 0.08**2))
    return total


def random_lens(generator: torch.Generator, *, radius: tuple[float, float] = (0.3, 6.5), tails: float = 0.0) -> Lens:
    """Draw a lens from a broad prior: a smooth closed outline, a smooth radial profile, sometimes an obstruction.

    The outline is a circle with random harmonics 2 to 6, squeezed along a random direction; the profile the
    exponential of a random cosine series (flat in a quarter of the draws), often falling like a bell; a quarter of the
    draws have a hole of random size. With probability `tails`, instead, there is no outline: light falls off with the
    distance from the center as a stretched exponential without end.

    Raises:
        TypeError: `generator` is not a CPU generator.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def coin(probability: float) -> bool:
        return uniform(0, 1) < probability

    if tails and coin(tails):
        return _tailed_lens(uniform, radius)
    round_outline = coin(0.4)
    waves = [(k, 0.0 if round_outline else uniform(0, 0.35 / (k - 1)), uniform(0, 2 * math.pi)) for k in range(2, 7)]
    squeeze, turn = (1.0 if coin(0.5) else uniform(0.45, 1.0)), uniform(0, math.pi)
    hole = uniform(0.2, 0.85) if coin(0.25) else 0.0
    series = [] if coin(0.25) else [uniform(-1.6, 1.6) / k for k in range(1, 4)]
    bell, steepness = (uniform(0.5, 4.0) if coin(0.4) else 0.0), uniform(0.7, 3.0)
    edge = uniform(0.02, 0.25)
    cos, sin = math.cos(turn), math.sin(turn)

    def pupil(u: Tensor, v: Tensor) -> Tensor:
        a, b = (cos * u + sin * v) / squeeze, cos * v - sin * u
        theta = torch.atan2(b, a)
        outline = 1.0 + sum(amplitude * torch.cos(k * theta + phase) for k, amplitude, phase in waves)
        r = (a * a + b * b).sqrt() / outline
        log_profile = -bell * r**steepness
        for k, amplitude in enumerate(series, start=1):
            log_profile = log_profile + amplitude * torch.cos(math.pi * k * r.clamp(max=1))
        return torch.exp(log_profile) * torch.sigmoid((1 - r) / edge * 4) * (r >= hole).float()

    low, high = radius
    first = low + (high - low) * uniform(0, 1)
    second = low + (high - low) * uniform(0, 1)
    return Lens("random", center_pupil(pupil), (min(first, second), max(first, second)))


def _tailed_lens(uniform: Callable[[float, float], float], radius: tuple[float, float]) -> Lens:
    power, scale = uniform(0.8, 2.5), uniform(0.25, 0.8)
    squeeze = 1.0 if uniform(0, 1) < 0.6 else uniform(0.5, 1)
    turn = uniform(0, math.pi)
    cos, sin = math.cos(turn), math.sin(turn)

    def pupil(u: Tensor, v: Tensor) -> Tensor:
        a, b = (cos * u + sin * v) / squeeze, cos * v - sin * u
        return torch.exp(-(((a * a + b * b).sqrt() / scale) ** power))

    ends = sorted((uniform(*radius), uniform(*radius)))
    return Lens("random", pupil, (ends[0], ends[1]))


def center_pupil(pupil: Pupil, *, reach: float = 2.0, samples: int = 81) -> Pupil:
    """Return the pupil with its centroid moved to the origin: a shift of the lens looks like one of the picture."""
    axis = torch.linspace(-reach, reach, samples)
    u, v = axis[None, :], axis[:, None]
    picture = pupil(u.expand(samples, samples), v.expand(samples, samples))
    total = picture.sum().clamp(min=1e-12)
    du, dv = float((picture * u).sum() / total), float((picture * v).sum() / total)
    return lambda u, v: pupil(u + du, v + dv)


def rms_radius(pupil: Pupil, *, reach: float = 2.5, samples: int = 101) -> float:
    """Root mean square distance from the center at unit nominal radius: a size that all shapes have."""
    axis = torch.linspace(-reach, reach, samples)
    u, v = axis[None, :], axis[:, None]
    picture = pupil(u.expand(samples, samples), v.expand(samples, samples))
    return float(((picture * (u * u + v * v)).sum() / picture.sum().clamp(min=1e-12)).sqrt())


def rasterize(pupil: Pupil, radius: Tensor, *, size: int = KERNEL_SIZE, supersample: int = 3) -> Tensor:
    """Point spread functions of an pupil at several radii.

    Shape:
        - radius: (L,), pixels
        - output: (L, K, K) with K = `size`, each summing to 1; what falls outside K x K is cut off before normalizing

    Raises:
        ValueError: `size` is even, or `radius` is not one-dimensional.
    """
    if size % 2 == 0 or radius.ndim != 1:
        raise ValueError(f"rasterize: expected an odd size and radius of shape (L,), got {size}, {tuple(radius.shape)}")
    fine = size * supersample
    axis = (torch.arange(fine, dtype=torch.float32) - (fine - 1) / 2) / supersample
    scale = radius.float().clamp(min=1e-3)[:, None, None]
    picture = pupil(axis[None, None, :] / scale, axis[None, :, None] / scale)
    kernels = F.avg_pool2d(picture[:, None], supersample)[:, 0]
    total = kernels.sum((-2, -1), keepdim=True)
    delta = torch.zeros_like(kernels)
    delta[:, size // 2, size // 2] = 1  # an opening that no sample hits is smaller than a pixel: no blur
    return torch.where(total > 0, kernels / total.clamp(min=1e-12), delta)


def rasterize_pupils(chosen: Sequence[Lens], *, size: int = 23, reach: float = 2.3) -> Tensor:
    """Pictures of pupils at unit root mean square radius: (L, A, A) over [-reach, reach], each summing to 1."""
    unit = [rms_radius(lens.pupil) for lens in chosen]
    fine = size * 3
    axis = ((torch.arange(fine, dtype=torch.float32) - (fine - 1) / 2) / (fine / 2)) * reach
    u, v = torch.broadcast_tensors(axis[None, :], axis[:, None])
    pictures = torch.stack([lens.pupil(u * s, v * s) for lens, s in zip(chosen, unit, strict=True)])
    pictures = F.avg_pool2d(pictures[:, None], 3)[:, 0]
    return pictures / pictures.sum((-2, -1), keepdim=True)


# ---- light------------------------------------------------------------------------------------------------------------


def blur_with_mixture(linear: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """Blur by L kernels and mix the results per output pixel.

    Shape:
        - linear: (B, C, H + K - 1, W + K - 1); the margin keeps invented borders out of the result
        - kernels: (B, L, K, K), odd K
        - weights: (B, L, H, W), summing to 1 over L
        - output: (B, C, H, W)
    """
    b, c, hp, wp = linear.shape
    levels, k = kernels.shape[1], kernels.shape[-1]
    spectrum = torch.fft.rfft2(linear)[:, None]  # circular is enough: the valid part never wraps
    transfer = torch.fft.rfft2(kernels, s=(hp, wp))[:, :, None]
    blurred = torch.fft.irfft2(spectrum * transfer, s=(hp, wp))[..., k - 1 :, k - 1 :]
    return torch.einsum("blchw,blhw->bchw", blurred.reshape(b, levels, c, hp - k + 1, wp - k + 1), weights)


def interpolation_weights(radius: Tensor, levels: Tensor) -> Tensor:
    """Linear interpolation weights of each pixel's radius between ascending levels.

    Shape:
        - radius: (B, H, W), pixels
        - levels: (B, L), ascending, pixels
        - output: (B, L, H, W), two neighbors non-zero, summing to 1
    """
    count = levels.shape[1]
    step = ((levels[:, -1] - levels[:, 0]) / max(count - 1, 1)).clamp(min=1e-6)[:, None, None]
    place = ((radius - levels[:, 0, None, None]) / step).clamp(0, count - 1)
    index = torch.arange(count, dtype=place.dtype).view(1, -1, 1, 1)
    return (1 - (place[:, None] - index).abs()).clamp(min=0)


def simulate_capture(
    sharp: Tensor, kernels: Tensor, weights: Tensor, generator: torch.Generator, *, noise_std: float = 1 / 255
) -> Tensor:
    """Return a stored image of a sharp stored image, blurred in linear light by L kernels mixed per pixel.

    Shape:
        - sharp: (B, 3, H + K - 1, W + K - 1) in [0, 1]
        - kernels: (B, L, K, K); weights: (B, L, H, W), see :func:`blur_with_mixture`
        - output: (B, 3, H, W) in [0, 1]
    """
    return apply_sensor_model(
        blur_with_mixture(srgb_to_linear(sharp), kernels, weights), generator, noise_std=noise_std
    )


def random_defocus_map(count: int, height: int, width: int, generator: torch.Generator, *, knots: int = 5) -> Tensor:
    """Smooth random depth: (B, H, W) in [0, 1], a Gaussian field on knots x knots points, bicubic in between."""
    field = torch.randn(count, 1, knots, knots, generator=generator)
    smooth = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)[:, 0]
    return torch.special.ndtr(1.3 * smooth)
