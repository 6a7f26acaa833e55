"""What noise shares between channels and neighbors: read back what was added, and content is no noise."""

import pytest
import torch
from _degradation_base import seeded

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Clip, Compose, Noise, Quantize
from tta_restore.degradations.noise_correlation import estimate_noise_correlation, unevenness
from tta_restore.degradations.noise_level import largest_noise


def photo(name="grace_hopper"):
    return photos.load(name)[None, :, 50:306, 50:306]


def _correlation(image):
    found = estimate_noise_correlation(image)
    assert (found.std > 0) == (found.between_channels > 0 or bool(found.between_pixels))
    return found.between_channels


def _correlated(image, level, between, seed=0, grain=0.0):
    noise = Noise(level / 255, correlation=grain, channel_correlation=between)
    camera = Compose([noise, Clip(), Quantize()])
    return camera.apply(image, camera.sample(seeded(), len(image)), seeded(seed))[0]


@pytest.mark.parametrize("between", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("level", [10, 25])
def test_the_correlation_of_channels_is_read_back(level, between):
    image = 0.6 * photo() + 0.2
    assert _correlation(_correlated(image, level, between)) == pytest.approx(between, abs=0.08)
    gray = image.mean(1, keepdim=True)
    assert _correlation(_correlated(gray, level, 0.0)) == 1.0
    assert _correlation(_correlated(gray, level, 0.0).expand(3, -1, -1)) == 1.0


@pytest.mark.parametrize("name", photos.TRAIN + photos.DEV)
def test_content_that_channels_share_is_no_noise(name):
    image = photos.load(name)[None, :, :256, :256]
    assert _correlation(image[0]) == 0
    assert _correlation(_correlated(image, 10, 0.0)) == 0


def test_what_is_not_white_or_not_even_or_too_small_is_no_shared_noise():
    flat = torch.full((1, 3, 192, 192), 0.5) + torch.tensor([0.02, 0.0, -0.02]).view(3, 1, 1)
    assert _correlation(_correlated(flat, 10, 1.0)) == pytest.approx(1.0, abs=0.01)
    assert _correlation(_correlated(flat, 20, 1.0, grain=0.7)) == 0  # not white
    stripes = flat + 10 / 255 * torch.randn(1, 1, 1, 192, generator=seeded())
    assert _correlation(stripes[0]) == 0  # strong in one direction only
    half = flat.clone()
    half[..., :128] = _correlated(flat, 10, 1.0)[None, ..., :128]
    assert _correlation(half[0]) == 0  # in two thirds of the image
    weak, strong = (_correlated(flat, level, 1.0) for level in (5, 15))
    assert _correlation(torch.cat([weak[..., :64], strong[..., 64:]], -1)) == 0  # a part of it stronger
    assert _correlation(_correlated(flat, 1.5, 1.0)) == 0  # not more than rounding may be
    assert _correlation(_correlated(flat[..., :40, :40], 10, 1.0)) == 0  # four blocks
    assert _correlation(_correlated(flat[..., :16, :10], 10, 1.0)) == 0


def test_clipped_noise_does_not_hide_what_channels_share():
    dark = photo() * 0.5
    dark[..., :60] = 0.0  # of its noise half is cut off, in each channel where it is black
    assert _correlation(_correlated(dark, 10, 1.0)) == pytest.approx(1.0, abs=0.06)
    assert _correlation(_correlated(dark * 0, 10, 1.0)) == 0
    tinted = torch.tensor([0.05, 0.12, 0.2]).view(1, 3, 1, 1).expand(1, 3, 192, 192)  # one channel clips in all blocks
    assert _correlation(_correlated(tinted, 10, 1.0)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("level", [5, 15, 30])
@pytest.mark.parametrize("between", [0.5, 1.0])
def test_the_level_of_shared_noise_is_read_back_and_bounds_it(level, between):
    image = _correlated(0.5 * photo("rocket") + 0.25, level, between)
    assert 255 * estimate_noise_correlation(image).std == pytest.approx(level, rel=0.03)
    assert level <= 255 * float(largest_noise(image)) < 1.25 * level


def test_content_makes_an_image_uneven():
    noise = _correlated(torch.full((1, 3, 192, 192), 0.5), 20, 1.0)
    assert 1 < unevenness(noise) < 1.12
    half = noise.clone()
    half[:, ::2, 80:] += 0.2  # lines over most of the image
    assert unevenness(half) > 1.3
    assert unevenness(noise[:, :40, :40]) == unevenness(noise[:, :20, :20]) == 1  # too small to tell
    assert unevenness(torch.zeros(3, 128, 128)) == 1  # clipped everywhere
