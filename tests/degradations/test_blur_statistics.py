"""Statistics that tell blur from soft content: any size, no contrast, steepness of edges."""

import math

import pytest
import torch
from _degradation_base import seeded

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, Noise
from tta_restore.degradations.blur_statistics import NUM_BLUR_STATISTICS, blur_statistics, tile_means
from tta_restore.models.defocus.estimator import DefocusEstimate

STEEPEST = 3  # quantile of 0.99 where there are edges


def statistics(image, quality=100.0, radius=1.0):
    """With an estimate of the same radius everywhere, or one that is given, at places of 8 x 8 pixels."""
    count, _, height, width = image.shape
    grid = torch.full((count, height // 8, width // 8), 1.0) * radius
    estimate = DefocusEstimate(radius=grid, confidence=torch.ones_like(grid), statistics=torch.zeros(count, 1))
    return blur_statistics(image, estimate, torch.full((count,), 1 / 255), quality)


def photo():
    return photos.load("grace_hopper")[None, :, 40:168, 60:188]


@pytest.mark.parametrize(
    ("size", "tiles"), [((32, 32), 1), ((128, 128), 1), ((40, 300), 3), ((129, 130), 4), ((500, 700), 9)]
)
def test_frames_of_any_size_have_up_to_nine_tiles(size, tiles):
    x = torch.rand(2, 3, *size, generator=seeded())
    found = statistics(x, 60.0)
    assert found.shape == (2 * tiles, NUM_BLUR_STATISTICS)
    assert found.isfinite().all()
    assert (found[:, -1] == 0.8).all()  # the compression


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_frames_that_show_nothing_have_finite_statistics(value):
    assert statistics(torch.full((1, 3, 48, 64), value)).isfinite().all()


@pytest.mark.parametrize("side", range(32, 129, 3))
def test_every_band_of_the_spectrum_has_power_in_tiles_of_any_side(side):
    assert statistics(torch.rand(1, 3, side, 160 - side, generator=seeded())).isfinite().all()


def test_edges_are_as_steep_whatever_the_range_around_them():
    sides = torch.arange(96) // 8 % 2
    x = (sides[:, None] ^ sides).float().expand(1, 3, -1, -1)
    x = (x + x.roll(1, -1) + x.roll(1, -2)) / 3
    strong, weak = (statistics(low + (1 - 2 * low) * x)[0, :8] for low in (0.0, 0.3))
    quantiles = [1, 2, 3, 5, 6, 7]
    torch.testing.assert_close(strong[quantiles], weak[quantiles], atol=0.02, rtol=0)
    assert 0.5 < strong[STEEPEST] < 0.9


def test_contrast_and_brightness_do_not_count():
    x = photo()
    full, half = statistics(x), statistics(0.25 + 0.5 * x)
    edges = [0, 4]  # fractions of the places that have an edge of some contrast
    kept = [i for i in range(NUM_BLUR_STATISTICS) if i > 7]
    torch.testing.assert_close(full[:, kept], half[:, kept], atol=1e-3, rtol=1e-3)
    assert (half[:, edges] < full[:, edges]).all()


def test_blur_makes_all_edges_less_steep_however_much_noise_comes_after():
    x, found = photo(), []
    for radius in (0.0, 0.7, 1.4, 2.8):
        blur, noise = Blur(radius=radius, lens="disk"), Noise(1 / 255)
        blurred = blur.apply(x, blur.sample(seeded(), 1)) if radius else x
        found.append(statistics(noise.apply(blurred, noise.sample(seeded(), 1), seeded()))[0])
    steepest = [float(one[STEEPEST]) for one in found]
    assert steepest == sorted(steepest, reverse=True)
    assert steepest[0] > 1.5 * steepest[2]


def test_shapes_are_checked():
    estimate = DefocusEstimate(*(torch.ones(1, 1, 1) for _ in range(2)), statistics=torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"expected image of shape \(B, C, H, W\)"):
        blur_statistics(torch.rand(3, 48, 48), estimate, torch.ones(1))
    with pytest.raises(ValueError, match="expected noise of"):
        blur_statistics(torch.rand(1, 3, 48, 48), estimate, torch.ones(2))


def test_radii_are_those_of_the_tile():
    x = torch.rand(1, 3, 128, 256, generator=seeded())
    radius = torch.cat([torch.full((16, 16), 1.0), torch.full((16, 16), 3.0)], 1)
    left, right = statistics(x, radius=radius)
    places = (left - right).abs() > 0.5
    torch.testing.assert_close((right - left)[-11], torch.tensor(3.0).log())  # the mean
    assert int(places[-11:].sum()) == 6  # the mean and five quantiles
    assert float(left[-10]) == pytest.approx(0, abs=1e-5)  # the spread
    halves = statistics(x[..., :128], radius=radius[:, 8:24])
    assert float(halves[0, -10]) == pytest.approx(math.log(3) / 2, abs=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (129, 130), (40, 300), (500, 700)])
def test_means_are_taken_over_the_same_tiles(size):
    columns = torch.arange(size[1]).float().expand(1, *size)
    found = tile_means(columns)
    assert len(found) == len(statistics(torch.rand(1, 3, *size, generator=seeded())))
    assert float(found[0]) == pytest.approx((min(size[1], 128) - 1) / 2)
    assert float(found[-1]) == pytest.approx(size[1] - 1 - (min(size[1], 128) - 1) / 2)
