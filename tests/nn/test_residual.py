"""Convolutions and residual chains of IFAN against recorded tensors."""

from pathlib import Path

import pytest
import torch
from _base import ModuleTests, random
from safetensors.torch import load_file

from tta_restore import nn
from tta_restore.nn.residual import ResidualChain, activated_conv, activated_upconv

RECORDED = load_file(Path(__file__).parents[1] / "golden/ifan/blocks.safetensors")


@pytest.mark.parametrize(("name", "module"), [
    ("res1", ResidualChain(6, num_units=1)),
    ("res2", ResidualChain(6, num_units=2)),
    ("res3", ResidualChain(6, num_units=3)),
    ("upconv", activated_upconv(6, 4)),
    ("conv_s2", activated_conv(6, 4, stride=2)),
])  # fmt: skip
def test_recorded(name, module):
    prefix = f"{name}.state_dict."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in RECORDED.items() if k.startswith(prefix)})
    torch.testing.assert_close(module(RECORDED[f"{name}.input"]), RECORDED[f"{name}.output"], atol=2e-6, rtol=1e-5)


class TestResidualChain(ModuleTests):
    def module(self, **factory):
        return ResidualChain(4, **factory)

    def inputs(self, generator):
        return (random(2, 4, 5, 6, generator=generator, low=-1),), {}


class TestDisparityEstimator(ModuleTests):
    def module(self, **factory):
        return nn.DisparityEstimator(4, num_res_blocks=1, **factory)

    def inputs(self, generator):
        return (random(2, 4, 5, 6, generator=generator, low=-1),), {}


def test_disparity_is_one_channel_that_may_be_negative():
    torch.manual_seed(0)
    disparity = nn.DisparityEstimator(4)(torch.randn(2, 4, 5, 6))
    assert disparity.shape == (2, 1, 5, 6)
    estimator = nn.DisparityEstimator(4)
    torch.nn.init.constant_(estimator[3].bias, -100.0)
    assert estimator(torch.zeros(1, 4, 5, 6)).max() < -50  # an activation would have left a tenth of it


def test_num_units_must_be_positive():
    with pytest.raises(ValueError, match="ResidualChain: expected num_units to be an integer >= 1, got 0"):
        ResidualChain(4, num_units=0)
