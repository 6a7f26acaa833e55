"""Scenes that are soft by themselves: fur, clouds, backgrounds out of focus, what was blurred or compressed before.

Who learns from crisp scenes only, learns that the world is crisp, and puts edges where there were none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tta_restore._core import checks

_LONGEST = 4.0  # pixels, of the bell's standard deviation: what is out of focus by itself; half are below a quarter
_CORNER = 0.03  # cycles per pixel above which a spectrum falls faster
_STEEPEST = 0.7  # exponent that it falls faster by


def soften(pictures: Tensor, generator: torch.Generator, *, share: float = 0.5) -> Tensor:
    """Soften some of the images, each by a random amount: half of them by a bell, half by a steeper spectrum.

    Shape:
        - pictures: (N, C, H, W), floating point in [0, 1]
        - output: (N, C, H, W) in [0, 1]; each is softened with probability `share`, the others are as they were

    Raises:
        ValueError: the images are not (N, C, H, W), or `share` is not in [0, 1].
    """
    if pictures.ndim != 4 or not pictures.is_floating_point():
        raise ValueError(
            f"soften: expected floating-point pictures (N, C, H, W), got {tuple(pictures.shape)} of {pictures.dtype}"
        )
    checks.expect_number("soften", "share", share, minimum=0, maximum=1)
    height, width = pictures.shape[-2:]
    mirrored = torch.cat([pictures, pictures.flip(-1)], dim=-1)  # so that opposite borders do not mix
    spectrum = torch.fft.rfft2(torch.cat([mirrored, mirrored.flip(-2)], dim=-2))
    squared = torch.fft.fftfreq(2 * height)[:, None].square() + torch.fft.rfftfreq(2 * width).square()
    kind, amount = torch.rand(2, len(pictures), 1, 1, 1, generator=generator)
    bell = torch.exp(-2 * (math.pi * _LONGEST * amount.square()) ** 2 * squared)
    steeper = (1 + squared / _CORNER**2) ** (-0.5 * _STEEPEST * amount)
    soft = torch.fft.irfft2(spectrum * torch.where(kind < share / 2, bell, steeper))[..., :height, :width].clamp(0, 1)
    return torch.where(kind < share, soft, pictures)
