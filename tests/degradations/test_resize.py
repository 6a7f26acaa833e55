"""Downscaling: sizes, means, and no shift."""

import pytest
import torch
from _degradation_base import DegradationTests, seeded

from tta_restore.degradations import Resize


class TestResize(DegradationTests):
    def degradations(self):
        return [
            Resize(2),
            Resize(3, ("bicubic", "area", "nearest", "bilinear")),
            Resize(1.5, "area"),
            Resize(2, torch.full((4, 4), 1 / 16)),
        ]

    def bad(self):
        return [
            ({"factor": 0.5}, ValueError, "Resize: expected factor"),
            ({"kernel": "lanczos9"}, ValueError, "Resize: expected kernel to be one of"),
            ({"factor": 2, "kernel": torch.ones(3, 3)}, ValueError, "K - factor even"),
        ]


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear", "area", torch.full((6, 6), 1 / 36)], ids=str)
def test_a_ramp_stays_a_ramp_in_place(kernel):
    """Centers of pixels agree: an output pixel is the mean position of its inputs."""
    ramp = (torch.arange(48.0) / 48).expand(1, 1, 48, 48).contiguous()
    degradation = Resize(2, kernel)
    out = degradation.apply(ramp, degradation.sample(seeded(), 1))
    assert out.shape == (1, 1, 24, 24)
    expected = (torch.arange(24.0) * 2 + 0.5) / 48
    torch.testing.assert_close(out[0, 0, 12, 4:-4], expected[4:-4], atol=1e-4, rtol=0)


def test_output_sizes_are_rounded():
    degradation = Resize(1.5)
    assert degradation.apply(torch.rand(1, 3, 40, 31), degradation.sample(seeded(), 1)).shape[-2:] == (27, 21)


def test_every_image_gets_its_kernel():
    degradation = Resize(2, ("nearest", "area"))
    images = torch.rand(6, 1, 16, 16, generator=seeded())
    parameters = degradation.sample(seeded(1), 6)
    out = degradation.apply(images, parameters)
    for image, index, small in zip(images, parameters.kernel.tolist(), out, strict=True):
        alone = Resize(2, ("nearest", "area")[index])
        torch.testing.assert_close(small[None], alone.apply(image[None], alone.sample(seeded(), 1)))
    assert set(parameters.kernel.tolist()) == {0, 1}
