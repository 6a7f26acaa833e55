"""The sensor model of the simulators: transfer curve, read noise, rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from tta_restore._core.color import linear_to_srgb

__all__ = ["apply_sensor_model"]


def apply_sensor_model(
    linear: Tensor, generator: torch.Generator, *, noise_std: float = 1 / 255, bits: int | None = 8
) -> Tensor:
    """Apply gamma, Gaussian read noise of standard deviation `noise_std`, and rounding to `bits`.

    Shape:
        - linear: (..., H, W) linear light in [0, 1]
        - output: the same, stored values in [0, 1]
    """
    stored = linear_to_srgb(linear.clamp(0, 1))
    stored = stored + noise_std * torch.randn(stored.shape, generator=generator)
    return stored.clamp(0, 1) if bits is None else (stored.clamp(0, 1) * (2**bits - 1)).round() / (2**bits - 1)
