"""The layers of the iterative adaptive convolution are calls to the op, and let gradients through from the start."""

import torch

from tta_restore import nn, ops


def test_the_layer_is_a_call_to_the_op():
    x, filters = torch.rand(1, 4, 6, 5), 0.1 * torch.randn(1, 2 * 4 * 7, 6, 5)
    layer = nn.IterativeAdaptiveConv2d(4, num_steps=2, kernel_size=3)
    torch.testing.assert_close(layer(x, filters), ops.iac(x, filters, num_steps=2, kernel_size=3))


def test_the_block_passes_gradients_to_its_input_from_step_0():
    torch.manual_seed(0)
    x = torch.rand(1, 4, 8, 8, requires_grad=True)
    block = nn.IterativeFilterAdaptiveBlock(4, 6, num_steps=3, kernel_size=3)
    out = block(x, torch.rand(1, 6, 8, 8))
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert gradient.abs().mean() > 1e-3
