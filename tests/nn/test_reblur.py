"""Layers of reblurring-guided learning; recorded tensors are in tests/models/test_jdrl.py."""

import pytest
import torch
from _base import ModuleTests, random

from tta_restore import nn, ops


class TestIsotropicReblur(ModuleTests):
    def module(self, **factory):
        return nn.IsotropicReblur(kernel_sizes=(3, 5))

    def inputs(self, generator):
        return tuple(random(1, c, 6, 7, generator=generator) for c in (3, 5, 3)), {}

    def functional(self, module, *tensors):
        return ops.isotropic_reblur(*tensors, kernel_sizes=(3, 5))

    test_autocast = None  # there are no parameters to reach


class TestBlurMapEstimator(ModuleTests):
    def module(self, **factory):
        return nn.BlurMapEstimator(width=4, kernel_sizes=(3,), **factory)

    def inputs(self, generator):
        return (random(1, 3, 6, 7, generator=generator),), {}


class TestBlurMapFusion(ModuleTests):
    def module(self, **factory):
        fusion = nn.BlurMapFusion(3, 35, **factory)
        for parameter in fusion.parameters():  # new ones let nothing of the map through yet
            torch.nn.init.uniform_(parameter, 0.1, 0.3)
        return fusion

    def inputs(self, generator):
        return (random(2, 3, 6, 7, generator=generator), random(2, 35, 3, 4, generator=generator)), {}


def test_predictor_mixes_to_one_and_reaches_every_parameter():
    predictor = nn.IsotropicKernelPredictor(width=4, kernel_sizes=(3, 7))
    image, blurry = torch.rand(2, 3, 6, 5), torch.rand(2, 3, 6, 5)
    seeds, weights = predictor(image, blurry)
    assert seeds.shape == (2, 6, 6, 5)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 6, 5))
    (nn.IsotropicReblur(kernel_sizes=(3, 7))(image, seeds, weights) - blurry).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in predictor.parameters())
    with pytest.raises(ValueError, match="IsotropicKernelPredictor: expected blurry of shape"):
        predictor(image, blurry[..., 1:])
