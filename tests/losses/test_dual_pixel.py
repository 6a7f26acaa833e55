"""Losses at an eighth of the size: the target is averaged over blocks."""

from pathlib import Path

import torch
from _base import Bad, LossTests, Sample, random
from safetensors.torch import load_file

from tta_restore import losses

GOLDEN = Path(__file__).parents[1] / "golden/ifan"


class TestDisparity(LossTests):
    op = losses.disparity
    module = losses.Disparity
    jvp = "right"
    names = ("warped_right", "left")

    def samples(self, generator):
        small = random(2, 3, 3, 4, generator=generator)
        return [
            Sample((small, random(2, 3, 3, 4, generator=generator))),
            Sample((small, random(2, 3, 12, 16, generator=generator))),
        ]

    def bad(self):
        small = torch.rand(1, 3, 4, 5)
        first, second = self.names
        return [
            Bad((small, small[:, 1:]), ValueError, rf"{second} of shape \(B, C, S\*H, S\*W\)"),
            Bad((small, torch.rand(1, 3, 8, 15)), ValueError, r"\(1, 3, S\*4, S\*5\), got \(1, 3, 8, 15\)"),
            Bad((small, torch.rand(1, 3, 2, 2)), ValueError, rf"expected {second} of shape"),
            Bad((small[0], small), ValueError, rf"{first} of shape \(B, C, H, W\)"),
            Bad((small, small.byte()), TypeError, f"{second} with a floating dtype"),
        ]

    def equal(self, generator):
        small = random(1, 3, 2, 4, generator=generator)
        return Sample((small, small.repeat_interleave(8, 2).repeat_interleave(8, 3)))


class TestReblur(TestDisparity):
    op = losses.reblur
    module = losses.Reblur
    names = ("reblurred", "blurry")


def test_blocks_are_averaged_as_recorded():
    recorded = load_file(GOLDEN / "downsample.safetensors")
    assert losses.reblur(recorded["area_1_8"], recorded["input"]) < 1e-14
    expected = (recorded["nearest_1_8"] - recorded["area_1_8"]).square().mean()
    torch.testing.assert_close(losses.reblur(recorded["nearest_1_8"], recorded["input"]), expected)
    assert expected > 1e-3
