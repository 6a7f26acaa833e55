"""Estimation of asymmetric pupil functions, which the power spectrum of a frame does not show.

A pupil function and its half turn blur to the same power spectrum; the phase alone distinguishes them. Deconvolution
with the right orientation gives sharp edges, with any other one doubled edges: gradients are sparser for the
right one. For shapes that a lens may have, turned step by step, the sparsity is a wave over the angle of turn. Its
amplitude is the evidence, its phase the orientation. Symmetric lenses leave hardly any wave, whatever the scene.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import srgb_to_linear
from tta_restore.degradations import lens as optics
from tta_restore.degradations.blur import PUPIL_REACH, PUPIL_SIZE, pupil_kernels, rotate_pupils

__all__ = ["MIN_RADIUS", "asymmetric_pupils", "estimate_asymmetry", "wiener_filter"]

MIN_RADIUS = 0.8
"""Root mean square radius in pixels below which the shape of a pupil cannot be seen."""

_SHAPES = ((optics.polygon(3, 0.0), 3), (optics.center_pupil(optics.coma), 1))  # and waves per turn
_TURNS = 12
_SIDE, _MARGIN = 192, 32  # pixels of the part that is deconvolved, and of its mirrored border
_EXPONENT = 0.6  # of the sparsity measure
_MIN_NOISE = 1 / 255
# Amplitudes per shape that scenes behind symmetric lenses do not exceed: of single frames, and of the mean of many
_THRESHOLDS = torch.tensor([0.02, 0.035], dtype=torch.float32, device="cpu")
_LEAST_THRESHOLDS = torch.tensor([0.005, 0.01], dtype=torch.float32, device="cpu")


@torch.no_grad()
def estimate_asymmetry(image: Tensor, radius: float, noise_std: float) -> Tensor:
    """Return the waves of the sparsity over the angle of turn, for a triangle and for coma.

    Waves of frames of one camera average.

    Args:
        image: one frame.
        radius: root mean square radius of the blur in pixels; its error hardly matters.
        noise_std: standard deviation of the noise in [0, 1] values.

    Shape:
        - image: (3, H, W) in [0, 1]
        - output: (2, 2): rows are shapes; amplitude times cosine and sine of the phase

    Raises:
        ValueError: the image is not (C, H, W), or the radius is not positive.
    """
    checks.expect_shape("estimate_asymmetry", "image", image, "(C, H, W)")
    checks.expect_number("estimate_asymmetry", "radius", radius, above=0, maximum=64)
    height, width = (min(side, _SIDE) for side in image.shape[1:])
    top, left = ((side - kept) // 2 for side, kept in zip(image.shape[1:], (height, width), strict=True))
    light = srgb_to_linear(image[:, top : top + height, left : left + width].float()).mean(0).cpu()
    waves = []
    for pupils, (_, order) in zip(_turned_shapes(), _SHAPES, strict=True):
        kernels = pupil_kernels(pupils, torch.full((_TURNS, 1), radius))[:, 0]
        sparsity = _sparsity(wiener_filter(light, kernels, 2 * max(noise_std, _MIN_NOISE)))
        wave = -torch.fft.fft(sparsity)[order] * 2 / _TURNS  # the sparsest turn is the right one
        waves.append(torch.stack([wave.real, wave.imag]))
    return torch.stack(waves)


def asymmetric_pupils(asymmetry: Tensor, frames: int) -> tuple[Tensor | None, float]:
    """Return the asymmetric pupil function that fits the estimate, and how much it is trusted.

    Args:
        asymmetry: mean of :func:`estimate_asymmetry` over frames.
        frames: number of frames.

    Shape:
        - asymmetry: (2, 2)
        - output: pupil function (A, A) or None; trust in [0, 1]
    """
    thresholds = torch.maximum(_THRESHOLDS / math.sqrt(max(frames, 1)), _LEAST_THRESHOLDS)
    amplitude = asymmetry.norm(dim=1)
    evidence = amplitude / thresholds
    # shapes fit each other in part: the one that fits best has the largest wave
    best = int((amplitude * (evidence > 1)).argmax())
    trust = min(max(float(evidence[best]) - 1, 0.0), 1.0)
    if trust == 0:
        return None, 0.0
    phase = torch.atan2(asymmetry[best, 1], asymmetry[best, 0])
    shape = _turned_shapes()[best][:1]
    return rotate_pupils(shape, -phase[None] / _SHAPES[best][1])[0], trust


@cache
def _turned_shapes() -> tuple[Tensor, ...]:
    angles = torch.arange(_TURNS) * (2 * math.pi / _TURNS)
    found = []
    for pupil, _ in _SHAPES:
        lens = optics.Lens("shape", pupil, (1.0, 1.0))
        sampled = optics.rasterize_pupils([lens], size=PUPIL_SIZE, reach=PUPIL_REACH)
        found.append(rotate_pupils(sampled.expand(_TURNS, -1, -1), angles))
    return tuple(found)


def wiener_filter(light: Tensor, kernels: Tensor, noise_std: float) -> Tensor:
    """Deconvolve one plane with each of N kernels, for a scene whose power falls with the squared frequency.

    Shape:
        - light: (H, W), linear light
        - kernels: (N, K, K), K odd, each summing to 1
        - output: (N, H, W)
    """
    half = kernels.shape[-1] // 2
    margin = min(_MARGIN, *(side - 1 for side in light.shape))
    padded = F.pad(light[None, None], (margin,) * 4, mode="reflect")[0, 0]
    height, width = padded.shape
    centered = F.pad(kernels, (0, width - kernels.shape[-1], 0, height - kernels.shape[-2])).roll(
        (-half, -half), (1, 2)
    )
    transfer = torch.fft.rfft2(centered)
    squared = torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()
    scene = 1 / (1 + squared / 1e-4)
    scene = scene / scene.mean() * light.var().clamp(min=1e-8)
    inverse = transfer.conj() / (transfer.abs().square() + noise_std**2 / scene)
    restored = torch.fft.irfft2(torch.fft.rfft2(padded) * inverse, s=(height, width))
    return restored[:, margin : height - margin, margin : width - margin]


def _sparsity(images: Tensor) -> Tensor:
    """Logarithm of the scale-free sparsity of gradients, (N, H, W) -> (N,); lower is sparser."""
    inner = images[:, 8:-8, 8:-8] if min(images.shape[-2:]) > 32 else images
    steps = torch.cat([inner.diff(dim=axis).flatten(1) for axis in (1, 2)], 1).abs()
    return torch.log(steps.pow(_EXPONENT).mean(1) + 1e-12) - 0.5 * _EXPONENT * torch.log(steps.square().mean(1) + 1e-12)
