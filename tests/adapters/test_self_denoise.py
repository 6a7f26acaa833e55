"""SelfDenoise: both losses reduce noise that the restorer leaves, and neither sees the pixel that it predicts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tta_restore.adapters import SelfDenoise, SelfEnsemble
from tta_restore.adapters.methods.self_denoise import neighbor_subsamples
from tta_restore.data.synthetic import dead_leaves
from tta_restore.metrics import psnr


class Filter(nn.Module):
    """A 3 x 3 filter that starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(3, 3)
        weight[1, 1] = 0.1
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, (10 * self.weight).expand(3, 1, 3, 3), groups=3)


# Masking never trains the weight of the pixel itself, which a single filter keeps.
@pytest.mark.parametrize(("loss", "expected"), [("neighbor2neighbor", 1.5), ("noise2self", 0.05)])
def test_it_removes_noise_that_the_restorer_leaves(loss, expected):
    generator = torch.Generator().manual_seed(2)
    sharp = F.avg_pool2d(dead_leaves.tile(66, generator)[None], 3, stride=1)
    x = (sharp + 0.1 * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)
    adapter = SelfDenoise(Filter(), loss=loss, steps=40, lr=3e-3)
    gain = psnr(adapter(x).clamp(0, 1), sharp) - psnr(SelfEnsemble(Filter())(x).clamp(0, 1), sharp)
    assert gain > expected


def test_subsamples_take_neighbors():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    first, second = neighbor_subsamples(x, torch.Generator().manual_seed(0))
    apart = (first(x) - second(x)).abs()
    assert apart.shape == (1, 1, 4, 4)
    assert set(apart.flatten().tolist()) == {1.0, 8.0}


def test_what_it_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="SelfDenoise: expected loss"):
        SelfDenoise(Filter(), loss="sure")
    with pytest.raises(ValueError, match="expected frames"):
        SelfDenoise(Filter())(torch.rand(1, 3, 6, 6))
    with pytest.raises(ValueError, match="scale 1"):
        SelfDenoise(nn.Sequential(Filter(), nn.Upsample(scale_factor=2)))(torch.rand(1, 3, 32, 32))
