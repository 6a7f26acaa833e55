"""Frames of many pixels: windows for adaptation, one round of tiles for the output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tta_restore.adapters import DegradationPairs, Tiles
from tta_restore.adapters.views import Windows
from tta_restore.models import SizeRequirements


class Counting(nn.Module):
    """A residual network that counts the pixels it was run on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        Counting.pixels += x.numel() // x.shape[1]
        Counting.largest = max(Counting.largest, x.shape[-1] * x.shape[-2])
        return x + 0.05 * self.conv(x)


@pytest.fixture
def frame():
    Counting.pixels = Counting.largest = 0
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 560, 640, generator=generator)


def adapter(**options):
    options = {"steps": 2, "lr": 1e-4, "task": "denoise", "tiles": Tiles(128, 32), "views": "rot4"} | options
    return DegradationPairs(Counting(), **options)


def test_windows_lie_on_a_grid_up_to_the_borders():
    image = torch.arange(40 * 60.0).view(1, 1, 40, 60)
    parts = Windows(16, 3, 100)(image, SizeRequirements(multiple_of=8))
    assert parts.shape == (9, 1, 16, 16)
    assert torch.equal(parts[0], image[0, :, :16, :16])
    assert torch.equal(parts[4], image[0, :, 12:28, 22:38])
    assert torch.equal(parts[8], image[0, :, -16:, -16:])
    assert Windows(16, 3, 2400)(image, SizeRequirements()) is image
    assert Windows(64, 2, 100)(image, SizeRequirements()).shape == (1, 1, 40, 60)


@pytest.mark.thorough
def test_a_large_frame_is_adapted_on_in_windows_and_restored_tile_by_tile(frame):
    large = adapter(region=Windows(64, 3, 50_000))
    large.adapt(frame)
    area = frame[0, 0].numel()
    assert Counting.largest <= 128 * 128
    assert Counting.pixels < 4 * area  # four views of nine windows, pairs, and no pass over the frame
    before = Counting.pixels
    large.predict(frame)
    assert Counting.pixels - before >= 4 * area


@pytest.mark.thorough
def test_the_output_of_a_large_frame_is_the_average_of_its_roles(frame):
    large = adapter(region=Windows(64, 3, 50_000), tiles=None)
    large.adapt(frame)
    whole = large.fork()
    whole.region = None
    for weights in ([0.25, 0.5, 0.25], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]):
        large.memory["weights"] = whole.memory["weights"] = weights
        torch.testing.assert_close(large.predict(frame), whole.predict(frame), rtol=0, atol=1e-6)


@pytest.mark.thorough
def test_tiles_of_a_large_frame_show_no_seam(frame):
    tiled = adapter(region=Windows(64, 3, 50_000))
    tiled.adapt(frame)
    tiled.memory["weights"] = [0.2, 0.3, 0.5]
    whole = tiled.fork()
    whole.tiles = None
    torch.testing.assert_close(tiled.predict(frame), whole.predict(frame), rtol=0, atol=1e-6)
