"""Views and parts of a frame that adapters run the model on: flips, quarter turns, crops, frames of a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.data.datasets.clips import window
from tta_restore.models import Restoration, SizeRequirements
from tta_restore.models.restorer import outputs

__all__ = ["OFFICIAL_REGION", "CenterCrop", "Windows", "by_frames", "resolve_views"]

View = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
Views = str | Sequence[View]


def _turned(x: Tensor, quarters: int, flip: bool) -> Tensor:
    """Flip left to right if asked, then turn counter-clockwise."""
    x = x.flip(-1) if flip else x
    return torch.rot90(x, quarters, (-2, -1)) if quarters else x


def _turned_back(x: Tensor, quarters: int, flip: bool) -> Tensor:
    x = torch.rot90(x, -quarters, (-2, -1)) if quarters else x
    return x.flip(-1) if flip else x


def _view(quarters: int = 0, flip: bool = False) -> View:
    return partial(_turned, quarters=quarters, flip=flip), partial(_turned_back, quarters=quarters, flip=flip)


NAMED: dict[str, tuple[View, ...]] = {
    "identity": (_view(),),
    "rot4": tuple(_view(k) for k in range(4)),
    "rot4_flip": (*(_view(k) for k in range(4)), _view(0, flip=True)),
    "d4": tuple(_view(k, flip) for flip in (False, True) for k in range(4)),
}


def resolve_views(views: Views) -> tuple[View, ...]:
    """Return pairs (view, way back) of a named group, or of a sequence of such pairs.

    Groups, identity first: ``"identity"``, ``"rot4"`` (quarter turns, counter-clockwise), ``"rot4_flip"`` (and one
    flip left to right), ``"d4"`` (quarter turns with and without that flip). A view takes a frame (..., H, W); its way
    back takes the restored image, which may be larger by the model's scale. The way back may lose nothing of the
    image: flips and turns keep every pixel.

    Raises:
        ValueError: the group is unknown, or there is no view.
        TypeError: an entry is no pair of functions.
    """
    if isinstance(views, str):
        if views not in NAMED:
            raise ValueError(f"views: expected one of {', '.join(NAMED)} or a list of (view, way back), got {views!r}")
        return NAMED[views]
    pairs = tuple(views)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(callable(side) for side in pair):
            raise TypeError(f"views: expected pairs of functions (view, way back), got {pair!r}")
    if not pairs:
        raise ValueError("views: expected at least one view, got none")
    return tuple((there, back) for there, back in pairs)


@dataclass(frozen=True)
class CenterCrop:
    """The center of frames that are larger than ``min_size``; smaller frames whole.

    Attributes:
        size: sides of the crop in pixels; a shorter frame gives its whole side. Sides are rounded down to what the
            model takes without padding, never below one such multiple.
        min_size: (height, width); a frame is cropped when either side exceeds its number. None: when larger than
            ``size``.
    """

    size: int
    min_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        checks.expect_int("CenterCrop", "size", self.size, minimum=1)

    def __call__(self, image: Tensor, requirements: SizeRequirements) -> Tensor:
        """Return the crop of (..., H, W), or the frame itself."""
        height, width = image.shape[-2:]
        limit = self.min_size or (self.size, self.size)
        if height <= limit[0] and width <= limit[1]:
            return image
        least = requirements.smallest
        sides = [self._side(height, requirements, least[0]), self._side(width, requirements, least[1])]
        top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
        return image[..., top : top + sides[0], left : left + sides[1]]

    def _side(self, side: int, requirements: SizeRequirements, least: int) -> int:
        cropped = min(side, self.size) // requirements.multiple_of * requirements.multiple_of
        return min(side, max(cropped, least))


@dataclass(frozen=True)
class Windows:
    """Crops on a regular grid over frames of more than ``min_pixels``, as a batch; smaller frames whole.

    Attributes:
        size: sides of a crop in pixels, rounded down to what the model takes without padding; a shorter frame gives its
            whole side.
        count: crops along each side, the outer ones at the borders.
        min_pixels: number of pixels up to which a frame is used whole.
    """

    size: int = 384
    count: int = 3
    min_pixels: int = 2_500_000

    def __post_init__(self) -> None:
        checks.expect_int("Windows", "size", self.size, minimum=1)
        checks.expect_int("Windows", "count", self.count, minimum=1)
        checks.expect_int("Windows", "min_pixels", self.min_pixels, minimum=1)

    def __call__(self, image: Tensor, requirements: SizeRequirements) -> Tensor:
        """Return the crops of (B, C, H, W) as (B * N, C, h, w), or the frame itself."""
        if image.ndim != 4 or image.shape[-2] * image.shape[-1] <= self.min_pixels:
            return image
        least = requirements.smallest
        rows, columns = (self._spans(image.shape[axis], requirements, least[axis]) for axis in (-2, -1))
        return torch.cat([image[..., top:bottom, left:right] for top, bottom in rows for left, right in columns])

    def _spans(self, side: int, requirements: SizeRequirements, least: int) -> list[tuple[int, int]]:
        length = min(side, max(self.size // requirements.multiple_of * requirements.multiple_of, least))
        steps = max(self.count - 1, 1)
        starts = sorted({round(i * (side - length) / steps) for i in range(self.count)})
        return [(start, start + length) for start in starts]


OFFICIAL_REGION = CenterCrop(1120, min_size=(1680, 1150))
"""The rule of the official SiamCTTA, with crops that never leave the frame."""


def by_frames(
    restore: Callable[..., Restoration],
    clip: Tensor,
    frames: int | None,
    call: Callable[..., Restoration],
    tensors: Any,
    arguments: dict[str, Any],
) -> Restoration:
    """Restore a clip (T, C, H, W) by a model of single frames, or of windows of ``frames`` around each frame.

    A model of clips of any length (``frames`` None) gets the whole clip. ``restore(image, call, tensors, arguments)``
    restores one image (1, C, H, W) or clip (1, T, C, H, W).
    """
    if frames is None:
        return restore(clip[None], call, tensors, arguments)
    length = len(clip)
    if frames == 1:
        parts = [restore(frame, call, tensors, arguments) for frame in clip.split(1)]
    else:
        windows = (clip[torch.as_tensor(window(t, length, frames))][None] for t in range(length))
        parts = [restore(frames_around, call, tensors, arguments) for frames_around in windows]
    together, path = outputs.concatenate([part.raw for part in parts]), parts[0].path
    if all(outputs.at(part.raw, path) is part.image for part in parts):  # no second copy of the clip
        return Restoration(outputs.at(together, path), together, path)
    return Restoration(torch.cat([part.image for part in parts]), together, path)
