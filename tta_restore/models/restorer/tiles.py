"""Overlapping tiles, for images larger than a model takes or than memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.progress import ProgressBar
from tta_restore.models.restorer.restorer import Restoration
from tta_restore.models.restorer.spec import SizeRequirements, pad

__all__ = ["Tiles", "is_map"]

_SILENT = 10.0  # seconds before the tiles of an image are counted on a terminal


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles for images larger than ``size``.

    A network that sees no further than a quarter of the overlap gives what it gives on the whole image; one with
    global pooling or attention does not. Where a model returns more than the image, the rest is the first tile's.

    Attributes:
        size: side of a tile in pixels, or a pair (height, width), rounded down to what the model takes.
        overlap: pixels that neighboring tiles share; the outer quarters are dropped, the blend in between is linear.
    """

    size: int | tuple[int, int] = 1024
    overlap: int = 64

    def __post_init__(self) -> None:
        for side in self.sides:
            checks.expect_int("Tiles", "size", side, minimum=1)
        checks.expect_int("Tiles", "overlap", self.overlap, minimum=0)
        if self.overlap > min(self.sides) // 2:
            raise ValueError(f"Tiles: expected overlap <= size / 2, got size {self.size}, overlap {self.overlap}")

    def needed(self, image: Tensor) -> bool:
        """Return whether the image is larger than a tile."""
        return any(side > length for side, length in zip(image.shape[-2:], self.sides, strict=True))

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a tile."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def run(
        self,
        restore: Callable[..., Restoration],
        image: Tensor,
        tensors: Any = None,
        arguments: dict[str, Any] | None = None,
        *,
        scale: int = 1,
        size: SizeRequirements | None = None,
        progress: bool = False,
    ) -> Restoration:
        """Return ``restore(tile, tensors, arguments)`` over the whole of ``image`` (..., H, W), tile by tile.

        Arguments with a value for each pixel are cut as the image is. With ``progress`` tiles are counted on stderr.
        """
        size = size or SizeRequirements()
        height, width = image.shape[-2:]
        legal = SizeRequirements(size.minimum, size.multiple_of)
        maps = {key: pad(value, legal) for key, value in (arguments or {}).items() if is_map(value, image.shape[-2:])}
        image = pad(image, legal)
        rows, columns = (
            self._spans(side, length, size.multiple_of)
            for side, length in zip(image.shape[-2:], self.sides, strict=True)
        )
        first: Restoration | None = None
        total = image.new_empty(0)
        places = [(*row, *column) for row in rows for column in columns]
        bar: dict[str, Any] = {"desc": "tiles", "unit": "tile", "delay": _SILENT, "leave": False}
        for top, bottom, row_weight, left, right, column_weight in ProgressBar(places, shown=progress, **bar):
            cut = {key: value[..., top:bottom, left:right] for key, value in maps.items()}
            part = restore(image[..., top:bottom, left:right], tensors, (arguments or {}) | cut)
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

    def _spans(self, side: int, length: int, multiple: int) -> list[tuple[int, int, Tensor]]:
        """Start, end and weights of the tiles along one side; the weights of all tiles add up to one everywhere."""
        length = min(side, max(length // multiple, 1) * multiple)
        stride = max((length - self.overlap) // multiple, 1) * multiple
        starts = [*range(0, side - length, stride), side - length]
        shared = min(self.overlap, length - stride)
        weights = [_trapezoid(length, shared, start > 0, start + length < side) for start in starts]
        total = torch.zeros(side, dtype=torch.float32, device="cpu")
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + length] += weight
        return [
            (start, start + length, weight / total[start : start + length])
            for start, weight in zip(starts, weights, strict=True)
        ]

    @staticmethod
    def _stretched(weight: Tensor, scale: int) -> Tensor:
        return weight.repeat_interleave(scale)


def is_map(value: Any, sides: Any) -> bool:
    """Return whether an argument of a model is a map (..., H, W) with a value for each pixel of a frame."""
    return isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-2:] == sides


def _trapezoid(length: int, shared: int, rises: bool, falls: bool) -> Tensor:
    """Return weights along a tile: nothing in the outer quarter of what it shares, one from three quarters on."""
    weight = torch.ones(length, dtype=torch.float32, device="cpu")
    if shared <= 0:
        return weight
    ramp = ((torch.arange(length, dtype=torch.float32, device="cpu") + 0.5 - shared / 4) / (shared / 2)).clamp(0, 1)
    if rises:
        weight = torch.minimum(weight, ramp)
    return torch.minimum(weight, ramp.flip(0)) if falls else weight
