"""A plug-in for underexposed photos: after `pip install ./plugin` its names work in every command.

tta-restore evaluate --model gain --degradations underexposure --methods gain-tuner --metrics brightness-error
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore.adapters import Adapter
from tta_restore.degradations import Degradation, Parameters
from tta_restore.degradations.degradation import quantity

#: Folders of the data layout "exposures".
LAYOUT = {"pairs": {"train": [("train/dark", "train/bright")], "test": [("test/dark", "test/bright")]}}


class Gain(nn.Module):
    """Multiplies an image by a learned gain for each channel."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((3,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Return the brighter image. Shape: (B, 3, H, W) -> the same."""
        return x * self.gain[:, None, None]


class GainTuner(Adapter):
    """Moves the mean of every channel towards middle gray."""

    roles = ("student",)

    def __init__(self, model: Any, *, lr: float = 0.02, target: float = 0.45, **options: Any) -> None:
        super().__init__(model, **{"select": "all"} | options)
        self.lr, self.target = lr, target

    def objective(self, frame: Any) -> Tensor:
        """Return the squared distance of the channel means from the target."""
        means = self.run("student", frame.region).image.mean((-2, -1))
        return (means - self.target).square().mean()


@dataclass(frozen=True)
class Exposure(Parameters):
    """Fraction of the light that reached the sensor."""

    fraction: Tensor = quantity("fraction of the light", minimum=0)


@dataclass(frozen=True)
class Underexposure(Degradation):
    """Darkens an image.

    Args:
        least: least fraction of the light.
    """

    least: float = 0.4

    Parameters = Exposure

    def sample(self, generator: torch.Generator, n: int) -> Exposure:
        """Draw fractions between the least one and 1."""
        return Exposure(self.least + (1 - self.least) * torch.rand(n, generator=generator))

    def apply(self, sharp: Tensor, parameters: Exposure, generator: torch.Generator) -> Tensor:
        """Return the darker image."""
        return sharp * parameters.fraction.to(sharp).view(-1, 1, 1, 1)

    def distance(self, a: Exposure, b: Exposure) -> Tensor:
        """Return the distance in photographic stops."""
        return (a.fraction.log2() - b.fraction.log2()).abs()


def brightness_error(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the absolute difference of the mean brightness."""
    return (restored.mean() - sharp.mean()).abs()
