"""Loss of misaligned pairs: recorded values of the calibration mask."""

from pathlib import Path

import pytest
import torch
from _base import GRID_SAMPLE, Bad, LossTests, Sample, random
from safetensors.torch import load_file

from tta_restore import losses
from tta_restore.losses.alignment import _color_wheel, _flow_to_gray

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"
FLOWS = load_file(GOLDEN / "e_flow_mask.safetensors")


class TestDeformationLoss(LossTests):
    op = losses.deformation_loss
    module = losses.DeformationLoss
    jvp = "right"
    torch_since = GRID_SAMPLE

    def samples(self, generator):
        images = tuple(random(2, 3, 6, 7, generator=generator) for _ in range(2))
        flows = tuple(0.9 * random(2, 2, 6, 7, generator=generator, low=-1) for _ in range(2))
        return [
            Sample((*images, *flows), {"align_corners": True, "mask_tolerance": None}, frozen=(2, 3)),
            Sample((*images, *flows), {"mask_tolerance": 0.2}, frozen=(2, 3)),
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


@pytest.mark.parametrize("case", ["zero", "const", "smooth", "tiny", "outlier", "noise", "zoom", "wheel_360"])
def test_recorded_calibration_mask(case):
    flow = FLOWS[f"{case}.flow"]
    gray = _flow_to_gray(flow)
    assert torch.equal(gray, FLOWS[f"{case}.gray_u8"].float())
    for tolerance in (0.35, 0.4):
        mask = losses.calibration_mask(flow, tolerance=tolerance)
        assert mask.shape == (flow.shape[0], 1, *flow.shape[2:])
        flips = (mask != FLOWS[f"{case}.mask_{tolerance}"]).float().mean()
        assert flips <= 0.005, f"{flips:.2%} of the mask flipped"
    if case in ("zero", "const"):
        assert losses.calibration_mask(flow).all()


def test_color_wheel():
    torch.testing.assert_close(_color_wheel(), FLOWS["colorwheel_55x3"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_flow_that_is_not_finite_is_masked(value):
    """A training that diverges ends by its loss, not by an index."""
    flow = torch.rand(2, 2, 4, 4)
    flow[0, 1, 2, 2] = value
    mask = losses.calibration_mask(flow, tolerance=9.0)
    assert mask.mean((1, 2, 3)).tolist() == [0, 1]


def test_flows_without_two_channels_are_refused():
    with pytest.raises(ValueError, match=r"calibration_mask: expected flow of shape \(B, 2, H, W\)"):
        losses.calibration_mask(torch.zeros(1, 3, 4, 4))
