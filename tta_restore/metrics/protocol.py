"""The settings under which a number was measured: without them two numbers cannot be compared."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from tta_restore import _checks

# ITU-R BT.601 luma in the 16..235 range of 8-bit video, the "Y channel" of the restoration literature.
_LUMA_WEIGHTS = (65.738 / 256, 129.057 / 256, 25.064 / 256)
_LUMA_OFFSET = 16 / 255


@dataclass(frozen=True)
class Protocol:
    """How an image is prepared before it is measured, and how the values of many images become one.

    Args:
        bit_depth: both images are rounded to that many bits first (8 or 16); `None` measures the floats.
        border: pixels cut off on every side.
        color: `"rgb"` measures all channels together, `"luma"` the BT.601 luma alone.
        window: of SSIM: `"gaussian"` (11x11, sigma 1.5, population covariance) or `"uniform"` (7x7, sample covariance).
        aggregation: `"image"` is the mean over images; `"group"` the mean over groups (clips, lenses) of their means.
    """

    bit_depth: Literal[8, 16] | None = None
    border: int = 0
    color: Literal["rgb", "luma"] = "rgb"
    window: Literal["gaussian", "uniform"] = "gaussian"
    aggregation: Literal["image", "group"] = "image"

    def __post_init__(self) -> None:
        choices = {
            "bit_depth": (None, 8, 16),
            "color": ("rgb", "luma"),
            "window": ("gaussian", "uniform"),
            "aggregation": ("image", "group"),
        }
        for name, allowed in choices.items():
            _checks.expect_choice("Protocol", name, getattr(self, name), allowed)
        _checks.expect_int("Protocol", "border", self.border, minimum=0)

    def prepare(self, image: Tensor) -> Tensor:
        """The image as it is measured: clamped to [0, 1], rounded, cut and converted.

        Shape: (B, 3, H, W) -> (B, 3, H - 2*border, W - 2*border), or (B, 1, ...) for luma.
        """
        image = image.detach().float().clamp(0, 1)
        if self.bit_depth is not None:
            levels = 2**self.bit_depth - 1
            image = (image * levels).round() / levels
        if self.border:
            if min(image.shape[-2:]) <= 2 * self.border:
                height, width = image.shape[-2:]
                raise ValueError(f"Protocol: a border of {self.border} leaves nothing of an image of {height}x{width}")
            image = image[..., self.border : -self.border, self.border : -self.border]
        if self.color == "luma":
            if image.shape[1] != 3:
                raise ValueError(f"Protocol: luma needs images of shape (B, 3, H, W), got {tuple(image.shape)}")
            weights = torch.tensor(_LUMA_WEIGHTS, device=image.device).view(1, 3, 1, 1)
            image = (image * weights).sum(1, keepdim=True) + _LUMA_OFFSET
        return image

    def aggregate(self, values: Sequence[float] | Tensor, groups: Sequence[Hashable] | None = None) -> float:
        """One number for many images.

        Raises:
            ValueError: no values, or `aggregation="group"` without one group per value.
        """
        values = [float(value) for value in values]
        if not values:
            raise ValueError("Protocol.aggregate: expected at least one value, got none")
        if self.aggregation == "image":
            return sum(values) / len(values)
        if groups is None or len(groups) != len(values):
            got = "none" if groups is None else len(groups)
            raise ValueError(f"Protocol.aggregate: expected one group per value ({len(values)}), got {got}")
        members: dict[Hashable, list[float]] = {}
        for value, group in zip(values, groups, strict=True):
            members.setdefault(group, []).append(value)
        means = [sum(group) / len(group) for group in members.values()]
        return sum(means) / len(means)

    def as_dict(self) -> dict[str, object]:
        """The settings, to be stored beside the number."""
        return asdict(self)


# What the papers did, as (PSNR, SSIM). IFAN: floats, without rounding. Meta Transferring: 8-bit results, SSIM on luma.
PUBLISHED = MappingProxyType(
    {
        "ifan": (Protocol(), Protocol(window="uniform")),
        "meta-transferring": (Protocol(bit_depth=8), Protocol(bit_depth=8, color="luma")),
    }
)
