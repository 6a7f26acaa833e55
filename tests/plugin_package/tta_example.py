"""A plug-in: a model, a method, a degradation, a metric, layouts and a table that commands know by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore.adapters import Adapter
from tta_restore.data.datasets.clips import Clip, ImageSequence
from tta_restore.degradations import Degradation, Parameters
from tta_restore.degradations.degradation import quantity
from tta_restore.engine.evaluate.tables import DataSet, Row, Table
from tta_restore.engine.run.settings import Named


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


class Fogging(Adapter):
    """Degrades the restoration.

    Args:
        model: a restorer.
        degradation: how.
    """

    def __init__(self, model: Any, *, degradation: Degradation, **options: Any) -> None:
        super().__init__(model, **options)
        self.degradation = degradation

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return self.degradation.apply(super().forward(x), self.degradation.sample(generator, len(x)), generator)


def brightness(restored: Tensor, sharp: Tensor) -> Tensor:
    """Ratio of the mean brightness of the restored and the sharp image."""
    return restored.mean() / sharp.mean()


def flat_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Pairs NAME_SPLIT_low.png and NAME_SPLIT_high.png in one folder."""
    low = sorted(root.glob(f"*_{split}_low.png"))
    return [(path, path.with_name(path.name.replace("_low", "_high"))) for path in low]


def flat_clips(root: Path, split: str) -> list[Clip]:
    """All pairs of a folder as one video."""
    low, high = zip(*flat_pairs(root, split), strict=True)
    return [Clip("flat", ImageSequence(low), ImageSequence(high))]


LAYOUT = {"pairs": flat_pairs, "clips": flat_clips}

TABLE = Table(
    "example", "A table of the plug-in", "jdrl", (DataSet("Flat", "example-flat", ("psnr", "example-brightness")),),
    (Row("input", {}, "input"), Row("brighter", {"Flat": {"psnr": 20.0}}, "example-brighter")), "nobody, nowhere",
)  # fmt: skip
STREAM = Table(
    "example-stream", "A stream of the plug-in", "causiam",
    (DataSet("Flat", "example-flat", ("psnr", "example-brightness")),),
    (
        Row("brighter", {}, "example-brighter"),
        Row("halved", {}, "example-brighter", method=Named("example-halving")),
        Row("halved by module", {}, "tta_example:Brighter", method=Named("tta_example:Halving")),
        *(
            Row(f"hazy, {name}", {}, "example-brighter", method=Named("tta_example:Fogging", {"degradation": name}))
            for name in ("example-haze", "tta_example:Haze")
        ),
    ),
    "nobody, nowhere", stream=True,
)  # fmt: skip
