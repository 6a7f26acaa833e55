"""Composition: the order, the parts, the parameters."""

import pytest
import torch
from _degradation_base import DegradationTests, seeded

from tta_restore.degradations import Blur, Clip, Compose, Jpeg, Noise, Quantize, Resize


class TestCompose(DegradationTests):
    random = True

    def degradations(self):
        camera = [Blur(radius=(0.3, 2.0)), Resize(2), Noise(), Clip(), Quantize(), Jpeg(quality=(30, 90))]
        return [Compose(camera), Compose([Compose([Noise(), Clip()]), Jpeg()])]

    def bad(self):
        return [
            ({"degradations": []}, ValueError, "expected at least one degradation"),
            ({"degradations": ["noise"]}, TypeError, "Compose: expected degradations, got str"),
        ]


def test_the_order_counts():
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    dark, coarse = Clip(0.5), Quantize(2)
    first, second = Compose([dark, coarse]), Compose([coarse, dark])
    outs = [c.apply(images, c.sample(seeded(), 2), seeded()) for c in (first, second)]
    by_hand = coarse.apply(dark.apply(images, dark.sample(seeded(), 2)), coarse.sample(seeded(), 2))
    assert torch.equal(outs[0], by_hand)
    assert not torch.equal(outs[0], outs[1])


def test_distances_add_up_squared():
    camera = Compose([Noise(), Jpeg()])
    a, b = camera.sample(seeded(1), 3), camera.sample(seeded(2), 3)
    parts = [item.distance(x, y) for item, x, y in zip(camera.degradations, a.parts, b.parts, strict=True)]
    torch.testing.assert_close(camera.distance(a, b), (parts[0] ** 2 + parts[1] ** 2).sqrt())


def test_parameters_of_another_composition_are_refused():
    parameters = Compose([Clip()]).sample(seeded(), 1)
    with pytest.raises(ValueError, match="expected parameters of 2 degradations, got 1"):
        Compose([Clip(), Quantize()]).apply(torch.rand(1, 3, 8, 8), parameters, seeded())
