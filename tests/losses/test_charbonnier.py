import pytest
import torch
from _base import Bad, LossTests, Sample, random

from tta_restore import losses


class TestCharbonnier(LossTests):
    op = losses.charbonnier
    module = losses.Charbonnier
    jvp = "right"

    def samples(self, generator):
        pair = [random(2, 3, 4, 5, generator=generator) for _ in range(2)]
        return [Sample(tuple(pair)), Sample(tuple(pair), {"eps": 0.1})]

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image, image[..., 1:]), ValueError, r"expected target of shape .*\(1, 3, 4, 4\), got \(1, 3, 4, 3\)"),
            Bad((image, image.byte()), TypeError, "expected target with a floating dtype"),
            Bad((image, 0.5), TypeError, "got float"),
            Bad((image, image), ValueError, "eps to be a number > 0, got 0", {"eps": 0}),
        ]

    def equal(self, generator):
        image = random(1, 3, 4, 4, generator=generator)
        return Sample((image, image.clone()))


def test_known_values():
    target = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    restored = torch.tensor([3e-3, -0.4], dtype=torch.float64).view(1, 1, 1, 2)
    expected = ((9e-6 + 16e-6) ** 0.5 + (0.16 + 16e-6) ** 0.5) / 2
    assert losses.charbonnier(restored, target, eps=4e-3).item() == pytest.approx(expected, rel=1e-12)
    assert losses.charbonnier(target, target).item() == pytest.approx(1e-3)
    assert repr(losses.Charbonnier(eps=0.5)) == "Charbonnier(eps=0.5)"
