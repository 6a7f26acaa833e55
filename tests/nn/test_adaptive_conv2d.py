"""Per-pixel convolution layers: they are their functions, and predicted kernels start at the identity."""

import pytest
import torch
from _base import ModuleTests, random

from tta_restore import nn, ops


class TestAdaptiveConv2d(ModuleTests):
    def module(self, **factory):
        return nn.AdaptiveConv2d(3, groups=2, stride=2, padding_mode="reflect", normalize="softmax")

    def inputs(self, generator):
        return (random(2, 4, 6, 7, generator=generator), random(2, 18, 3, 4, generator=generator)), {}

    def functional(self, module, x, kernels):
        options = {"groups": 2, "stride": 2, "padding_mode": "reflect", "normalize": "softmax"}
        return ops.adaptive_conv2d(x, kernels, kernel_size=3, **options)

    def test_autocast(self, device, generator):
        x, kernels = (t.float().requires_grad_() for t in self.inputs(generator)[0])
        with torch.autocast(device.type, torch.bfloat16):
            out = self.built(device)(x, kernels.bfloat16())
            assert out.dtype == torch.bfloat16
            assert all(g.isfinite().all() for g in torch.autograd.grad(out.float().sum(), (x, kernels)))


class TestKernelPredictor(ModuleTests):
    def module(self, **factory):
        return nn.KernelPredictor(5, 2, kernel_size=3, **factory)

    def inputs(self, generator):
        return (random(2, 5, 4, 6, generator=generator),), {}


@pytest.mark.parametrize(("normalize", "distance"), [(None, 0), ("sum", 0), ("softmax", 2e-3)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_kernels_start_at_the_identity(normalize, distance, kernel_size, generator):
    predict = nn.KernelPredictor(4, 3, kernel_size=kernel_size, normalize=normalize, init_scale=0)
    x = random(1, 3, 8, 9, generator=generator).float()
    out = nn.AdaptiveConv2d(kernel_size, normalize=normalize)(x, predict(torch.rand(1, 4, 8, 9)))
    assert (out - x).abs().max() <= distance


def test_init_scale_is_the_change_of_a_tap():
    torch.manual_seed(0)
    predict = nn.KernelPredictor(64, 4, kernel_size=5, init_scale=0.1)
    change = predict(torch.randn(1, 64, 32, 32)) - predict(torch.zeros(1, 64, 32, 32))
    assert change.std().item() == pytest.approx(0.1, rel=0.1)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="KernelPredictor: expected kernel_size to be an odd integer >= 1, got 4"):
        nn.KernelPredictor(4, 3, kernel_size=4)
    with pytest.raises(ValueError, match="KernelPredictor: expected normalize to be one of"):
        nn.KernelPredictor(4, 3, kernel_size=3, normalize="max")
    with pytest.raises(ValueError, match=r"KernelPredictor: expected features of shape \(B, D, H, W\) = \(any, 4, any"):
        nn.KernelPredictor(4, 3, kernel_size=3)(torch.rand(1, 5, 4, 4))
