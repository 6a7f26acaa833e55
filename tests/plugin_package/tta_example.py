"""A plug-in: a model, a method and a degradation that the commands know by name once it is installed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tta_restore.adapters import Adapter
from tta_restore.degradations import Degradation, Parameters
from tta_restore.degradations.degradation import quantity


class Brighter(nn.Module):
    """Scales an image."""

    def __init__(self, gain: float = 1.25) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Halving(Adapter):
    """Returns the restoration, halved."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


@dataclass(frozen=True)
class HazeParameters(Parameters):
    """No parameter but the number of images."""

    level: Tensor = quantity("fraction of white", minimum=0)


@dataclass(frozen=True)
class Haze(Degradation):
    """Mixes an image with white.

    Args:
        level: fraction of white.
    """

    level: float = 0.2

    Parameters = HazeParameters

    def sample(self, generator: torch.Generator, n: int) -> HazeParameters:
        return HazeParameters(torch.full((n,), self.level))

    def apply(self, sharp: Tensor, parameters: HazeParameters, generator: torch.Generator) -> Tensor:
        level = parameters.level.to(sharp).view(-1, 1, 1, 1)
        return sharp * (1 - level) + level

    def distance(self, a: HazeParameters, b: HazeParameters) -> Tensor:
        return (a.level - b.level).abs()
