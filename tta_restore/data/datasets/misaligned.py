"""Misaligned pairs of a blurry and a sharp image, simulated with their ground truth or read from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.data.datasets.layouts import PairFiles
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.datasets.pairs import FolderCrops, degrade_each
from tta_restore.data.io.files import images_below
from tta_restore.data.io.image import read_image
from tta_restore.data.synthetic import defocus
from tta_restore.degradations import Degradation
from tta_restore.degradations import lens as optics

__all__ = [
    "FolderPairs",
    "GeneratedPairs",
    "MisalignedPair",
    "Misalignment",
    "inverse_motion",
    "load_sharp_images",
    "misalign",
    "random_motion",
]


@dataclass(frozen=True)
class Misalignment:
    """Largest misalignment of the two exposures of a pair; every pair draws its own.

    Attributes:
        shift: pixels along each axis.
        zoom: relative change of scale.
        rotation: radians.
        local: pixels of smooth motion of parts against each other.
    """

    shift: float = 4.0
    zoom: float = 0.015
    rotation: float = 0.015
    local: float = 1.0

    def __post_init__(self) -> None:
        for name in ("shift", "zoom", "rotation", "local"):
            checks.expect_number("Misalignment", name, getattr(self, name), minimum=0)

    def reach(self, size: int) -> int:
        """Return the pixels beyond an image of this side that its misaligned counterpart may show."""
        return int(self.shift + (self.zoom + self.rotation) * size / 2 + 2 * self.local) + 3


@dataclass(frozen=True)
class MisalignedPair:
    """A batch of pairs.

    Shape:
        - blurry, sharp: (B, 3, H, W), RGB in [0, 1]; ``sharp`` is misaligned
        - aligned: (B, 3, H, W), the sharp image that ``blurry`` was made of; None where it is unknown
        - flow: (B, 2, H, W), pixels: what ``blurry`` shows at p is at p + flow(p) in ``sharp``, or None
    """

    blurry: Tensor
    sharp: Tensor
    aligned: Tensor | None = None
    flow: Tensor | None = None


def random_motion(count: int, size: int, misalignment: Misalignment, generator: torch.Generator) -> Tensor:
    """Return random smooth displacement fields. Shape: (B, 2, S, S), pixels."""

    def uniform(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1) * limit

    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    x, y = axis.expand(size, size), axis[:, None].expand(size, size)
    zoom, turn = uniform(misalignment.zoom, count, 1, 1), uniform(misalignment.rotation, count, 1, 1)
    shift = uniform(misalignment.shift, count, 2, 1, 1)
    motion = torch.stack([zoom * x - turn * y, zoom * y + turn * x], 1) + shift
    knots = uniform(misalignment.local, count, 2, 4, 4)
    return motion + F.interpolate(knots, size=(size, size), mode="bicubic", align_corners=True)


def inverse_motion(motion: Tensor, iterations: int = 8) -> Tensor:
    """Return the field f with ``motion(p + f(p)) = -f(p)``: the opposite displacement. Shape: (B, 2, H, W)."""
    inverse = -motion
    for _ in range(iterations):
        inverse = -_sample(motion, inverse, "bilinear")
    return inverse


def misalign(
    sharp: Tensor,
    lens: Callable[[], optics.Lens],
    generator: torch.Generator,
    *,
    misalignment: Misalignment = Misalignment(),
    degradations: Sequence[Degradation] = (),
) -> MisalignedPair:
    """Simulate two captures of sharp patches: through a lens, and sharp from another position.

    Args:
        sharp: patches.
        lens: draws a lens.
        generator: source of randomness.
        misalignment: how far the captures lie apart.
        degradations: take the place of the lens; every patch is degraded by one of them.

    Shape:
        - sharp: (B, 3, S, S); the pair is smaller by the lens' and the motion's margin on each side
    """
    side = sharp.shape[-1]
    reach = misalignment.reach(side)
    if sharp.ndim != 4 or side - 2 * reach - optics.KERNEL_SIZE < 8:
        raise ValueError(
            f"misalign: expected sharp (B, 3, S, S) with S >= {2 * reach + optics.KERNEL_SIZE + 8} for this "
            f"misalignment, got {tuple(sharp.shape)}"
        )
    margin = optics.KERNEL_SIZE // 2
    if degradations:
        blurry = degrade_each(sharp, degradations, generator)[..., margin:-margin, margin:-margin]
    else:
        blurry, _, _ = defocus.render(sharp, [lens() for _ in range(len(sharp))], generator, levels=4, knots=3)
    blurry = blurry[..., reach:-reach, reach:-reach]
    size = blurry.shape[-1]
    motion = random_motion(len(sharp), size, misalignment, generator)
    inner = sharp[..., margin:-margin, margin:-margin]
    moved = _sample(inner, F.pad(motion, (reach,) * 4), "bicubic")[..., reach:-reach, reach:-reach].clamp(0, 1)
    return MisalignedPair(blurry, moved, inner[..., reach:-reach, reach:-reach], inverse_motion(motion))


class GeneratedPairs:
    """Misaligned pairs made of sharp images on the fly; the same generator gives the same pairs.

    Args:
        images: (N, 3, S, S), uint8 or floats in [0, 1].
        size: side of the pairs in pixels.
        lens: draws a lens.
        misalignment: how far pairs lie apart.
        degradations: take the place of lenses, see :func:`misalign`.

    Raises:
        ValueError: the images are too small.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        size: int = 96,
        lens: Callable[[torch.Generator], optics.Lens] = optics.random_lens,
        misalignment: Misalignment = Misalignment(),
        degradations: Sequence[Degradation] = (),
    ) -> None:
        self.images, self.size, self.lens, self.misalignment = images, size, lens, misalignment
        self.degradations = tuple(degradations)
        self.needed = next(s for s in range(size, 10 * size + 100) if self._inner(s) >= size)
        if images.ndim != 4 or min(images.shape[-2:], default=0) < self.needed:
            raise ValueError(
                f"GeneratedPairs: expected images (N, 3, S, S) with S >= {self.needed} for pairs of {size} pixels, "
                f"got {tuple(images.shape)}"
            )

    def _inner(self, side: int) -> int:
        return side - 2 * self.misalignment.reach(side) - optics.KERNEL_SIZE + 1

    def __call__(self, count: int, generator: torch.Generator) -> MisalignedPair:
        """Return the next batch."""
        sharp = random_patches(self.images, count, self.needed, generator)
        options: dict[str, Any] = {"misalignment": self.misalignment, "degradations": self.degradations}
        pair = misalign(sharp, lambda: self.lens(generator), generator, **options)
        cut = (..., slice(0, self.size), slice(0, self.size))
        aligned, flow = (None if t is None else t[cut] for t in (pair.aligned, pair.flow))
        return MisalignedPair(pair.blurry[cut], pair.sharp[cut], aligned, flow)


class FolderPairs:
    """Misaligned pairs of files: the same crop of both, at a random place.

    Args:
        pairs: paths of the blurry and of the sharp file, of one size each.
        size: side of the crops in pixels.

    Raises:
        ValueError: there are no pairs, or the files of one differ in size or are smaller than a crop.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], *, size: int = 256) -> None:
        self._crops = FolderCrops([PairFiles(*paths) for paths in pairs], size=size, augmentation=None)
        self._count = len(pairs)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return self._count

    def __call__(self, count: int, generator: torch.Generator) -> MisalignedPair:
        """Return the next batch."""
        pair = self._crops(count, generator)
        return MisalignedPair(pair.blurry, pair.sharp)


def load_sharp_images(folder: Path, *, size: int = 256, most: int = 2000) -> Tensor:
    """Return crops of all images in a folder and below, side by side, for :class:`GeneratedPairs`: (N, 3, S, S) uint8.

    Raises:
        ValueError: no image there is large enough.
    """
    files = images_below(Path(folder))
    crops: list[Tensor] = []
    for path in files:
        image = (read_image(path).as_rgb() * 255).round().to(torch.uint8)
        for top in range(0, image.shape[1] - size + 1, size):
            for left in range(0, image.shape[2] - size + 1, size):
                crops.append(image[:, top : top + size, left : left + size])  # noqa: PERF401
        if len(crops) >= most:
            break
    if not crops:
        raise ValueError(f"{folder}: expected images of at least {size} x {size} pixels, found {len(files)} files")
    return torch.stack(crops[:most])


def _sample(x: Tensor, motion: Tensor, mode: str) -> Tensor:
    """Return the values at p + motion(p); the border is repeated."""
    axes = []
    for axis, size in ((0, x.shape[3]), (1, x.shape[2])):
        place = torch.arange(size, dtype=x.dtype)
        axes.append((2 * (motion[:, axis] + (place if axis == 0 else place[:, None])) + 1) / size - 1)
    return F.grid_sample(x, torch.stack(axes, -1), mode=mode, padding_mode="border", align_corners=False)
