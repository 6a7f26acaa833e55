"""Blur: light is kept, kernels are those of the lens, maps vary it."""

import math

import numpy as np
import pytest
import torch
from _degradation_base import DegradationTests, seeded

from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.degradations import Blur, BlurParameters
from tta_restore.degradations import lens as optics
from tta_restore.degradations._convolve import convolve, mirror


class TestBlur(DegradationTests):
    def degradations(self):
        psf = torch.zeros(2, 5, 5)
        psf[0, 2, 2], psf[1, 1, 1:4] = 1.0, 1 / 3
        return [
            Blur(),
            Blur(varying_prob=0.5, radius=(0.2, 3.0)),
            Blur(psf=psf),
            Blur(lens=(optics.Lens("coma", optics.polygon(3), (1, 1)), "ring"), linear=False),
        ]

    def bad(self):
        return [
            ({"radius": (-1, 2)}, ValueError, "Blur: expected radius"),
            ({"lens": "fisheye"}, ValueError, "Blur: expected lens to be one of"),
            ({"psf": torch.ones(4, 4)}, ValueError, r"Blur: expected psf \(M, K, K\) with odd K"),
            ({"lens": torch.ones(2, 3, 4)}, ValueError, r"Blur: expected lens \(M, A, A\)"),
            ({"varying_prob": 2}, ValueError, "Blur: expected varying_prob"),
        ]


def reference(image, kernel):
    """Plain loops over the taps of a convolution, with mirrored borders."""
    margin = kernel.shape[-1] // 2
    padded = torch.nn.functional.pad(image[None], (margin,) * 4, mode="reflect")[0]
    out = torch.zeros_like(image)
    for dy in range(kernel.shape[0]):
        for dx in range(kernel.shape[1]):
            # output(y) = sum of kernel(d) input(y - d)
            y, x = 2 * margin - dy, 2 * margin - dx
            out += kernel[dy, dx] * padded[:, y : y + image.shape[1], x : x + image.shape[2]]
    return out


@pytest.mark.parametrize("size", [5, 13, 15])
def test_both_ways_are_the_convolution(size):
    """Directly below 15 taps, by spectra above."""
    x = torch.rand(2, 3, 24, 20, generator=seeded(), dtype=torch.float64)
    kernels = torch.rand(2, 2, size, size, generator=seeded(1), dtype=torch.float64)
    weights = torch.rand(2, 2, 24, 20, generator=seeded(2), dtype=torch.float64)
    out = convolve(x, kernels, weights)
    for b in range(2):
        expected = sum(reference(x[b], kernels[b, r]) * weights[b, r] for r in range(2))
        torch.testing.assert_close(out[b], expected)


def test_gradients_flow_through_both_ways():
    for size in (3, 15):
        x = torch.rand(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
        kernels = torch.rand(1, 1, size, size, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda value, k=kernels: convolve(value, k), (x,), fast_mode=True)


@pytest.mark.parametrize("lens", ["disk", "gaussian", "ring", "exponential", "triangle", "random"])
def test_kernels_keep_the_light_and_have_the_radius(lens):
    parameters = Blur(radius=(1.5, 5.0), lens=lens).sample(seeded(), 12)
    torch.testing.assert_close(parameters.kernels.sum((-2, -1)), torch.ones(12, 1))
    axis = torch.arange(parameters.kernels.shape[-1]) - parameters.kernels.shape[-1] // 2
    spread = (parameters.kernels * (axis[:, None] ** 2 + axis**2)).sum((-2, -1)).sqrt()
    torch.testing.assert_close(spread, parameters.radius, rtol=0.12, atol=0)


def test_flat_images_stay_flat_and_the_mean_of_light_is_kept():
    blur = Blur(radius=2.0, lens="disk")
    flat = torch.full((1, 3, 40, 40), 0.3)
    torch.testing.assert_close(blur.apply(flat, blur.sample(seeded(), 1)), flat)
    spot = torch.zeros(1, 1, 61, 61)
    spot[..., 30, 30] = 1.0
    light = srgb_to_linear(blur.apply(spot, blur.sample(seeded(), 1)))
    assert float(light.sum()) == pytest.approx(1.0, rel=1e-3)
    assert float(light.max()) < 0.1


def test_light_is_blurred_and_not_its_stored_values():
    stripes = (torch.arange(64) % 2.0).expand(1, 1, 64, 64).contiguous()
    psf = torch.full((1, 5, 4), 0.0)
    psf = torch.zeros(5, 5)
    psf[2, 1:5] = 0.25
    out = Blur(psf=psf).apply(stripes, Blur(psf=psf).sample(seeded(), 1))
    expected = float(linear_to_srgb(torch.tensor(0.5)))
    torch.testing.assert_close(out[..., 4:-4], torch.full_like(out[..., 4:-4], expected), atol=1e-5, rtol=0)
    stored = Blur(psf=psf, linear=False)
    out = stored.apply(stripes, stored.sample(seeded(), 1))
    torch.testing.assert_close(out[..., 4:-4], torch.full_like(out[..., 4:-4], 0.5), atol=1e-5, rtol=0)


def test_asymmetric_kernels_are_not_mirrored():
    psf = torch.zeros(5, 5)
    psf[2, 4] = 1.0  # light lands two pixels to the right
    spot = torch.zeros(1, 1, 15, 15)
    spot[..., 7, 7] = 1.0
    out = Blur(psf=psf).apply(spot, Blur(psf=psf).sample(seeded(), 1))
    assert out[0, 0, 7, 9] == pytest.approx(1.0)


def test_a_map_selects_the_radius():
    kernels = torch.zeros(1, 2, 5, 5)
    kernels[0, 0, 2, 2], kernels[0, 1] = 1.0, 1 / 25
    position = torch.tensor([[[0.0, 1.0]]])
    image = torch.rand(1, 3, 32, 32, generator=seeded())
    out = Blur().apply(image, BlurParameters(kernels, torch.tensor([[0.0, 2.0]]), position))
    torch.testing.assert_close(out[..., 0], image[..., 0], atol=1e-5, rtol=0)
    assert out[..., -1].std() < 0.5 * image[..., -1].std()


def test_radii_are_drawn_over_the_range_and_vary_as_often_as_asked():
    drawn = Blur(radius=(0.3, 4.0), lens="gaussian", varying_prob=0.3).sample(seeded(), 400)
    assert 0.3 <= drawn.radius.min() < 0.35
    assert 3.6 < drawn.radius.max() <= 4.0
    varies = (drawn.radius[:, 0] != drawn.radius[:, -1]).float().mean()
    assert float(varies) == pytest.approx(0.3, abs=0.07)


def test_distances_see_size_and_shape():
    kernels = {name: Blur(radius=2.0, lens=name).sample(seeded(), 1) for name in ("disk", "gaussian", "ellipse")} | {
        "large": Blur(radius=2.4, lens="disk").sample(seeded(), 1)
    }
    blur = Blur()
    assert float(blur.distance(kernels["disk"], kernels["large"])) == pytest.approx(0.85, abs=0.2)
    assert float(blur.distance(kernels["disk"], kernels["gaussian"])) < 0.5
    assert float(blur.distance(kernels["disk"], kernels["ellipse"])) > 1
    # radii that cannot be seen are near each other
    small = [Blur(radius=value, lens="gaussian").sample(seeded(), 1) for value in (0.05, 0.15)]
    assert float(blur.distance(*small)) < 1.5


def test_images_smaller_than_the_kernel_are_mirrored_again():
    """As numpy.pad mirrors: the mean of a row that is mirrored for ever is that of the row."""
    row = torch.tensor([0.0, 0.3, 0.9])
    expected = np.pad(row.numpy(), 7, mode="reflect")
    assert mirror(row.view(1, 1, 1, 3), 7)[0, 0, 4].tolist() == expected.tolist()
    blur = Blur(radius=8.0)
    tiny = torch.rand(2, 3, 1, 5, generator=seeded())
    assert blur.apply(tiny, blur.sample(seeded(), 2)).isfinite().all()


def test_turned_pupils_keep_their_shape():
    drawn = Blur(radius=3.0, lens="triangle").sample(seeded(), 8).kernels[:, 0]
    assert not torch.equal(drawn[0], drawn[1])
    sharpness = drawn.square().sum((1, 2))
    assert float(sharpness.std() / sharpness.mean()) < 0.05
    assert math.isclose(float(drawn.sum()), 8.0, rel_tol=1e-4)
