"""Random crops of an image and its companions: noise, gray, smaller scale.

Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), its training on DPDD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import linear_to_srgb, luma

__all__ = ["Augmentation", "to_gray"]

# The published training has 0.07228 in place of 0.0722, which makes gray images brighter by 8e-5.
_GRAY = (0.2126, 0.7152, 0.07228)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of crops: their probabilities and ranges. The defaults are the published ones.

    Attributes:
        noise_prob: probability of Gaussian noise, which is the same for all images but the sharp one.
        noise_std: range of the standard deviation of the noise, in [0, 1] values.
        gray_prob: probability that all images become gray.
        scale_prob: probability that all images are reduced, by area averaging.
        min_scale: smallest factor of a reduction.
        flips: whether crops are flipped and rotated by multiples of 90 degrees; not for dual-pixel views, whose
            disparity is horizontal.
    """

    noise_prob: float = 0.05
    noise_std: tuple[float, float] = (0.001, 0.005**0.5)
    gray_prob: float = 0.3
    scale_prob: float = 0.5
    min_scale: float = 0.7
    flips: bool = False

    def __post_init__(self) -> None:
        for name in ("noise_prob", "gray_prob", "scale_prob"):
            checks.expect_number("Augmentation", name, getattr(self, name), minimum=0, maximum=1)  # probabilities
        checks.expect_number("Augmentation", "min_scale", self.min_scale, above=0, maximum=1)
        if len(self.noise_std) != 2 or not 0 <= self.noise_std[0] <= self.noise_std[1]:
            raise ValueError(
                f"Augmentation: expected noise_std (low, high) with 0 <= low <= high, got {self.noise_std}"
            )

    def __call__(self, images: Tensor, size: int, generator: torch.Generator, *, sharp: int = 1) -> Tensor:
        """Return one changed crop, from the same place of all images.

        Every place is equally likely; in the published training the first one counts twice and the last never.

        Args:
            images: an image and its companions.
            size: S, side of the crop in pixels, after scaling.
            generator: source of all randomness.
            sharp: index of the image that gets no noise.

        Shape: images (V, 3, H, W) in [0, 1], H and W >= S -> (V, 3, S, S).

        Raises:
            ValueError: the images are smaller than the crop.
        """
        height, width = images.shape[-2:]
        if images.ndim != 4 or min(height, width) < size:
            raise ValueError(
                f"Augmentation: expected images (V, 3, H, W), H and W >= {size}, got {tuple(images.shape)}"
            )

        def draw() -> float:
            return torch.rand((), generator=generator).item()

        noisy, gray, scaled = draw() < self.noise_prob, draw() < self.gray_prob, draw() < self.scale_prob
        low = max(self.min_scale, size / min(height, width))
        factor = low + (1 - low) * draw() if scaled else 1.0
        rows = _Window.random(height, factor, size, generator)
        columns = _Window.random(width, factor, size, generator)
        crop = images[:, :, rows.start : rows.stop, columns.start : columns.stop]
        if noisy:
            sigma = self.noise_std[0] + (self.noise_std[1] - self.noise_std[0]) * draw()
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


def to_gray(images: Tensor) -> Tensor:
    """Return the published gray: luma of stored values with the transfer curve applied once more, which brightens it.

    Shape: (..., 3, H, W) in [0, 1] -> (..., 1, H, W).
    """
    return linear_to_srgb(luma(images, _GRAY))


@dataclass(frozen=True)
class _Window:
    """Cropped range of one side, and the weights that reduce it: an output pixel averages the area it covers."""

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
