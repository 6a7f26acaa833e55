"""Augmentation as published: gray as recorded, areas exact, one noise for all but the sharp picture."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tta_restore.data.datasets.augmentation import Augmentation, to_gray

GOLDEN = Path(__file__).parents[1] / "golden/ifan"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures():
    return torch.rand(4, 3, 30, 44, generator=generator())


def test_gray_as_recorded():
    recorded = load_file(GOLDEN / "gray.safetensors")
    gray = to_gray(recorded["input"].permute(2, 0, 1)).expand(3, -1, -1)
    torch.testing.assert_close(gray, recorded["output"].permute(2, 0, 1), atol=1e-12, rtol=0)


def test_a_plain_crop_is_a_part_at_one_place(pictures):
    plain = Augmentation(noise_prob=0, gray_prob=0, scale_prob=0)
    seen = set()
    for seed in range(60):
        crop = plain(pictures, 28, generator(seed))
        windows = pictures.unfold(2, 28, 1).unfold(3, 28, 1)
        places = (windows == crop[:, :, None, None]).flatten(4).all(-1).all(1).all(0).nonzero()
        assert len(places) == 1
        seen.add(tuple(places[0].tolist()))
    assert {row for row, _ in seen} == {0, 1, 2}  # also the last one
    assert {0, 16} <= {column for _, column in seen}


def test_smaller_scales_fit_the_crop(pictures):
    scaled = Augmentation(noise_prob=0, gray_prob=0, scale_prob=1, min_scale=1e-3)  # only the crop limits it
    for seed in range(20):
        assert scaled(pictures, 29, generator(seed)).shape == (4, 3, 29, 29)
    constant = torch.full((2, 3, 40, 40), 0.3)
    torch.testing.assert_close(scaled(constant, 16, generator(3)), torch.full((2, 3, 16, 16), 0.3))
    busy = torch.rand(1, 3, 200, 200, generator=generator())
    smooth = [scaled(busy, 10, generator(seed)).std() / busy.std() for seed in range(20)]
    assert min(smooth) < 0.4  # averaged
    assert max(smooth) > 0.5


@pytest.mark.parametrize("factor", [0.5, 0.75, 0.7])
def test_reduction_is_by_area(factor):
    """A finer grid averaged by blocks is the same, where the factor allows one."""
    from tta_restore.data.datasets.augmentation import _Window

    length, size = 40, int(40 * factor)
    window = _Window.random(length, factor, size, generator())
    assert (window.start, window.stop) == (0, length)
    signal = torch.rand(length, generator=generator())
    fine = signal.repeat_interleave(size)  # length * size samples
    expected = F.avg_pool1d(fine[None, None], length)[0, 0]
    torch.testing.assert_close(window.weights @ signal, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(window.weights.sum(1), torch.ones(size))
    part = _Window.random(length, factor, 7, generator(5))
    first = next(i for i in range(size) if torch.allclose(part.weights @ signal[part.start : part.stop],
                                                          expected[i : i + 7], atol=1e-6))  # fmt: skip
    assert 0 <= first <= size - 7


def test_noise_is_one_for_all_but_the_sharp_picture(pictures):
    alone = Augmentation(noise_prob=1, gray_prob=0, scale_prob=0, noise_std=(0.02, 0.02))
    flat = torch.full((4, 3, 40, 40), 0.5)
    crop = alone(flat, 40, generator())
    assert torch.equal(crop[1], flat[1])
    assert torch.equal(crop[0], crop[2])
    assert torch.equal(crop[0], crop[3])
    assert (crop[0] - 0.5).std().item() == pytest.approx(0.02, rel=0.1)
    assert Augmentation(noise_prob=1, noise_std=(5.0, 5.0))(flat, 40, generator()).amin() >= 0


def test_probabilities(pictures):
    share = sum(
        bool((crop[:, 0] == crop[:, 1]).all())
        for crop in (Augmentation(noise_prob=0, scale_prob=0)(pictures, 8, generator(seed)) for seed in range(200))
    )
    assert 40 <= share <= 80  # gray: 0.3 of 200
    crop = Augmentation(noise_prob=0, gray_prob=0, scale_prob=0, flips=True)
    assert len({crop(pictures[..., :8, :8], 8, generator(seed)).numpy().tobytes() for seed in range(60)}) == 8


def test_bad_arguments(pictures):
    with pytest.raises(ValueError, match="noise_prob to be a number in .0, 1., got 2"):
        Augmentation(noise_prob=2)
    with pytest.raises(ValueError, match="min_scale to be a number in"):
        Augmentation(min_scale=0)
    with pytest.raises(ValueError, match="noise_std"):
        Augmentation(noise_std=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"H and W >= 64, got \(4, 3, 30, 44\)"):
        Augmentation()(pictures, 64, generator())
