"""Dead leaves: endless sharp training images that share the edge and scale statistics of photographs.

Opaque shapes of random size (density proportional to r^-3), color and texture fall on each other until nothing of the
ground is left. Source: Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks


def palette_of(picture: Tensor) -> Tensor:
    """Colors to draw leaves with, taken from an image.

    Shape:
        - picture: (..., 3, H, W) in [0, 1]
        - output: (P, 3)
    """
    return picture.movedim(-3, -1).reshape(-1, 3)


def tile(size: int, generator: torch.Generator, *, palette: Tensor | None = None, oversample: int = 2) -> Tensor:
    """Draw one dead-leaves image.

    Shape:
        - palette: (P, 3) colors in [0, 1], for example :func:`palette_of` a photograph; None draws muted random ones
        - output: (3, S, S) with S = `size`, in [0, 1], not noisy

    Raises:
        ValueError: `size` or `oversample` below 1.
    """
    checks.expect_int("dead_leaves.tile", "size", size, minimum=1)
    checks.expect_int("dead_leaves.tile", "oversample", oversample, minimum=1)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    fine = size * oversample
    canvas, empty = torch.zeros(3, fine, fine), torch.ones(fine, fine, dtype=torch.bool)
    # photographs mix cluttered and calm regions: the smallest leaf differs from image to image
    low, high = 3.0 * oversample * 8 ** rand(1).item(), 70.0 * oversample
    axis = torch.arange(fine, dtype=torch.float32)
    for fall in range(2500):  # front to back, so that every pixel is written once
        if fall % 50 == 49 and empty.float().mean() < 0.004:
            break
        u = rand(6).tolist()
        # inverse of the cumulative distribution of r^-3 between low and high
        radius = (low**-2 + u[0] * (high**-2 - low**-2)) ** -0.5
        x, y = u[1] * fine, u[2] * fine
        x0, x1 = max(int(x - radius * 1.6), 0), min(int(x + radius * 1.6) + 2, fine)
        y0, y1 = max(int(y - radius * 1.6), 0), min(int(y + radius * 1.6) + 2, fine)
        window = empty[y0:y1, x0:x1]
        if not window.any():
            continue
        du, dv = axis[None, x0:x1] - x, axis[y0:y1, None] - y
        inside = window & _shape(du, dv, radius, u[3], u[4], u[5])
        if not inside.any():
            continue
        paint = _paint(du, dv, radius, _color(palette, generator), _color(palette, generator), generator)
        canvas[:, y0:y1, x0:x1] = torch.where(inside, paint, canvas[:, y0:y1, x0:x1])
        window[inside] = False
    canvas = torch.where(empty, _color(palette, generator)[:, None, None], canvas)
    return F.avg_pool2d(canvas[None], oversample)[0].clamp(0, 1)


def bank(
    count: int, size: int, generator: torch.Generator, *, palette: Tensor | None = None, oversample: int = 2
) -> Tensor:
    """Return a stack of dead-leaves images: (N, 3, S, S) in [0, 1]."""
    return torch.stack([tile(size, generator, palette=palette, oversample=oversample) for _ in range(count)])


def _shape(du: Tensor, dv: Tensor, radius: float, kind: float, turn: float, squeeze: float) -> Tensor:
    angle = 2 * math.pi * turn
    a = (math.cos(angle) * du + math.sin(angle) * dv) / (0.35 + 0.65 * squeeze)
    b = math.cos(angle) * dv - math.sin(angle) * du
    if kind < 0.5:
        return a * a + b * b <= radius * radius
    if kind < 0.75:
        return torch.maximum(a.abs(), b.abs()) <= radius * 0.85
    return torch.maximum(b.abs(), (0.5 * b).abs() + 0.866 * a.abs()) <= radius * 0.8  # hexagon


def _color(palette: Tensor | None, generator: torch.Generator) -> Tensor:
    if palette is not None:
        return palette[int(torch.randint(0, palette.shape[0], (), generator=generator))]
    value, chroma = torch.rand((), generator=generator), 0.2 * torch.randn(3, generator=generator)
    return (value + chroma * value * (1 - value) * 2).clamp(0, 1)


def _paint(du: Tensor, dv: Tensor, radius: float, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """Color, a gradient to a second color, and a texture of noise or waves: (3, h, w)."""
    u = torch.rand(7, generator=generator).tolist()
    angle, blend = 2 * math.pi * u[0], 0.35 * u[1]
    ramp = ((math.cos(angle) * du + math.sin(angle) * dv) / (2 * radius) + 0.5).clamp(0, 1)[None] * blend
    color = first[:, None, None] * (1 - ramp) + second[:, None, None] * ramp
    if u[2] < 0.35:
        strength = 0.12 * u[3]
        color = color + strength * torch.randn(1, *ramp.shape[1:], generator=generator)
    elif u[2] < 0.7:
        period, phase = 2.5 + 14 * u[4] * u[4], 2 * math.pi * u[5]
        wave = torch.sin((math.cos(2 * angle) * du + math.sin(2 * angle) * dv) * (2 * math.pi / period) + phase)
        color = color + 0.15 * u[6] * wave[None]
    return color
