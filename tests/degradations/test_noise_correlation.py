"""Correlation of noise between channels and pixels: read back as it was added; content is not taken for noise."""

import pytest
import torch
import torch.nn.functional as F
from _degradation_base import seeded

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Clip, Compose, Jpeg, Noise, Quantize
from tta_restore.degradations._haar import haar, quads
from tta_restore.degradations.noise import unit_noise
from tta_restore.degradations.noise_correlation import estimate_noise_correlation, haar_energies, unevenness
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


@pytest.mark.parametrize("function", [estimate_noise_correlation, unevenness])
def test_batches_are_refused(function):
    with pytest.raises(ValueError, match=rf"{function.__name__}: expected image of shape \(C, H, W\), got"):
        function(photo())


def test_content_makes_an_image_uneven():
    noise = _correlated(torch.full((1, 3, 192, 192), 0.5), 20, 1.0)
    assert 1 < unevenness(noise) < 1.12
    half = noise.clone()
    half[:, ::2, 80:] += 0.2  # lines over most of the image
    assert unevenness(half) > 1.3
    assert unevenness(noise[:, :40, :40]) == unevenness(noise[:, :20, :20]) == 1  # too small to tell
    assert unevenness(torch.zeros(3, 128, 128)) == 1  # clipped everywhere


@pytest.mark.parametrize("pixels", [0.0, 0.5, 0.8, 1.4])
def test_energies_of_filtered_noise_are_those_of_a_sample(pixels):
    noise = unit_noise(torch.zeros(1, 1, 1200, 1200), torch.tensor(pixels), torch.tensor(0.0), seeded())[0]
    full, half = (haar(*quads(F.avg_pool2d(noise, scale))).square().mean((1, 2, 3)) * scale**2 for scale in (1, 2))
    torch.testing.assert_close(torch.cat([full, half]), haar_energies(pixels), rtol=0.03, atol=0.002)


@pytest.mark.parametrize(("level", "between"), [(6, 0.0), (20, 0.0), (20, 0.5)])
@pytest.mark.parametrize("pixels", [0.6, 0.8])
def test_the_filter_of_noise_is_read_back(level, pixels, between):
    found = estimate_noise_correlation(_correlated(0.6 * photo() + 0.2, level, between, grain=pixels))
    assert found.between_pixels == pytest.approx(pixels, abs=0.06)
    assert found.between_channels == pytest.approx(between, abs=0.1)
    assert 255 * found.std == pytest.approx(level, rel=0.1)


@pytest.mark.parametrize("name", photos.TRAIN + photos.DEV)
def test_white_noise_and_content_are_not_filtered(name):
    image = photos.load(name)[None, :, :256, :256]
    assert not estimate_noise_correlation(image[0]).between_pixels
    for level in (5, 20):
        found = estimate_noise_correlation(_correlated(0.6 * image + 0.2, level, 0.0))
        assert not found.between_pixels
        assert found.std == 0


def test_white_noise_is_known_to_be_white_and_gray_noise_is_not():
    image = 0.6 * photo() + 0.2
    assert estimate_noise_correlation(_correlated(image, 20, 0.0)).between_pixels == 0
    assert estimate_noise_correlation(_correlated(image, 2.4, 0.0, grain=0.7)).between_pixels == 0  # weak
    for noise in (0.0, 0.7):
        gray = _correlated(image.mean(1, keepdim=True), 20, 0.0, grain=noise)
        assert estimate_noise_correlation(gray).between_pixels is None
        assert estimate_noise_correlation(gray.expand(3, -1, -1)).between_pixels is None


def test_differences_of_channels_show_their_own_noise_where_content_hides_what_they_share():
    found = estimate_noise_correlation(_correlated(0.6 * photo() + 0.2, 6, 0.5, grain=0.8))
    assert found.between_pixels == pytest.approx(0.8, abs=0.06)
    assert found.between_channels == 0
    assert 255 * found.std == pytest.approx(6 * 0.5**0.5, rel=0.1)


def _demosaicked(noise):
    """Bilinear demosaicking of the noise of a Bayer pattern, which is no Gaussian filter."""
    odd, shifted = torch.arange(noise.shape[-2])[:, None] % 2, torch.arange(noise.shape[-1]) % 2
    seen = torch.stack([(1 - odd) * (1 - shifted), (odd + shifted) % 2, odd * shifted]).float()
    row, cross = torch.tensor([0.5, 1.0, 0.5]), torch.tensor([[0, 0.25, 0], [0.25, 1, 0.25], [0, 0.25, 0]])
    kernels = torch.stack([row[:, None] * row, cross, row[:, None] * row])
    return F.conv2d(noise * seen, kernels[:, None], groups=3, padding=1)


def _enlarged(noise, factor):
    return F.interpolate(noise, scale_factor=factor, mode="bicubic")[..., : noise.shape[-2], : noise.shape[-1]]


@pytest.mark.parametrize(("change", "low", "high"), [
    (_demosaicked, 0.6, 0.75), (lambda noise: _enlarged(noise, 1.5), 0.55, 0.75),
])  # fmt: skip
def test_filters_of_cameras_are_read_as_gaussian_ones(change, low, high):
    noise = change(20 / 255 * torch.randn(1, 3, 256, 256, generator=seeded()))
    found = estimate_noise_correlation((0.6 * photo() + 0.2 + noise)[0].clamp(0, 1))
    assert low <= found.between_pixels <= high
    assert found.std == pytest.approx(float(noise.std()), rel=0.1)


def test_what_no_gaussian_filter_explains_is_not_known():
    image = 0.6 * photo() + 0.2
    noise = 20 / 255 * torch.randn(1, 3, 256, 256, generator=seeded())
    stripes = noise[..., :1].expand_as(noise)  # strong in one direction only
    for other in (_enlarged(noise, 2.0), stripes):
        assert estimate_noise_correlation((image + other)[0].clamp(0, 1)).between_pixels is None
    ramp = torch.linspace(0.2, 1.8, 256) * unit_noise(noise, torch.tensor(0.7), torch.tensor(0.0), seeded())
    assert estimate_noise_correlation((image + 20 / 255 * ramp)[0].clamp(0, 1)).between_pixels is None  # uneven
    camera = Compose([Noise(20 / 255, correlation=0.7), Clip(), Quantize(), Jpeg(quality=60)])
    assert not estimate_noise_correlation(camera.apply(image, camera.sample(seeded(), 1), seeded())[0]).between_pixels
    small = _correlated(image, 20, 0.0, grain=0.7)[:, :40, :40]  # four blocks
    assert estimate_noise_correlation(small).between_pixels is None
    assert estimate_noise_correlation(_correlated(0 * image, 20, 0.0, grain=0.7)).between_pixels is None  # clipped
