"""Aligned pairs of a blurry and a sharp image, with dual-pixel views, read from files or simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore._core.color import srgb_to_linear
from tta_restore.data.datasets.augmentation import Augmentation
from tta_restore.data.datasets.layouts import PairFiles
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.io.image import read_image
from tta_restore.data.synthetic import defocus
from tta_restore.degradations import Degradation
from tta_restore.degradations import lens as optics
from tta_restore.degradations.sensor import apply_sensor_model

__all__ = ["DegradedPairs", "FolderCrops", "LensPairs", "Pair", "degrade_each", "read_images", "simulate_dual_pixel"]

_BORDER = 24  # pixels beyond a degraded patch that blur may carry light from


@dataclass(frozen=True)
class Pair:
    """A batch of pairs.

    Shape: blurry, sharp (B, 3, H, W), RGB in [0, 1]; right, left likewise, or both None where there are no views.
    """

    blurry: Tensor
    sharp: Tensor
    right: Tensor | None = None
    left: Tensor | None = None


class FolderCrops:
    """Random crops of files; the same generator gives the same crops.

    Args:
        files: what :func:`tta_restore.data.datasets.layouts.find_files` found; with originals.
        size: side of the crops in pixels.
        augmentation: random changes of the crops; None for none.
        bit_depth: 8 to read files of 16 bits as the published 8-bit training did; None for all their bits.

    Raises:
        ValueError: there are no files, or no originals.
    """

    def __init__(
        self,
        files: Sequence[PairFiles],
        *,
        size: int = 256,
        augmentation: Augmentation | None = Augmentation(),  # noqa: B008 (frozen)
        bit_depth: int | None = None,
    ) -> None:
        if not files:
            raise ValueError("FolderCrops: expected at least one pair of files")
        if alone := next((entry.blurry for entry in files if entry.sharp is None), None):
            raise ValueError(f"FolderCrops: {alone} has no sharp original to train on")
        self.files, self.size, self.bit_depth = list(files), size, bit_depth
        self.augmentation = augmentation or Augmentation(noise_prob=0, gray_prob=0, scale_prob=0)

    def __call__(self, count: int, generator: torch.Generator) -> Pair:
        """Return the next batch."""
        crops = []
        for index in torch.randint(0, len(self.files), (count,), generator=generator).tolist():
            entry = self.files[index]
            images = read_images(entry, bit_depth=self.bit_depth)
            if min(images.shape[-2:]) < self.size:
                raise ValueError(
                    f"{entry.blurry}: smaller than a crop of {self.size} pixels, {tuple(images.shape[-2:])}"
                )
            crops.append(self.augmentation(images, self.size, generator))
        return Pair(*torch.stack(crops, 1))


def read_images(entry: PairFiles, *, bit_depth: int | None = None) -> Tensor:
    """Return the blurry, the sharp and, where there are views, the right and left image: (2 or 4, 3, H, W) in [0, 1].

    Raises:
        ValueError: they differ in size, or there is no sharp one.
        ImageError: one cannot be read.
    """
    paths = [path for path in (entry.blurry, entry.sharp, entry.right, entry.left) if path is not None]
    if entry.sharp is None or len(paths) == 3:
        raise ValueError(f"{entry.blurry}: expected a sharp original, and both views or none")
    images = [read_image(path).as_rgb(bit_depth=bit_depth) for path in paths]
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(f"{path.name} {tuple(image.shape[1:])}" for path, image in zip(paths, images, strict=True))
        raise ValueError(f"{entry.blurry}: expected one size of all images, got {sizes}")
    return torch.stack(images)


class LensPairs:
    """Pairs made of sharp images by lenses, with the views of dual pixels; the same generator gives the same pairs.

    Each view sees the scene through one half of the aperture, as the two photodiodes of a dual pixel do; the image
    itself through all of it.

    Args:
        images: (N, 3, S, S), uint8 or floats in [0, 1].
        size: side of the pairs in pixels.
        lens: draws a lens.
        views: whether the views are made, too; they triple the work.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        size: int = 96,
        lens: Callable[[torch.Generator], optics.Lens] = optics.random_lens,
        views: bool = False,
    ) -> None:
        self.images, self.size, self.lens, self.views = images, size, lens, views
        self.needed = size + optics.KERNEL_SIZE - 1
        if images.ndim != 4 or min(images.shape[-2:], default=0) < self.needed:
            raise ValueError(
                f"LensPairs: expected images (N, 3, S, S) with S >= {self.needed} for pairs of {size} pixels, "
                f"got {tuple(images.shape)}"
            )

    def __call__(self, count: int, generator: torch.Generator) -> Pair:
        """Return the next batch."""
        sharp = random_patches(self.images, count, self.needed, generator)
        chosen = [self.lens(generator) for _ in range(count)]
        if self.views:
            return simulate_dual_pixel(sharp, chosen, generator)
        blurry, _, center = defocus.render(sharp, chosen, generator, levels=4, knots=3)
        return Pair(blurry, center.contiguous())


def degrade_each(sharp: Tensor, degradations: Sequence[Degradation], generator: torch.Generator) -> Tensor:
    """Degrade every image by one of several degradations, drawn at random. Shape: (B, C, H, W) in [0, 1] -> the same.

    Raises:
        ValueError: a degradation changes the size.
    """
    chosen = torch.randint(0, len(degradations), (len(sharp),), generator=generator).tolist()
    degraded = []
    for image, index in zip(sharp.split(1), chosen, strict=True):
        degradation = degradations[index]
        made = degradation.apply(image, degradation.sample(generator, 1), generator)
        if made.shape != image.shape:
            raise ValueError(
                f"degrade_each: expected images of the same size from {type(degradation).__name__}, "
                f"got {tuple(made.shape)} for {tuple(image.shape)}"
            )
        degraded.append(made.clamp(0, 1))
    return torch.cat(degraded)


class DegradedPairs:
    """Pairs made of sharp images by degradations; the same generator gives the same pairs.

    Args:
        images: (N, 3, S, S), uint8 or floats in [0, 1].
        degradations: every image of a batch is degraded by one of them.
        size: side of the pairs in pixels.

    Raises:
        ValueError: the images are too small, or there is no degradation.
    """

    def __init__(self, images: Tensor, *, degradations: Sequence[Degradation], size: int = 96) -> None:
        self.images, self.degradations, self.size = images, tuple(degradations), size
        self.needed = size + 2 * _BORDER
        if not self.degradations:
            raise ValueError("DegradedPairs: expected at least one degradation")
        if images.ndim != 4 or min(images.shape[-2:], default=0) < self.needed:
            raise ValueError(
                f"DegradedPairs: expected images (N, 3, S, S) with S >= {self.needed} for pairs of {size} pixels, "
                f"got {tuple(images.shape)}"
            )

    def __call__(self, count: int, generator: torch.Generator) -> Pair:
        """Return the next batch."""
        sharp = random_patches(self.images, count, self.needed, generator)
        inner = (..., slice(_BORDER, -_BORDER), slice(_BORDER, -_BORDER))
        return Pair(degrade_each(sharp, self.degradations, generator)[inner].contiguous(), sharp[inner].contiguous())


def simulate_dual_pixel(sharp: Tensor, chosen: Sequence[optics.Lens], generator: torch.Generator) -> Pair:
    """Simulate captures of sharp images by a dual-pixel sensor.

    Shape: sharp (B, 3, H + K - 1, W + K - 1) in [0, 1], K = ``optics.KERNEL_SIZE`` -> images (B, 3, H, W).
    """
    margin = optics.KERNEL_SIZE // 2
    center = sharp[..., margin:-margin, margin:-margin].contiguous()
    low, high = (torch.tensor([lens.radius[i] for lens in chosen])[:, None] for i in (0, 1))
    steps = low + (high - low) * torch.linspace(0, 1, 4)
    height, width = center.shape[-2:]
    depth = optics.random_defocus_map(len(chosen), height, width, generator, knots=3)
    weights = optics.interpolation_weights(low[..., None] + (high - low)[..., None] * depth, steps)
    linear, images = srgb_to_linear(sharp), []
    for side in (0, 1, -1):
        apertures = [_half(lens.pupil, side) for lens in chosen]
        kernels = torch.stack([optics.rasterize(a, s) for a, s in zip(apertures, steps, strict=True)])
        images.append(apply_sensor_model(optics.blur_with_mixture(linear, kernels, weights), generator))
    blurry, right, left = images
    return Pair(blurry, center, right, left)


def _half(aperture: optics.Pupil, side: int) -> optics.Pupil:
    """Return the part of an aperture to one side of its vertical diameter; side 0 is all of it."""
    return (lambda u, v: aperture(u, v) * (u * side > 0)) if side else aperture
