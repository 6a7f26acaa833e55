"""Saturation and rounding."""

import pytest
import torch
from _degradation_base import DegradationTests, seeded

from tta_restore.degradations import Clip, Quantize


class TestClip(DegradationTests):
    def degradations(self):
        return [Clip(), Clip(white=0.6)]

    def bad(self):
        return [
            ({"white": 0.0}, ValueError, "Clip: expected white"),
            ({"white": "1"}, TypeError, "white to be a number"),
        ]


class TestQuantize(DegradationTests):
    def degradations(self):
        return [Quantize(), Quantize(bits=4)]

    def bad(self):
        return [({"bits": 0}, ValueError, "bits to be an integer"), ({"bits": 17}, ValueError, "bits to be a number")]


def test_clip_limits_and_stretches():
    x = torch.tensor([-0.5, 0.25, 0.5, 2.0]).view(1, 1, 2, 2)
    out = Clip(white=0.5).apply(x, Clip(white=0.5).sample(seeded(), 1))
    assert out.flatten().tolist() == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantize_has_so_many_values(bits):
    x = torch.linspace(0, 1, 3000).view(1, 1, 50, 60)
    out = Quantize(bits).apply(x, Quantize(bits).sample(seeded(), 1))
    assert len(out.unique()) == 2**bits
    assert (out - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6
