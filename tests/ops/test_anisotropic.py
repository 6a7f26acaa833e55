"""The anisotropic Gaussian blur against every kernel written out, and what every op keeps."""

import math

import pytest
import torch
from _base import Bad, OpTests, Sample, gradients, needs_extension, random
from _compare import assert_agrees, assert_vmap_agrees
from torch.nn import functional as F

import tta_restore
from tta_restore import ops


def literal(image, sigma, theta, *, kernel_size=15, padding_mode="reflect"):
    """Kernels tap by tap from rotated offsets, then the sum over an unfolded frame."""
    m = kernel_size // 2
    steps = torch.arange(-m, m + 1, dtype=image.dtype)
    dy, dx = steps.repeat_interleave(kernel_size), steps.repeat(kernel_size)
    dy, dx = dy.view(1, -1, 1, 1), dx.view(1, -1, 1, 1)
    u = dx * theta.cos() + dy * theta.sin()
    v = dy * theta.cos() - dx * theta.sin()
    kernels = (-((u / sigma[:, :1]) ** 2 + (v / sigma[:, 1:]) ** 2) / 2).softmax(1)
    padded = F.pad(image, (m,) * 4, "constant" if padding_mode == "zeros" else padding_mode)
    b, c, h, w = image.shape
    views = F.unfold(padded, kernel_size).view(b, c, kernel_size**2, h, w)
    return (views * kernels[:, None]).sum(2)


def draw(b, c, h, w, *, generator):
    return (
        random(b, c, h, w, generator=generator),
        random(b, 2, h, w, generator=generator, low=0.8, high=3),
        random(b, 1, h, w, generator=generator, low=-4, high=4),
    )


class TestAnisotropicReblur(OpTests):
    op = staticmethod(ops.anisotropic_reblur)

    def reference(self, *tensors, **options):
        return literal(*tensors, **options)

    def samples(self, generator):
        return [
            Sample(draw(1, 2, 2, 3, generator=generator), {"kernel_size": 3}),
            Sample(draw(1, 3, 9, 20, generator=generator), {"kernel_size": 7}),
            Sample(draw(2, 1, 4, 3, generator=generator), {"kernel_size": 5, "padding_mode": "zeros"}),
            Sample(draw(1, 2, 7, 8, generator=generator), {"kernel_size": 7, "padding_mode": "circular"}),
            Sample(draw(1, 1, 2, 2, generator=generator), {"kernel_size": 9, "padding_mode": "replicate"}),
            Sample(draw(1, 1, 2, 2, generator=generator), {"kernel_size": 1}),
        ]

    def bad(self):
        image, sigma, theta = torch.rand(2, 3, 9, 8), torch.rand(2, 2, 9, 8), torch.rand(2, 1, 9, 8)
        return [
            Bad((image[0], sigma, theta), ValueError, r"image of shape \(B, C, H, W\), got \(3, 9, 8\)"),
            Bad((image, sigma[:, :1], theta), ValueError, r"sigma of shape \(B, 2, H, W\) = \(2, 2, 9, 8\), got"),
            Bad((image, sigma, theta[:, 0]), ValueError, r"theta of shape \(B, 1, H, W\) = \(2, 1, 9, 8\), got"),
            Bad((image, sigma, theta), ValueError, "kernel_size to be an odd .* got 4", {"kernel_size": 4}),
            Bad((image, sigma, theta), TypeError, "kernel_size to be an odd", {"kernel_size": 3.0}),
            Bad((image, sigma, theta), ValueError, "at least 9 for padding_mode 'reflect'", {"kernel_size": 17}),
            Bad((image, sigma, theta), ValueError, "padding_mode to be one of", {"padding_mode": "valid"}),
            Bad((image, sigma.double(), theta), TypeError, "one dtype"),
            Bad((image, sigma, theta.to("meta")), ValueError, "one device"),
            Bad((image.byte(), sigma, theta), TypeError, "divide by 255"),
        ]


def test_the_default_window(generator):
    leaves = [t.requires_grad_() for t in draw(1, 2, 9, 20, generator=generator)]
    results = [function(*leaves) for function in (ops.anisotropic_reblur, literal)]
    assert_agrees(*results)
    weights = random(1, 2, 9, 20, generator=generator)
    found, expected = (torch.autograd.grad(out, leaves, weights) for out in results)
    for got, want in zip(found, expected, strict=True):
        assert_agrees(got, want, what="gradient")


@needs_extension
def test_wide_frames_on_several_threads(generator):
    """Rows of several tiles, and bands of rows that each belong to a thread: the same bits on one."""
    tensors = draw(1, 5, 41, 150, generator=generator)
    weights = random(1, 5, 41, 150, generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(gradients(lambda *t: ops.anisotropic_reblur(*t, kernel_size=3), Sample(tensors), weights))
    finally:
        torch.set_num_threads(before)
    (out, found), (again, found_again) = results
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(found, found_again, strict=True))
    expected, wanted = gradients(lambda *t: literal(*t, kernel_size=3), Sample(tensors), weights)
    for got, want in zip((out, *found), (expected, *wanted), strict=True):
        assert_agrees(got, want)


@needs_extension
def test_float32_gradients_are_those_of_float64(generator):
    """Gradients in widths and angles are differences of sums over taps, which float32 alone would round too much."""
    tensors = tuple(t.float() for t in draw(1, 1, 16, 16, generator=generator))
    options = {"kernel_size": 9, "padding_mode": "replicate"}

    def worst(backend):
        with tta_restore.backend(backend):
            found = gradients(lambda *t: ops.anisotropic_reblur(*t, **options), Sample(tensors))[1]
        return max(((a - b).norm() / b.norm()).item() for a, b in zip(found[1:], exact[1:], strict=True))

    doubles = Sample(tuple(t.double() for t in tensors))
    exact = gradients(lambda *t: ops.anisotropic_reblur(*t, **options), doubles)[1]
    assert worst("cpu") < worst("reference") / 2


def test_no_width_is_the_identity(generator):
    image, _, theta = (t.float() for t in draw(1, 3, 9, 9, generator=generator))
    sigma = torch.zeros(1, 2, 9, 9, requires_grad=True)
    out = ops.anisotropic_reblur(image, sigma, theta)
    assert torch.equal(out, image)
    (gradient,) = torch.autograd.grad(out.sum(), sigma)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("theta", "length"), [(0.0, (0, 3)), (math.pi / 2, (3, 0)), (math.pi / 4, (3, 3))])
def test_the_axis_points_where_theta_says(theta, length):
    """A needle at an angle: mass at (dy, dx) along the axis, none across it."""
    image = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    image[..., 10, 10] = 1
    sigma = torch.tensor([3.0, 0.3], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 21, 21)
    out = ops.anisotropic_reblur(image, sigma, torch.full((1, 1, 21, 21), theta, dtype=torch.float64))[0, 0]
    dy, dx = length
    assert out[10 + dy, 10 + dx] > 0.03
    assert out[10 + dx, 10 - dy] < 1e-6  # a quarter turn further


def test_equal_widths_do_not_depend_on_the_angle(generator):
    image, sigma, theta = draw(1, 2, 12, 12, generator=generator)
    sigma = sigma[:, :1].expand(-1, 2, -1, -1)
    assert_agrees(ops.anisotropic_reblur(image, sigma, theta), ops.anisotropic_reblur(image, sigma, 0 * theta))


def test_a_constant_stays(generator):
    _, sigma, theta = draw(1, 1, 12, 12, generator=generator)
    ones = torch.ones(1, 1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(ops.anisotropic_reblur(ones, sigma, theta), ones)
    assert (ops.anisotropic_reblur(ones, sigma, theta, padding_mode="zeros")[..., 0, 0] < 0.9).all()


def test_a_nan_width_stays_at_its_pixel(generator):
    image, sigma, theta = draw(1, 2, 9, 9, generator=generator)
    sigma[0, 1, 4, 5] = math.nan
    expected = torch.zeros(1, 2, 9, 9, dtype=torch.bool)
    expected[..., 4, 5] = True
    assert torch.equal(ops.anisotropic_reblur(image, sigma, theta, kernel_size=5).isnan(), expected)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, 1, 0), (2, None, None)])
def test_vmap(in_dims, generator):
    made = [draw(2, 2, 5, 6, generator=generator) for _ in range(3)]
    assert_vmap_agrees(lambda *tensors: ops.anisotropic_reblur(*tensors, kernel_size=3), in_dims, made)
