"""Pictures of apertures: turning them, finding how they lie, and what an estimator remembers of them."""

import math

import pytest
import torch

from tta_restore.degradations import lens as optics
from tta_restore.models import create_model
from tta_restore.models.defocus.pupil import align_pupils, polar_samples, rotate_pupil


def _known(count: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    pictures = optics.rasterize_pupils([optics.random_lens(generator, tails=0.2) for _ in range(count)])
    return (pictures + pictures.flip((1, 2))) / 2


@pytest.mark.parametrize(("quarters", "mirrored"), [(0, False), (1, False), (0, True), (1, True)])
def test_turning_by_quarters_is_exact(quarters, mirrored):
    pictures = _known(3)
    angle, mirror = torch.full((3,), quarters * math.pi / 2), torch.full((3,), mirrored)
    expected = pictures.flip(1) if mirrored else pictures
    # rows grow downwards, so that from the x axis towards the y axis is clockwise
    expected = expected.rot90(-quarters, (1, 2))
    torch.testing.assert_close(rotate_pupil(pictures, angle, mirror), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("steps", "mirrored"), [(0, False), (3, False), (11, True)])
def test_a_turned_picture_is_recognized_and_turned_back(steps, mirrored):
    pictures = optics.rasterize_pupils([optics.Lens("ellipse", optics.ellipse(r, 0.4), (1, 2)) for r in (0.4, 0.9)])
    skewed = (
        rotate_pupil(pictures[:1], torch.tensor([0.8]), torch.tensor([False])).square() + 0.3 * pictures[:1].square()
    )
    pictures = torch.cat([skewed / skewed.sum(), pictures])
    query = rotate_pupil(pictures[:1], torch.tensor([steps * math.pi / 16]), torch.tensor([mirrored]))
    distance, angle, mirror = align_pupils(polar_samples(query, 14, 16)[0], polar_samples(pictures, 14, 16))
    assert int(distance.argmin()) == 0
    found = rotate_pupil(pictures[:1], angle[:1], mirror[:1])
    assert (found - query).square().sum() < 0.02 * query.square().sum()
    upright = pictures[:1]
    assert steps == 0 or (upright - query).square().sum() > 0.05 * query.square().sum()


def test_an_estimator_answers_with_what_it_remembers():
    estimator = create_model("lens_estimator", known=12).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        statistics = torch.rand(12, estimator(torch.rand(1, 3, 32, 32)).statistics.shape[1], generator=generator)
        mean = estimator.aperture(statistics[:1])
        torch.testing.assert_close(estimator.candidates(statistics[0], 3), mean.expand(3, -1, -1))
        known = _known()
        estimator.add_known(statistics, known)
        answer = estimator.candidates(statistics[5], 4)
        assert answer.shape == (4, 23, 23)
        torch.testing.assert_close(answer.sum((1, 2)), torch.ones(4))
        torch.testing.assert_close(answer[0], known[5], atol=float(known[5].max()) / 100, rtol=0)
        assert estimator.candidates(statistics[5], 40).shape == (12, 23, 23), "it knows no more than it was told"


def test_what_is_remembered_travels_with_the_weights():
    shipped = create_model("lens_estimator", checkpoint="lens_estimator")
    assert int(shipped.known.amax((1, 2)).min()) == 255
    assert bool(shipped.said.flatten(1).any(1).all())
