"""The layers of the iterative adaptive convolution are calls to the op, and let gradients through from the start."""

import pytest
import torch
from _base import ModuleTests, random

from tta_restore import nn, ops


def test_the_layer_is_a_call_to_the_op(generator):
    options = {
        "num_steps": 2,
        "kernel_size": 5,
        "negative_slope": 0.2,
        "activate_last": False,
        "horizontal": "vertical",
    }
    layer = nn.IterativeAdaptiveConv2d(4, **options)
    x, filters = random(2, 4, 6, 5, generator=generator), random(2, layer.filter_channels, 6, 5, generator=generator)
    assert torch.equal(layer(x, filters), ops.iac(x, filters, **options))
    assert all(f"{name}={value!r}" in repr(layer) for name, value in options.items())


class TestIterativeFilterAdaptiveBlock(ModuleTests):
    def module(self, **factory):
        return nn.IterativeFilterAdaptiveBlock(4, 6, num_steps=2, horizontal="vertical", **factory)

    def inputs(self, generator):
        return (random(2, 4, 6, 5, generator=generator), random(2, 6, 6, 5, generator=generator)), {}

    def functional(self, module, x, features):
        return ops.iac_from_features(x, features, module.weight, module.bias, num_steps=2, horizontal="vertical")


@pytest.fixture
def gradients():
    """A block of full size (17 steps, 128 channels), small features, its gradients in x and in every step's taps."""
    torch.manual_seed(0)
    block = nn.IterativeFilterAdaptiveBlock(128, 128, num_steps=17)
    x = torch.rand(1, 128, 6, 5, requires_grad=True)
    # As large as the original's predicted taps were measured at its initialization: 0.003 to 0.009 in the mean.
    features = 0.03 * torch.randn(1, 128, 6, 5)

    def run():
        in_x, in_weight = torch.autograd.grad(block(x, features).square().mean().sqrt(), (x, block.weight))
        taps = in_weight[: 17 * 2 * 128 * 3].view(17, -1)
        return in_x.abs().max(), taps.norm(dim=1)

    return block, features, run


def test_gradients_reach_the_input_and_every_step_from_the_start(gradients):
    _, _, run = gradients
    in_x, by_step = run()
    assert in_x > 1e-4
    assert by_step.min() > 0.3 * by_step.max() > 0


def test_the_original_initialization_lets_nothing_through(gradients):
    """What the block's own initialization is for: with Xavier weights and no bias the first steps get exactly zero."""
    block, features, run = gradients
    torch.nn.init.xavier_uniform_(block.weight, gain=1.5)
    torch.nn.init.zeros_(block.bias)
    taps = torch.einsum("od,bdhw->bohw", block.weight, features)
    assert 0.003 < taps.abs().mean() < 0.009
    in_x, by_step = run()
    assert in_x == 0
    assert by_step[0] == 0
    assert by_step[-1] > 0
