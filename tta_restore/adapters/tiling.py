"""Which part of a large frame adaptation looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.models import Restoration, SizeRequirements
from tta_restore.models.restorer.restorer import pad


@dataclass(frozen=True)
class CenterCrop:
    """The middle of frames that are larger than ``above``; smaller frames whole.

    Attributes:
        size: sides of the crop in pixels; a shorter frame gives its whole side. Sides are rounded down to what the
            model takes without padding, never below one such multiple.
        above: (height, width); a frame is large when either side exceeds its number. None: when larger than ``size``.
    """

    size: int
    above: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        checks.expect_int("CenterCrop", "size", self.size, minimum=1)

    def __call__(self, image: Tensor, requirements: SizeRequirements) -> Tensor:
        """The crop of (..., H, W), or the frame itself."""
        height, width = image.shape[-2:]
        limit = self.above or (self.size, self.size)
        if height <= limit[0] and width <= limit[1]:
            return image
        sides = [self._side(side, requirements) for side in (height, width)]
        top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
        return image[..., top : top + sides[0], left : left + sides[1]]

    def _side(self, side: int, requirements: SizeRequirements) -> int:
        least = max(requirements.minimum, requirements.multiple_of)
        cropped = min(side, self.size) // requirements.multiple_of * requirements.multiple_of
        return min(side, max(cropped, least))


RELEASED_REGION = CenterCrop(1120, above=(1680, 1150))
"""The rule of the released SiamCTTA, with crops that never leave the frame."""


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles for images larger than ``size``.

    A network that sees no further than a quarter of the overlap gives what it gives on the whole image; one with
    global pooling or attention does not. Where a model returns more than the image, the rest is the first tile's.

    Attributes:
        size: sides of a tile in pixels, rounded down to what the model takes.
        overlap: pixels that neighboring tiles share; the outer quarters are dropped, the blend in between is linear.
    """

    size: int = 1024
    overlap: int = 64

    def __post_init__(self) -> None:
        checks.expect_int("Tiles", "size", self.size, minimum=1)
        checks.expect_int("Tiles", "overlap", self.overlap, minimum=0)
        if self.overlap > self.size // 2:
            raise ValueError(f"Tiles: expected overlap <= size / 2, got size {self.size}, overlap {self.overlap}")

    def needed(self, image: Tensor) -> bool:
        """Whether the image is larger than a tile."""
        return max(image.shape[-2:]) > self.size

    def run(
        self,
        restore: Callable[[Tensor], Restoration],
        image: Tensor,
        *,
        scale: int = 1,
        size: SizeRequirements | None = None,
    ) -> Restoration:
        """``restore`` over the whole of ``image`` (..., H, W), tile by tile."""
        size = size or SizeRequirements()
        height, width = image.shape[-2:]
        image = pad(image, SizeRequirements(size.minimum, size.multiple_of))
        rows, columns = (self._spans(side, size.multiple_of) for side in image.shape[-2:])
        first: Restoration | None = None
        total = image.new_empty(0)
        for top, bottom, row_weight in rows:
            for left, right, column_weight in columns:
                part = restore(image[..., top:bottom, left:right])
                tile = part.image
                if first is None:
                    first = part
                    total = tile.new_zeros(
                        (*tile.shape[:-2], image.shape[-2] * scale, image.shape[-1] * scale), dtype=torch.float32
                    )
                weight = self._stretched(row_weight, scale)[:, None] * self._stretched(column_weight, scale)
                total[..., top * scale : bottom * scale, left * scale : right * scale] += tile * weight.to(tile.device)
        if first is None:
            raise ValueError(f"Tiles: expected an image with pixels, got shape {tuple(image.shape)}")
        return first.with_image(total[..., : height * scale, : width * scale].to(first.image.dtype))

    def _spans(self, side: int, multiple: int) -> list[tuple[int, int, Tensor]]:
        """Start, end and weights of the tiles along one side; the weights of all tiles add up to one everywhere."""
        length = min(side, max(self.size // multiple, 1) * multiple)
        stride = max((length - self.overlap) // multiple, 1) * multiple
        starts = [*range(0, side - length, stride), side - length]
        shared = min(self.overlap, length - stride)
        weights = [_trapezoid(length, shared, start > 0, start + length < side) for start in starts]
        total = torch.zeros(side)
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + length] += weight
        return [
            (start, start + length, weight / total[start : start + length])
            for start, weight in zip(starts, weights, strict=True)
        ]

    @staticmethod
    def _stretched(weight: Tensor, scale: int) -> Tensor:
        return weight.repeat_interleave(scale)


def _trapezoid(length: int, shared: int, rises: bool, falls: bool) -> Tensor:
    """Weights along a tile: nothing in the outer quarter of what it shares, one from three quarters on."""
    weight = torch.ones(length)
    if shared <= 0:
        return weight
    ramp = ((torch.arange(length) + 0.5 - shared / 4) / (shared / 2)).clamp(0, 1)
    if rises:
        weight = torch.minimum(weight, ramp)
    return torch.minimum(weight, ramp.flip(0)) if falls else weight
