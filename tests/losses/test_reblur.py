"""Losses of reblurring: blocks averaged to a smaller size, borders left out, gradients stopped."""

from pathlib import Path

import torch
from _base import Bad, LossTests, Sample, random
from safetensors.torch import load_file

from tta_restore import losses

GOLDEN = Path(__file__).parents[1] / "golden/ifan"


class TestDisparityLoss(LossTests):
    op = losses.disparity_loss
    module = losses.DisparityLoss
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


class TestReblurLoss(TestDisparityLoss):
    op = losses.reblur_loss
    module = losses.ReblurLoss
    names = ("reblurred", "blurry")

    def samples(self, generator):
        pair = tuple(random(2, 3, 6, 7, generator=generator) for _ in range(2))
        return [
            *super().samples(generator),
            Sample(pair, {"border": 2}),
            Sample(pair, {"distance": "charbonnier"}),
            Sample(pair, {"distance": "charbonnier", "border": 2, "eps": 0.1}),
        ]

    def bad(self):
        image = torch.rand(1, 3, 4, 5)
        return [
            *super().bad(),
            Bad((image, image), ValueError, r"expected border < min\(H, W\) / 2 of reblurred .*, got 2", {"border": 2}),
            Bad((image, image), TypeError, "border to be an integer", {"border": 0.5}),
            Bad((image, image), ValueError, "distance to be one of 'mse', 'charbonnier'", {"distance": "l1"}),
        ]


class TestBlurMapLoss(LossTests):
    op = losses.blur_map_loss
    module = losses.BlurMapLoss
    jvp = "right"

    def samples(self, generator):
        pair = tuple(random(2, 5, 3, 4, generator=generator, low=-1) for _ in range(2))
        return [Sample(pair), Sample(pair, {"compare": "absolute"}), Sample(pair, {"detach": True}, frozen=(1,))]

    def bad(self):
        seeds = torch.rand(1, 5, 4, 5)
        return [
            Bad((seeds, seeds[:, 1:]), ValueError, "seeds of shape"),
            Bad((seeds, seeds), ValueError, "compare to be one of 'signed', 'absolute'", {"compare": "sign"}),
            Bad((seeds, None), TypeError, "got NoneType"),
        ]


def test_a_detached_target_stays_where_it_is():
    predicted, seeds = torch.rand(1, 5, 2, 2, requires_grad=True), torch.rand(1, 5, 2, 2, requires_grad=True)
    losses.blur_map_loss(predicted, seeds, detach=True).backward()
    assert seeds.grad is None
    assert predicted.grad.abs().sum() > 0


def test_blocks_are_averaged_as_recorded():
    recorded = load_file(GOLDEN / "downsample.safetensors")
    assert losses.reblur_loss(recorded["area_1_8"], recorded["input"]) < 1e-14
    expected = (recorded["nearest_1_8"] - recorded["area_1_8"]).square().mean()
    torch.testing.assert_close(losses.reblur_loss(recorded["nearest_1_8"], recorded["input"]), expected)
    assert expected > 1e-3


def test_the_border_is_cut_after_the_blocks_are_averaged():
    small, large = torch.rand(1, 3, 5, 6), torch.rand(1, 3, 10, 12)
    found = losses.reblur_loss(small, large, border=1, reduction="none")
    expected = (small - torch.nn.functional.avg_pool2d(large, 2)).square()[..., 1:-1, 1:-1]
    torch.testing.assert_close(found, expected)
