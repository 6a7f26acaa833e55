"""Specification of a restorer: its sizes, channels, value range, scale and border."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks

__all__ = ["TASKS", "OutputSelection", "RestorerSpec", "SizeRequirements", "pad"]

TASKS = ("any", "defocus", "denoise", "jpeg", "motion", "sr")

OutputSelection = int | str | tuple[int | str, ...] | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class SizeRequirements:
    """Sides, in pixels, that a restorer can run on.

    Attributes:
        minimum: smallest side, or a pair (height, width).
        multiple_of: both sides must be a multiple of this.
        square: both sides must be equal.
        maximum: largest side, or a pair (height, width), above which images are restored in overlapping tiles; None
            where there is none. A model of one size has it as ``minimum`` and ``maximum``.
    """

    minimum: int | tuple[int, int] = 1
    multiple_of: int = 1
    square: bool = False
    maximum: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        checks.expect_int("SizeRequirements", "multiple_of", self.multiple_of, minimum=1)
        for side in _pair(self.minimum):
            checks.expect_int("SizeRequirements", "minimum", side, minimum=1)
        if self.maximum is not None:
            for side, least in zip(_pair(self.maximum), self.smallest, strict=True):
                checks.expect_int("SizeRequirements", "maximum", side, minimum=least)

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Smallest legal (height, width) that holds the given one."""
        least = self.smallest
        height, width = self._round_up(max(height, least[0])), self._round_up(max(width, least[1]))
        return (max(height, width),) * 2 if self.square else (height, width)

    @property
    def smallest(self) -> tuple[int, int]:
        """Smallest legal (height, width)."""
        height, width = map(self._round_up, _pair(self.minimum))
        return (max(height, width),) * 2 if self.square else (height, width)

    @property
    def largest(self) -> tuple[int, int] | None:
        """Largest legal (height, width); None where there is none."""
        if self.maximum is None:
            return None
        height, width = (side // self.multiple_of * self.multiple_of for side in _pair(self.maximum))
        return (min(height, width),) * 2 if self.square else (height, width)

    def _round_up(self, side: int) -> int:
        return -(-side // self.multiple_of) * self.multiple_of


@dataclass(frozen=True)
class RestorerSpec:
    """Specification of the inputs and outputs of a restorer.

    Attributes:
        scale: how many output pixels a pixel becomes, along each side.
        in_channels: channels of the input, None where any will do. Frames of 3 channels are restored channel by channel
            by a model of 1.
        out_channels: channels of the restored image, None for 1 to 4.
        frames: 1 for images (B, C, H, W); T for clips (B, T, C, H, W), None for clips of any length.
        value_range: what the model calls black and white; frames are mapped from [0, 1] to it and back.
        size: sides that the model can run on; frames are padded to them, and the result is cropped.
        output: where the image is in what the model returns: an index, key or attribute name, a tuple of them for
            nested outputs, or a function that picks it. None takes the largest image-like tensor, the first of equals.
        batched: False for a model that takes one image at a time; batches are then run image by image.
        dense: False for a model that gives one vector per frame, (B, K), such as a classifier; nothing is padded then.
        task: degradation that the model was trained to undo: "defocus", "motion", "denoise", "jpeg", "sr", or "any" of
            them; None where that is to be measured.
        border: input pixels at each side for which a model without padding returns no output. Frames are extended by
            that many before ``size`` is met, and the output covers the frame.
    """

    scale: int = 1
    in_channels: int | None = None
    out_channels: int | None = None
    frames: int | None = 1
    value_range: tuple[float, float] = (0.0, 1.0)
    size: SizeRequirements = field(default_factory=SizeRequirements)
    output: OutputSelection = None
    batched: bool = True
    dense: bool = True
    task: str | None = None
    border: int = 0

    def __post_init__(self) -> None:
        low, high = self.value_range
        if not low < high:
            raise ValueError(f"RestorerSpec: expected value_range (low, high) with low < high, got {self.value_range}")
        for name in ("scale", "frames"):
            value = getattr(self, name)
            if (name, value) != ("frames", None):
                checks.expect_int("RestorerSpec", name, value, minimum=1)
        checks.expect_int("RestorerSpec", "border", self.border, minimum=0)
        largest = self.size.largest
        if largest is not None and min(largest) <= 2 * self.border:
            raise ValueError(
                f"RestorerSpec: expected sides above twice the border, got a largest side of {min(largest)} and "
                f"border = {self.border}"
            )
        if self.task is not None:
            checks.expect_choice("RestorerSpec", "task", self.task, TASKS)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the tensor that the model gets for a frame (height, width)."""
        return self.size.fit(height + 2 * self.border, width + 2 * self.border)

    def missing(self, given: tuple[int, int], returned: tuple[int, int] | Any) -> int | None:
        """Output pixels missing at each side of an image ``returned`` for an input ``given``; None if it does not fit.

        A border of b input pixels stands for up to ``b * scale`` output pixels, and more than ``(b - 1) * scale``.
        """
        lacking = {self.scale * side - out for side, out in zip(given, returned, strict=True)}
        if len(lacking) != 1:
            return None
        pixels, odd = divmod(lacking.pop(), 2)
        return pixels if not odd and -(-pixels // self.scale) == self.border else None


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    height, width = sides if isinstance(sides, tuple) else (sides, sides)
    return height, width


def pad(x: Tensor, size: SizeRequirements, *, border: int = 0) -> Tensor:
    """Extend (..., H, W) by ``border`` at every side, and at the right and bottom to a legal size.

    The extension is a reflection, or repeats the edge where the frame is too short for one.
    """
    height, width = x.shape[-2:]
    legal = size.fit(height + 2 * border, width + 2 * border)
    if legal == (height, width):
        return x
    down, right = legal[0] - height - border, legal[1] - width - border
    flat = x.reshape(-1, *x.shape[-3:])
    flat = F.pad(flat, (border, right, 0, 0), mode="reflect" if max(border, right) < width else "replicate")
    flat = F.pad(flat, (0, 0, border, down), mode="reflect" if max(border, down) < height else "replicate")
    return flat.reshape(*x.shape[:-2], *legal)
