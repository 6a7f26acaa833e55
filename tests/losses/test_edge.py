from pathlib import Path

import pytest
import torch
from _base import Bad, LossTests, Sample, random
from safetensors.torch import load_file

from tta_restore import losses

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"


class TestEdge(LossTests):
    op = losses.edge
    module = losses.Edge
    jvp = "right"

    def samples(self, generator):
        small, pair = (
            tuple(random(*shape, generator=generator) for _ in "ab") for shape in ((1, 1, 2, 3), (2, 3, 5, 4))
        )
        return [Sample(small), Sample(pair, {"eps": 0.1})]  # few details are as equal as the default eps

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image[0], image[0]), ValueError, r"restored of shape \(B, C, H, W\), got \(3, 4, 4\)"),
            Bad((image, image[..., 1:]), ValueError, r"expected target of shape .*\(1, 3, 4, 4\), got \(1, 3, 4, 3\)"),
            Bad((image, image.byte()), TypeError, "expected target with a floating dtype"),
            Bad((image, image), ValueError, "eps to be a number > 0, got 0", {"eps": 0}),
        ]

    def equal(self, generator):
        image = random(1, 3, 4, 4, generator=generator)
        return Sample((image, image.clone()))


@pytest.mark.parametrize("case", ["equal", "odd", "rand", "small"])
def test_recorded_edge(case):
    recorded = load_file(GOLDEN / "f_losses.safetensors")
    x = recorded[f"{case}.x"].requires_grad_()
    loss = losses.edge(x, recorded[f"{case}.y"])
    torch.testing.assert_close(loss, recorded[f"{case}.edge"], atol=1e-7, rtol=2e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], recorded[f"{case}.edge_grad_x"], atol=1e-6, rtol=1e-4)


def test_smooth_differences_have_no_edge():
    image, ramp = torch.rand(1, 3, 24, 24, dtype=torch.float64), torch.linspace(0, 0.2, 24, dtype=torch.float64)
    detail = losses.detail(image + ramp) - losses.detail(image)
    assert detail[..., 6:-6, 6:-6].abs().max() < 1e-12
    assert losses.detail(image).abs().mean() > 0.1
