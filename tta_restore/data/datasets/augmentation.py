"""Random crops of one picture and its companions: noise, gray, smaller scale.

Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), its training on DPDD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import linear_to_srgb, luma

# The last weight is a slip of 0.0722 that the published training had; it makes gray pictures brighter by 8e-5.
_GREY = (0.2126, 0.7152, 0.07228)


@dataclass(frozen=True)
class Augmentation:
    """How often crops are altered, and how far. Defaults are the published ones.

    Attributes:
        noise: probability of Gaussian noise, the same for all pictures but the sharp one.
        sigma: range of its standard deviation.
        gray: probability that all pictures become gray.
        scale: probability that all are made smaller, by area.
        smallest: lowest factor.
        flips: whether crops are flipped and turned by quarter turns; not for views of dual pixels, whose disparity is
            horizontal.
    """

    noise: float = 0.05
    sigma: tuple[float, float] = (0.001, 0.005**0.5)
    gray: float = 0.3
    scale: float = 0.5
    smallest: float = 0.7
    flips: bool = False

    def __post_init__(self) -> None:
        for name in ("noise", "gray", "scale"):
            checks.expect_number("Augmentation", name, getattr(self, name), minimum=0, maximum=1)  # probabilities
        checks.expect_number("Augmentation", "smallest", self.smallest, above=0, maximum=1)
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"Augmentation: expected sigma (low, high) with 0 <= low <= high, got {self.sigma}")

    def __call__(self, pictures: Tensor, size: int, generator: torch.Generator, *, sharp: int = 1) -> Tensor:
        """One crop, altered, at the same place of all pictures.

        Every place is as likely as any other; in the published training the first one counts twice and the last never.

        Args:
            pictures: a picture and its companions.
            size: S, side of the crop in pixels, after scaling.
            generator: decides everything.
            sharp: index of the picture that gets no noise.

        Shape: pictures (V, 3, H, W) in [0, 1], H and W >= S -> (V, 3, S, S).

        Raises:
            ValueError: the pictures are smaller than the crop.
        """
        height, width = pictures.shape[-2:]
        if pictures.ndim != 4 or min(height, width) < size:
            raise ValueError(
                f"Augmentation: expected pictures (V, 3, H, W), H and W >= {size}, got {tuple(pictures.shape)}"
            )

        def draw() -> float:
            return torch.rand((), generator=generator).item()

        noisy, gray, scaled = draw() < self.noise, draw() < self.gray, draw() < self.scale
        low = max(self.smallest, size / min(height, width))
        factor = low + (1 - low) * draw() if scaled else 1.0
        rows = _Window.random(height, factor, size, generator)
        columns = _Window.random(width, factor, size, generator)
        crop = pictures[:, :, rows.start : rows.stop, columns.start : columns.stop]
        if noisy:
            sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * draw()
            noise = sigma * torch.randn(crop.shape[1:], generator=generator)
            crop = torch.stack([p if i == sharp else (p + noise).clamp(0, 1) for i, p in enumerate(crop)])
        if gray:
            crop = to_gray(crop).expand(-1, 3, -1, -1)
        if rows.weights is not None and columns.weights is not None:
            crop = torch.einsum("ih,vchw,jw->vcij", rows.weights, crop, columns.weights)
        if self.flips:
            turns, flip = (int(torch.randint(0, n, (), generator=generator)) for n in (4, 2))
            crop = crop.rot90(turns, (2, 3))
            crop = crop.flip(3) if flip else crop
        return crop.contiguous()


def to_gray(pictures: Tensor) -> Tensor:
    """The published gray: luma of stored values, and the transfer curve applied once more, which brightens.

    Shape: (..., 3, H, W) in [0, 1] -> (..., 1, H, W).
    """
    return linear_to_srgb(luma(pictures, _GREY))


@dataclass(frozen=True)
class _Window:
    """What of one side is cropped, and the weights that reduce it: an output pixel averages the area it covers."""

    start: int
    stop: int
    weights: Tensor | None = None

    @staticmethod
    def random(length: int, factor: float, size: int, generator: torch.Generator) -> _Window:
        reduced = max(int(length * factor), size)
        first = int(torch.randint(0, reduced - size + 1, (), generator=generator))
        if reduced == length:
            return _Window(first, first + size)
        ratio = length / reduced
        start, stop = math.floor(first * ratio), min(math.ceil((first + size) * ratio - 1e-9), length)
        low = (first + torch.arange(size, dtype=torch.float64)) * ratio
        pixel = torch.arange(start, stop, dtype=torch.float64)
        overlap = torch.minimum(low[:, None] + ratio, pixel + 1) - torch.maximum(low[:, None], pixel)
        return _Window(start, stop, (overlap.clamp(min=0) / ratio).float())
