"""Blind noise levels: read back what was added, on real photographs, clipped ones too."""

import pytest
import torch
from _degradation_base import seeded

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Clip, Compose, Noise, Quantize, _haar, noise_level
from tta_restore.degradations.noise_level import (
    estimate_noise,
    estimate_noise_curve,
    largest_noise,
)


def photo(name="grace_hopper"):
    return photos.load(name)[None, :, 50:306, 50:306]


def noisy(image, read, shot=0.0, seed=0):
    camera = Compose([Noise(read, shot), Clip(), Quantize()])
    return camera.apply(image, camera.sample(seeded(), len(image)), seeded(seed))


@pytest.mark.parametrize("level", [5, 15, 30, 50])
def test_levels_are_read_back(level):
    found = 255 * float(estimate_noise(noisy(photo(), level / 255)))
    assert found == pytest.approx(level, rel=0.16)


def test_flat_images_are_read_exactly():
    flat = torch.full((2, 3, 128, 128), 0.5)
    found = estimate_noise(torch.cat([noisy(flat[:1], 4 / 255), noisy(flat[:1], 20 / 255)]))
    torch.testing.assert_close(found * 255, torch.tensor([4.0, 20.0]), rtol=0.06, atol=0)


def test_clipped_blocks_hide_noise_and_are_left_out():
    image = torch.full((1, 3, 128, 128), 0.5)
    image[..., :64] = 0.0  # half of its noise is cut off
    assert 255 * float(estimate_noise(noisy(image, 10 / 255))) == pytest.approx(10, rel=0.1)
    half = 255 * float(estimate_noise(noisy(image * 0, 10 / 255)))
    assert 3 < half < 8  # nothing but clipped blocks: too low, and not NaN


@pytest.mark.parametrize("shot", [0.005, 0.02])
def test_signal_dependence_is_read_from_several_brightnesses(shot):
    read, found = estimate_noise_curve(noisy(photo(), 2 / 255, shot))
    assert float(found) == pytest.approx(shot, rel=0.2)
    assert 255 * float(read) < 5


def test_without_signal_dependence_there_is_none():
    for level in (1, 5, 20):
        read, shot = estimate_noise_curve(noisy(photo(), level / 255))
        assert float(shot) == 0
        assert float(read) == pytest.approx(float(estimate_noise(noisy(photo(), level / 255))))
    read, shot = estimate_noise_curve(torch.zeros(1, 3, 64, 64))
    assert (float(read), float(shot)) == (0.0, 0.0)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="estimate_noise: expected image .* H, W >= 16"):
        estimate_noise(torch.rand(1, 3, 12, 64))


@pytest.mark.thorough
def test_bands_of_a_large_image_give_the_bound_of_all(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    image = 0.5 + torch.linspace(0.01, 0.05, 1200)[:, None] * torch.randn(3, 1200, 1000, generator=generator)
    monkeypatch.setattr(_haar, "MAX_PIXELS", 10**6)
    heights = []
    median = noise_level._median_level
    monkeypatch.setattr(noise_level, "_median_level", lambda x, *a: heights.append(x.shape[1]) or median(x, *a))
    found = float(largest_noise(image))
    assert set(heights) == {15 * 64}  # at most a million pixels
    heights.clear()
    largest_noise(image[:, :, :800])
    assert set(heights) == {1200}
    monkeypatch.setattr(_haar, "MAX_PIXELS", 10**9)
    assert found == pytest.approx(float(largest_noise(image)), rel=0.02)


def test_the_bound_holds_for_noise_and_not_for_content():
    sharp = photo()[0] * 0.8 + 0.1
    for level in (2, 5, 20):
        noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(1)) * level / 255
        assert level <= 255 * float(largest_noise(sharp + noise)) < 1.5 * level + 1.5
    strokes = torch.full((3, 64, 64), 0.9)
    strokes[:, ::4, ::3] = torch.tensor([0.1, 0.1, 0.2])[:, None, None]  # in one of six coefficients
    assert float(largest_noise(strokes)) < 2 / 255
    assert float(estimate_noise(strokes[None])) > 10 / 255
    assert float(largest_noise(torch.ones(3, 32, 32))) == float("inf")
