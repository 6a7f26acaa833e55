"""Motion blur: lengths, directions, no shift, and both ways of averaging."""

import math

import pytest
import torch
from _degradation_base import DegradationTests, seeded

from tta_restore.degradations import MotionBlur, MotionParameters
from tta_restore.degradations.motion import motion_kernels


class TestMotionBlur(DegradationTests):
    def degradations(self):
        return [
            MotionBlur(),
            MotionBlur(length=(0.0, 8.0), tremor=0.0, linear=False),
            MotionBlur(length=3.0, rotation=(0.0, 0.05), zoom=(0.0, 0.03), num_subframes=9),
        ]

    def bad(self):
        return [
            ({"length": -1.0}, ValueError, "MotionBlur: expected length"),
            ({"num_subframes": 1}, ValueError, "num_subframes to be an integer >= 2"),
            ({"tremor": "much"}, TypeError, "MotionBlur: expected tremor"),
        ]


def streak(length, angle, count=17):
    steps = torch.linspace(-0.5, 0.5, count)
    poses = torch.zeros(1, count, 4)
    poses[0, :, 0], poses[0, :, 1] = length * math.cos(angle) * steps, length * math.sin(angle) * steps
    return MotionParameters(poses)


@pytest.mark.parametrize("angle", [0.0, 0.6, math.pi / 2])
def test_a_streak_has_its_length_and_direction(angle):
    kernel = motion_kernels(streak(12.0, angle).poses[..., :2])[0]
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    axis = torch.arange(kernel.shape[0]) - kernel.shape[0] // 2
    x, y = kernel.sum(0), kernel.sum(1)
    assert float((x * axis).sum()) == pytest.approx(0, abs=1e-4)
    along = math.hypot((x * axis**2).sum().sqrt().item(), (y * axis**2).sum().sqrt().item())
    assert along == pytest.approx(12 / math.sqrt(12), rel=0.06)
    covariance = float((kernel * axis[:, None] * axis).sum())
    assert covariance == pytest.approx(12 * math.sin(angle) * math.cos(angle), abs=0.3)


def test_sampled_paths_have_the_length_asked_for_and_are_centered():
    poses = MotionBlur(length=(2.0, 20.0)).sample(seeded(), 200).poses
    length = poses[..., :2].diff(dim=1).norm(dim=-1).sum(1)
    assert 2 <= length.min() < 2.3
    assert 18 < length.max() <= 20.001
    assert poses[..., :2].mean(1).abs().max() < 1e-4


def test_convolution_and_averaged_views_agree():
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=seeded()), size=(64, 64), mode="bicubic")
    image = image.clamp(0, 1)
    parameters = streak(9.0, 0.4, count=65)
    plain = MotionBlur().apply(image, parameters)
    turned = parameters.poses.clone()
    turned[..., 3] = 1e-7  # the same motion through the other way
    views = MotionBlur().apply(image, MotionParameters(turned))
    torch.testing.assert_close(plain[..., 8:-8, 8:-8], views[..., 8:-8, 8:-8], atol=0.01, rtol=0)


def test_a_rotation_blurs_the_corners_and_not_the_center():
    checks = ((torch.arange(96) // 4)[:, None] + torch.arange(96) // 4) % 2
    image = checks.float().expand(1, 1, 96, 96).contiguous()
    blur = MotionBlur(length=0.0, tremor=0.0, rotation=0.1)
    out = blur.apply(image, blur.sample(seeded(), 1))
    change = (out - image).abs()[0, 0]
    assert change[:16, :16].mean() > 3 * change[44:52, 44:52].mean()


def test_distance_sees_length_and_direction():
    blur, straight = MotionBlur(), streak(10.0, 0.0)
    assert float(blur.distance(straight, streak(10.0, 0.0))) == 0
    longer, across = (float(blur.distance(straight, other)) for other in (streak(13.0, 0.0), streak(10.0, 1.57)))
    assert 0.5 < longer < across
