"""Small residual network for super-resolution."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.models.registry import register_model

__all__ = ["ResidualUpscaler", "residual_upscaler"]


class ResidualUpscaler(nn.Module):
    """Residual network for super-resolution, 80,000 parameters by default.

    Residual blocks at the size of the input, pixel shuffle, and the bicubic upsampling of the input added.

    Args:
        scale: upscaling factor s.
        width: channels.
        blocks: residual blocks.

    Shape: x (B, 3, H, W), RGB in [0, 1] -> (B, 3, s*H, s*W), not clamped.
    """

    def __init__(self, *, scale: int = 2, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.tail = nn.Conv2d(width, 3 * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the image at ``scale`` times the size."""
        features = self.head(x)
        for block in self.blocks:
            features = features + block(features)
        enlarged = F.interpolate(x, scale_factor=self.scale, mode="bicubic")
        return enlarged + F.pixel_shuffle(self.tail(features), self.scale)


@register_model("residual_upscaler", kind="restorer")
def residual_upscaler(**config: Any) -> ResidualUpscaler:
    """Build a :class:`ResidualUpscaler`; weights for scale 2 are included as "upscaler"."""
    return ResidualUpscaler(**config)
