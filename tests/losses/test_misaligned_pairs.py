"""Losses of misaligned pairs: recorded values, the calibration mask, and the recorded training steps."""

from pathlib import Path

import pytest
import torch
from _base import GRID_SAMPLE, Bad, LossTests, Sample, random
from safetensors.torch import load_file

from tta_restore import losses

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"
FLOWS = load_file(GOLDEN / "e_flow_mask.safetensors")


class TestDeformedPair(LossTests):
    op = losses.deformed_pair
    module = losses.DeformedPair
    jvp = "right"
    torch_since = GRID_SAMPLE

    def samples(self, generator):
        images = tuple(random(2, 3, 6, 7, generator=generator) for _ in range(2))
        flows = tuple(0.9 * random(2, 2, 6, 7, generator=generator, low=-1) for _ in range(2))
        return [
            Sample((*images, *flows), {"exact": True, "sigma": None}, frozen=(2, 3)),
            Sample((*images, *flows), {"sigma": 0.2}, frozen=(2, 3)),
            Sample((*images, flows[0]), {"eps": 0.1}, frozen=(2,)),
        ]

    # Flows in half precision point to other pixels, and masks are steps.
    dtypes = (torch.float32, torch.float64)
    test_autocast = None
    test_jvp = None  # flows are constants

    def bad(self):
        image, flow = torch.rand(1, 3, 4, 5), torch.rand(1, 2, 4, 5)
        return [
            Bad((image, image[..., 1:], flow), ValueError, r"sharp of shape .*\(1, 3, 4, 5\), got \(1, 3, 4, 4\)"),
            Bad((image, image, image), ValueError, r"flow of shape \(B, 2, H, W\) = \(1, 2, 4, 5\)"),
            Bad((image, image, flow, image), ValueError, "back_flow of shape"),
            Bad((image, image.byte(), flow), TypeError, "sharp with a floating dtype"),
        ]


class TestReblurConsistency(LossTests):
    op = losses.reblur_consistency
    module = losses.ReblurConsistency
    jvp = "right"

    def samples(self, generator):
        pair = tuple(random(2, 3, 6, 7, generator=generator) for _ in range(2))
        return [Sample(pair), Sample(pair, {"border": 2, "eps": 0.1})]

    def bad(self):
        image = torch.rand(1, 3, 4, 5)
        return [
            Bad((image, image[1:]), ValueError, "blurry of shape"),
            Bad((image, image), ValueError, "a border of 2 leaves nothing", {"border": 2}),
            Bad((image, image), TypeError, "border to be an integer", {"border": 0.5}),
        ]

    def equal(self, generator):
        image = random(1, 3, 4, 4, generator=generator)
        return Sample((image, image.clone()))


class TestBlurMap(LossTests):
    op = losses.blur_map
    module = losses.BlurMap
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
    losses.blur_map(predicted, seeds, detach=True).backward()
    assert seeds.grad is None
    assert predicted.grad.abs().sum() > 0


@pytest.mark.parametrize("case", ["equal", "odd", "rand", "small"])
def test_recorded_charbonnier(case):
    recorded = load_file(GOLDEN / "f_losses.safetensors")
    x = recorded[f"{case}.x"].requires_grad_()
    loss = losses.charbonnier(x, recorded[f"{case}.y"])
    torch.testing.assert_close(loss, recorded[f"{case}.charbonnier"], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], recorded[f"{case}.grad_x"], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("case", ["zero", "const", "smooth", "tiny", "outlier", "noise", "zoom", "wheel_360"])
def test_recorded_calibration_mask(case):
    flow = FLOWS[f"{case}.flow"]
    gray = losses.flow_gray(flow)
    assert (gray - FLOWS[f"{case}.gray_u8"].float()).abs().max() <= 1
    for sigma in (0.35, 0.4):
        mask = losses.calibration_mask(flow, sigma=sigma)
        assert mask.shape == (flow.shape[0], 1, *flow.shape[2:])
        flips = (mask != FLOWS[f"{case}.mask_{sigma}"]).float().mean()
        assert flips <= 0.005, f"{flips:.2%} of the mask flipped"
    if case in ("zero", "const"):
        assert losses.calibration_mask(flow).all()


def test_color_wheel():
    from tta_restore.losses.alignment import color_wheel

    torch.testing.assert_close(color_wheel(), FLOWS["colorwheel_55x3"])


def test_recorded_weighing_of_seeds():
    recorded = load_file(GOLDEN / "j_weighted_core.safetensors")
    torch.testing.assert_close(losses.weigh_seeds(recorded["core"], recorded["maps"]), recorded["out"])
