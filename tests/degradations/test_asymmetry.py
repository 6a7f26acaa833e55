"""Asymmetric pupil functions: found with their orientation, and not where the lens is symmetric."""

import math

import pytest
import torch
from _degradation_base import seeded

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, BlurParameters, Clip, Compose, Noise, Quantize
from tta_restore.degradations import lens as optics
from tta_restore.degradations.asymmetry import asymmetric_pupils, estimate_asymmetry
from tta_restore.degradations.blur import pupil_kernels, rotate_pupils


def waves(pupil, *, radius=2.0, noise=1.0, believed=None, names=("grace_hopper", "hubble")):
    sampled = optics.rasterize_pupils([optics.Lens("lens", pupil, (1.0, 1.0))])
    size = torch.tensor([[radius]])
    blur = BlurParameters(pupil_kernels(sampled, size), size)
    finish = Compose([Noise(noise / 255), Clip(), Quantize()])
    found = []
    for name in names:
        image = Blur().apply(photos.load(name)[None, :, 60:220, 60:220], blur)
        image = finish.apply(image, finish.sample(seeded(), 1), seeded())
        found.append(estimate_asymmetry(image[0], believed or radius, noise / 255))
    return torch.stack(found).mean(0), sampled[0]


def overlap(first, second):
    return float((first * second).sum() / first.norm() / second.norm())


@pytest.mark.parametrize("angle", [0.5, 1.4])
@pytest.mark.parametrize(("noise", "believed"), [(1.0, 2.0), (4.0, 2.4)])
def test_a_triangle_is_found_the_right_way_round(angle, noise, believed):
    mean, true = waves(optics.polygon(3, angle), noise=noise, believed=believed)
    pupil, trust = asymmetric_pupils(mean, 2)
    assert trust > 0.5
    assert overlap(pupil, true) > 0.93
    assert overlap(pupil, true) > overlap(pupil.flip((0, 1)), true) + 0.1


def test_coma_is_found_the_right_way_round():
    sampled = optics.rasterize_pupils([optics.Lens("coma", optics.center_pupil(optics.coma), (1.0, 1.0))])
    turned = rotate_pupils(sampled, torch.tensor([2.0]))[0]

    size, found = torch.tensor([[2.0]]), []
    for name in ("grace_hopper", "hubble"):
        image = photos.load(name)[None, :, 60:220, 60:220]
        image = Blur().apply(image, BlurParameters(pupil_kernels(turned[None], size), size))
        found.append(estimate_asymmetry(image[0], 2.0, 1 / 255))
    pupil, trust = asymmetric_pupils(torch.stack(found).mean(0), 2)
    assert trust > 0.1
    assert overlap(pupil, turned) > 0.8
    assert overlap(pupil, turned) > overlap(pupil.flip((0, 1)), turned) + 0.2


@pytest.mark.parametrize("name", ["disk", "gaussian", "hexagon", "cat_eye"])
def test_symmetric_lenses_leave_no_wave(name):
    shapes = {"hexagon": optics.polygon(6), "cat_eye": optics.cat_eye()}
    mean, _ = waves(shapes.get(name) or getattr(optics, name))
    assert asymmetric_pupils(mean, 2) == (None, 0.0)


def test_more_frames_make_weaker_waves_count():
    weak = torch.tensor([[0.015, 0.0], [0.0, 0.0]])
    assert asymmetric_pupils(weak, 1) == (None, 0.0)
    pupil, trust = asymmetric_pupils(weak, 4)
    assert pupil is not None
    assert trust == pytest.approx(0.5)
    assert float(pupil.sum()) == pytest.approx(1.0, abs=1e-4)


def test_tiny_and_flat_images_have_no_asymmetry():
    for image in (torch.full((3, 40, 40), 0.5), torch.rand(1, 33, 40, generator=seeded())):
        found = estimate_asymmetry(image, 1.5, 1 / 255)
        assert found.isfinite().all()
        assert math.hypot(*found.flatten().tolist()) < 0.05
    with pytest.raises(ValueError, match="estimate_asymmetry: expected radius"):
        estimate_asymmetry(torch.rand(3, 40, 40), 0.0, 0.01)
