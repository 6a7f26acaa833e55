"""The lens simulator against closed forms: radii, sums, light, depth, seeds."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.data.synthetic import dead_leaves, defocus
from tta_restore.degradations import lens as optics

FAMILIES = (defocus.SOURCE, *defocus.DEV, *defocus.TEST)


@pytest.mark.parametrize("lens", FAMILIES, ids=lambda lens: lens.family)
def test_kernels_sum_to_one_and_grow_with_the_radius(lens):
    kernels = optics.rasterize(lens.pupil, torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(3))
    assert (kernels >= 0).all()
    axis = torch.arange(17.0) - 8
    spread = (kernels * (axis[:, None] ** 2 + axis[None] ** 2)).sum((1, 2)).sqrt()
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("lens", FAMILIES, ids=lambda lens: lens.family)
def test_rms_radius_is_the_spread_of_the_kernel(lens):
    axis = torch.arange(41.0) - 20
    kernel = optics.rasterize(lens.pupil, torch.tensor([5.0]), size=41)[0]
    spread = float((kernel * (axis[:, None] ** 2 + axis[None] ** 2)).sum().sqrt())
    assert spread == pytest.approx(5 * optics.rms_radius(lens.pupil), rel=0.03)


def test_disk_has_the_area_of_a_disk():
    kernel = optics.rasterize(optics.disk, torch.tensor([5.0]))[0]
    assert 1 / float(kernel.max()) == pytest.approx(math.pi * 25, rel=0.02)
    assert optics.rms_radius(optics.disk) == pytest.approx(math.sqrt(0.5), rel=0.01)


def test_ring_has_no_center_and_polygon_its_symmetry():
    ring = optics.rasterize(optics.ring(), torch.tensor([6.0]))[0]
    assert ring[8, 8] == 0
    square = optics.rasterize(optics.polygon(4, 0.37), torch.tensor([6.0]))[0]
    torch.testing.assert_close(square, square.rot90(1), atol=1e-3, rtol=0)
    triangle = optics.rasterize(optics.polygon(3, 0.37), torch.tensor([6.0]))[0]
    assert (triangle - triangle.rot90(2)).abs().max() > 1e-3


def test_vanishing_radius_is_no_blur():
    for lens in FAMILIES:
        kernel = optics.rasterize(lens.pupil, torch.tensor([0.0]))[0]
        assert kernel[8, 8] == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
@example(1664)
def test_random_lenses_are_centerd_and_seeded(seed):
    first = optics.random_lens(torch.Generator().manual_seed(seed))
    second = optics.random_lens(torch.Generator().manual_seed(seed))
    assert first.radius == second.radius
    assert first.radius[0] <= first.radius[1]
    kernel = optics.rasterize(first.pupil, torch.tensor([4.0]), size=41)[0]
    torch.testing.assert_close(kernel, optics.rasterize(second.pupil, torch.tensor([4.0]), size=41)[0])
    # finely: three samples per pixel move the hard edge of a thin ring by up to a sixth of a pixel
    kernel = optics.rasterize(first.pupil, torch.tensor([4.0]), size=41, supersample=9)[0]
    axis = torch.arange(41.0) - 20
    assert abs(float((kernel * axis[None]).sum())) < 0.1
    assert abs(float((kernel * axis[:, None]).sum())) < 0.1


def test_gamma_round_trip():
    x = torch.linspace(0, 1, 256)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(x)), x, atol=1e-6, rtol=0)
    assert float(srgb_to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-4)


def test_mix_blur_is_the_plain_convolution():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 30, 33, generator=generator)
    kernels = torch.rand(2, 2, 5, 5, generator=generator)
    weights = torch.rand(2, 2, 26, 29, generator=generator)
    out = optics.blur_with_mixture(image, kernels, weights)
    expected = torch.zeros(2, 3, 26, 29)
    for b in range(2):
        for level in range(2):
            taps = kernels[b, level].flip(0, 1)[None, None].expand(3, 1, 5, 5)  # conv2d correlates, light convolves
            expected[b] += torch.nn.functional.conv2d(image[b : b + 1], taps, groups=3)[0] * weights[b, level]
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_level_weights_interpolate():
    radius, levels = torch.tensor([[[0.0, 1.5, 9.0]]]), torch.tensor([[1.0, 2.0, 3.0]])
    weights = optics.interpolation_weights(radius, levels)[0, :, 0]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.5, 0], [0, 0.5, 0], [0, 0, 1]]))


def test_render_of_a_flat_picture_is_flat():
    flat = torch.full((1, 3, 48, 48), 0.4)
    blurry, radius, sharp = defocus.render(flat, [defocus.SOURCE], torch.Generator().manual_seed(0), noise_std=0.0)
    assert blurry.shape == sharp.shape == (1, 3, 32, 32)
    assert radius.shape == (1, 32, 32)
    assert (blurry - 0.4).abs().max() <= 0.5 / 255 + 1e-6
    assert defocus.SOURCE.radius[0] <= radius.min()
    assert radius.max() <= defocus.SOURCE.radius[1]


def test_render_wants_one_lens_per_picture():
    with pytest.raises(ValueError, match=r"expected sharp \(B, 3, H, W\) and B lenses"):
        defocus.render(torch.rand(2, 3, 48, 48), [defocus.SOURCE], torch.Generator())


def test_stream_is_seeded_and_says_what_it_shows():
    frames = defocus.defocus_stream(defocus.TEST[:2], frames_per_lens=2, size=64, seed=3)
    again = defocus.defocus_stream(defocus.TEST[:2], frames_per_lens=2, size=64, seed=3)
    other = defocus.defocus_stream(defocus.TEST[:2], frames_per_lens=2, size=64, seed=4)
    assert [f.family for f in frames] == ["gaussian"] * 2 + ["ring"] * 2
    assert [f.position for f in frames] == [0, 1, 0, 1]
    assert all(
        torch.equal(a.blurry, b.blurry) and torch.equal(a.sharp, b.sharp) for a, b in zip(frames, again, strict=True)
    )
    assert not torch.equal(frames[0].blurry, other[0].blurry)
    assert frames[0].kernels.shape == (4, 4, 17, 17)


def test_stream_refuses_photographs_smaller_than_a_crop():
    with pytest.raises(ValueError, match="smaller than the crop"):
        defocus.defocus_stream(defocus.TEST[:1], ("coins",), size=400)


def test_dead_leaves_fill_the_picture_and_are_seeded():
    generator = torch.Generator().manual_seed(1)
    stack = dead_leaves.bank(3, 64, generator)
    assert stack.shape == (3, 3, 64, 64)
    assert stack.min() >= 0
    assert stack.max() <= 1
    assert (stack.std((1, 2, 3)) > 0.03).all()
    assert torch.equal(stack, dead_leaves.bank(3, 64, torch.Generator().manual_seed(1)))


def test_dead_leaves_take_colors_from_a_palette():
    red = torch.tensor([[0.8, 0.1, 0.1]])
    picture = dead_leaves.tile(48, torch.Generator().manual_seed(0), palette=red)
    assert picture[0].mean() > 3 * picture[1].mean()


def test_lenses_with_tails_have_no_edge():
    generator = torch.Generator().manual_seed(3)
    drawn = [optics.random_lens(generator, tails=1.0) for _ in range(8)]
    distance = torch.linspace(0, 2, 41)
    for lens in drawn:
        transmission = lens.pupil(distance, torch.zeros(41))
        assert (transmission > 0).all()
        assert (transmission.diff() < 0).all()
        assert 0.3 <= lens.radius[0] <= lens.radius[1] <= 6.5
    edged = [optics.random_lens(generator) for _ in range(8)]
    assert all(float(lens.pupil(torch.tensor([2.9]), torch.zeros(1))) < 1e-6 for lens in edged)


def test_the_slope_is_the_derivative_of_the_curve():
    from tta_restore._core.color import srgb_slope

    x = torch.tensor([0.0, 0.02, 0.1, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(srgb_to_linear(x).sum(), x)
    torch.testing.assert_close(srgb_slope(x.detach()), slope)
