"""Statistics that tell blur from soft content: any size, no contrast, steepness of edges."""

import pytest
import torch
from _degradation_base import seeded

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, Noise
from tta_restore.degradations.blur_statistics import NUM_BLUR_STATISTICS, blur_statistics

STEEPEST = 3  # quantile of 0.99 where there are edges


def photo():
    return photos.load("grace_hopper")[None, :, 40:168, 60:188]


@pytest.mark.parametrize(
    ("size", "tiles"), [((32, 32), 1), ((128, 128), 1), ((40, 300), 3), ((129, 130), 4), ((500, 700), 9)]
)
def test_frames_of_any_size_have_up_to_nine_tiles(size, tiles):
    x = torch.rand(2, 3, *size, generator=seeded())
    found = blur_statistics(x, 60.0)
    assert found.shape == (2 * tiles, NUM_BLUR_STATISTICS)
    assert found.isfinite().all()
    assert (found[:, -1] == 0.8).all()  # the compression


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_frames_that_show_nothing_have_finite_statistics(value):
    assert blur_statistics(torch.full((1, 3, 48, 64), value)).isfinite().all()


@pytest.mark.parametrize("side", range(32, 129, 3))
def test_every_band_of_the_spectrum_has_power_in_tiles_of_any_side(side):
    assert blur_statistics(torch.rand(1, 3, side, 160 - side, generator=seeded())).isfinite().all()


def test_edges_are_as_steep_whatever_the_range_around_them():
    sides = torch.arange(96) // 8 % 2
    x = (sides[:, None] ^ sides).float().expand(1, 3, -1, -1)
    x = (x + x.roll(1, -1) + x.roll(1, -2)) / 3
    strong, weak = (blur_statistics(low + (1 - 2 * low) * x)[0, :8] for low in (0.0, 0.3))
    quantiles = [1, 2, 3, 5, 6, 7]
    torch.testing.assert_close(strong[quantiles], weak[quantiles], atol=0.02, rtol=0)
    assert 0.5 < strong[STEEPEST] < 0.9


def test_contrast_and_brightness_do_not_count():
    x = photo()
    full, half = blur_statistics(x), blur_statistics(0.25 + 0.5 * x)
    edges = [0, 4]  # fractions of the places that have an edge of some contrast
    kept = [i for i in range(NUM_BLUR_STATISTICS) if i > 7]
    torch.testing.assert_close(full[:, kept], half[:, kept], atol=1e-3, rtol=1e-3)
    assert (half[:, edges] < full[:, edges]).all()


def test_blur_makes_all_edges_less_steep_however_much_noise_comes_after():
    x, found = photo(), []
    for radius in (0.0, 0.7, 1.4, 2.8):
        blur, noise = Blur(radius=radius, lens="disk"), Noise(1 / 255)
        blurred = blur.apply(x, blur.sample(seeded(), 1)) if radius else x
        found.append(blur_statistics(noise.apply(blurred, noise.sample(seeded(), 1), seeded()))[0])
    steepest = [float(one[STEEPEST]) for one in found]
    assert steepest == sorted(steepest, reverse=True)
    assert steepest[0] > 1.5 * steepest[2]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected image of shape \(B, C, H, W\)"):
        blur_statistics(torch.rand(3, 48, 48))
