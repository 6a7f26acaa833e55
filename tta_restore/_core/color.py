"""The transfer curve of stored pictures (IEC 61966-2-1), which data are simulated and lenses are read with."""

from __future__ import annotations

import torch
from torch import Tensor


def srgb_to_linear(x: Tensor) -> Tensor:
    """Stored values in [0, 1] to linear light (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(x: Tensor) -> Tensor:
    """Linear light in [0, 1] to stored values (IEC 61966-2-1)."""
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def srgb_slope(x: Tensor) -> Tensor:
    """Linear light per stored value at stored values in [0, 1]: what the curve multiplies noise with."""
    return torch.where(x <= 0.04045, 1 / 12.92, 2.4 / 1.055 * ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 1.4)
