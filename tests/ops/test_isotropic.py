"""Isotropic kernels and reblurring: the recorded tensors, the literal sum over all taps, and what every op keeps."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from _base import Bad, OpTests, Sample, needs_extension, random
from _compare import assert_agrees, assert_same_bits_for_threads, assert_vmap_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tta_restore
from tta_restore import ops

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"
SIZES = (3, 5, 7, 9, 11, 13, 15)


def signed(*shape, generator):
    """Seeds of either sign, off the kink at zero."""
    magnitude = random(*shape, generator=generator, low=0.2, high=2)
    return magnitude * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)


def literal_kernels(seeds, kernel_size):
    """Tap by tap, as the paper has it."""
    m = kernel_size // 2
    rows = []
    for i in range(kernel_size):
        for j in range(kernel_size):
            r = math.hypot(i - m, j - m)
            low, f = int(r), r - int(r)
            if r > m:
                rows.append(torch.zeros_like(seeds[:, 0]))
            else:
                rows.append((1 - f) * seeds[:, low].abs() + (f * seeds[:, low + 1].abs() if f else 0))
    return torch.stack(rows, 1).softmax(1)


def literal_reblur(image, seeds, weights, *, kernel_sizes=SIZES, padding_mode="zeros"):
    out, first = weights[:, :1] * image, 0
    for n, size in enumerate(kernel_sizes, 1):
        kernels = literal_kernels(seeds[:, first : first + (size + 1) // 2], size)
        first += (size + 1) // 2
        b, c, h, w = image.shape
        mode = "constant" if padding_mode == "zeros" else padding_mode
        padded = torch.nn.functional.pad(image, (size // 2,) * 4, mode=mode)
        views = torch.nn.functional.unfold(padded, size).view(b, c, size * size, h, w)
        out = out + weights[:, n, None] * (views * kernels[:, None]).sum(2)
    return out


def draw(b, c, h, w, sizes, *, generator):
    seeds = signed(b, sum((k + 1) // 2 for k in sizes), h, w, generator=generator)
    weights = random(b, 1 + len(sizes), h, w, generator=generator).softmax(1)
    return random(b, c, h, w, generator=generator), seeds, weights


def ramp(kernels):
    """Weights that tell the taps apart, (K * K, 1, 1)."""
    count = kernels.shape[1]
    return torch.linspace(0, 1, count, dtype=kernels.dtype, device=kernels.device)[:, None, None].square()


class TestIsotropicKernels(OpTests):
    op = staticmethod(ops.isotropic_kernels)
    jvp = "right"

    # A kernel sums to 1 whatever the seeds are: taps get weights of their own, so that sums have a gradient.
    def call(self, seeds, *, kernel_size):
        kernels = ops.isotropic_kernels(seeds, kernel_size)
        return kernels * ramp(kernels)

    def reference(self, seeds, *, kernel_size):
        kernels = literal_kernels(seeds, kernel_size)
        return kernels * ramp(kernels)

    def samples(self, generator):
        return [
            Sample((signed(1, (k + 1) // 2, 2, 3, generator=generator),), {"kernel_size": k}) for k in (5, 1, 3, 11)
        ]

    def bad(self):
        seeds = torch.rand(1, 3, 2, 2)
        return [
            Bad((seeds,), ValueError, "kernel_size to be an odd integer >= 1, got 4", {"kernel_size": 4}),
            Bad((seeds,), TypeError, "kernel_size to be an odd integer", {"kernel_size": 5.0}),
            Bad((seeds,), ValueError, r"seeds of shape \(B, .* = \(any, 4, any, any\)", {"kernel_size": 7}),
            Bad((seeds.int(),), TypeError, "floating dtype", {"kernel_size": 5}),
        ]  # fmt: skip


class TestIsotropicReblur(OpTests):
    op = staticmethod(ops.isotropic_reblur)

    def reference(self, *tensors, **options):
        return literal_reblur(*tensors, **options)

    def samples(self, generator):
        small, odd, one = (3, 5), (7, 3, 3, 1), (9,)
        return [
            Sample(draw(1, 2, 2, 3, small, generator=generator), {"kernel_sizes": small}),
            Sample(draw(1, 3, 9, 70, SIZES, generator=generator)),
            Sample(draw(1, 1, 5, 3, odd, generator=generator), {"kernel_sizes": odd}),
            Sample(draw(2, 4, 40, 3, one, generator=generator), {"kernel_sizes": one}),
            *(
                Sample(draw(1, 2, 7, 9, odd, generator=generator), {"kernel_sizes": odd, "padding_mode": mode})
                for mode in ("reflect", "replicate", "circular")
            ),
        ]

    def bad(self):
        image, seeds, weights = torch.rand(1, 3, 4, 6), torch.rand(1, 35, 4, 6), torch.rand(1, 8, 4, 6)
        return [
            Bad((image[0], seeds, weights), ValueError, r"image of shape \(B, C, H, W\), got \(3, 4, 6\)"),
            Bad((image, seeds[:, 1:], weights), ValueError, r"seeds of shape .* = \(1, 35, 4, 6\), got"),
            Bad((image, seeds, weights[:, 1:]), ValueError, r"weights of shape \(B, 1\+N, H, W\) = \(1, 8, 4, 6\)"),
            Bad((image, seeds, weights.double()), TypeError, "one dtype"),
            Bad((image, seeds, weights.to("meta")), ValueError, "one device"),
            Bad((image, seeds, weights), TypeError, "sequence of odd integers, got 3", {"kernel_sizes": 3}),
            Bad((image, seeds, weights), TypeError, "sequence of odd integers, got", {"kernel_sizes": ()}),
            Bad((image, seeds, weights), ValueError, "every kernel size to be an odd .* got 4", {"kernel_sizes": (4,)}),
            Bad((image.byte(), seeds, weights), TypeError, "divide by 255"),
            Bad((image, seeds, weights), ValueError, "padding_mode to be one of", {"padding_mode": "valid"}),
            Bad((image, seeds, weights), ValueError, "H and W at least 8", {"padding_mode": "reflect"}),
        ]


@pytest.mark.parametrize("size", SIZES)
def test_recorded_kernels(size):
    recorded = load_file(GOLDEN / "a_kernel_expand.safetensors")
    kernel = recorded[f"kernel_K{size}"]
    found = ops.isotropic_kernels(recorded[f"seeds_K{size}"], size)
    torch.testing.assert_close(found.unflatten(1, (size, size)), kernel, atol=2e-7, rtol=2e-6)
    torch.testing.assert_close(found[0, :, 0, 0], torch.full((size * size,), 1 / size**2))  # zero seeds make a box


@pytest.mark.parametrize(
    ("case", "dtype", "backend"),
    [
        *(
            pytest.param(case, dtype, "cpu", marks=needs_extension)
            for case, dtype in product(("b1_17x23", "b1_5x4", "b2_16x16"), (torch.float32, torch.float64))
        ),
        ("b1_5x4", torch.float64, "reference"),  # slower; the other tests compare with it
    ],
)
def test_recorded_branches_and_gradients(case, dtype, backend):
    """Every branch alone, and the gradients of the recorded loss over all branches."""
    recorded = load_file(GOLDEN / f"b_kernelconv_{case}.safetensors")
    suffix, limit = ("_f64", 1e-6) if dtype == torch.float64 else ("", 5e-6)
    image, core = (recorded[name].to(dtype).requires_grad_() for name in ("img", "core"))
    loss = 0
    with tta_restore.backend(backend):
        for n in range(8):
            weights = torch.zeros(image.shape[0], 8, *image.shape[2:], dtype=dtype)
            weights[:, n] = 1
            out = ops.isotropic_reblur(image, core, weights)
            torch.testing.assert_close(out, recorded[f"out{n}{suffix}"], atol=limit, rtol=0)
            loss = loss + (out * recorded[f"upstream{n}"]).sum()
        found = torch.autograd.grad(loss, (image, core))
    for got, name in zip(found, ("grad_img", "grad_core"), strict=True):
        torch.testing.assert_close(got, recorded[f"{name}{suffix}"], atol=limit, rtol=0)
    if not core[..., 0, 0].any():
        assert not found[1][..., 0, 0].any()  # |s| has derivative 0 at 0


def test_a_corner_weighs_as_logit_zero():
    """Zero before the softmax, not zero weight: a quarter of the taps of a 3 x 3 kernel and more of its mass."""
    kernel = ops.isotropic_kernels(torch.full((1, 2, 1, 1), 2.0), 3).view(3, 3)
    inside = math.exp(2)
    torch.testing.assert_close(kernel[0, 0].item(), 1 / (5 * inside + 4))
    assert kernel[0, 0] * 4 == pytest.approx(0.098, abs=5e-4)


def test_large_seeds_do_not_overflow():
    image, seeds, weights = torch.rand(1, 3, 20, 30), 3000 * torch.rand(1, 35, 20, 30), torch.rand(1, 8, 20, 30)
    leaves = [t.requires_grad_() for t in (image, seeds, weights)]
    out = ops.isotropic_reblur(*leaves)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), leaves))
    assert_agrees(out, literal_reblur(*(t.double() for t in leaves)))


def test_bad_values_stay_bad(generator):
    """A NaN or infinite seed makes its own pixel NaN and no other."""
    image, seeds, weights = (t.float() for t in draw(1, 3, 20, 30, SIZES, generator=generator))
    seeds[0, 3, 4, 5], seeds[0, 30, 10, 20] = math.nan, math.inf
    out = ops.isotropic_reblur(image, seeds, weights)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[..., 4, 5] = expected[..., 10, 20] = True
    assert torch.equal(out.isnan(), expected)


def test_the_sum_of_the_kernel_is_the_sum_of_the_weights(generator):
    _, seeds, weights = (t.float() for t in draw(1, 1, 40, 40, SIZES, generator=generator))
    out = ops.isotropic_reblur(torch.ones(1, 1, 40, 40), seeds, weights)
    torch.testing.assert_close(out[..., 7:-7, 7:-7], torch.ones(1, 1, 26, 26))
    assert (out[..., 0, 0] < 0.9).all()  # zeros outside: borders darken
    for mode in ("reflect", "replicate", "circular"):
        out = ops.isotropic_reblur(torch.ones(1, 1, 40, 40), seeds, weights, padding_mode=mode)
        torch.testing.assert_close(out, torch.ones(1, 1, 40, 40))


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(1, 70), st.integers(1, 70)),
    sizes=st.lists(st.sampled_from([1, 3, 5, 7, 9, 15, 17]), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    needs=st.sampled_from([(0, 1, 2), (0,), (1,), (2,)]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_sizes(shape, sizes, dtype, needs, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [t.to(dtype) for t in draw(*shape, sizes, generator=generator)]

    def derivatives(function, dtype):
        leaves = [t.detach().to(dtype).requires_grad_(i in needs) for i, t in enumerate(tensors)]
        out = function(*leaves, kernel_sizes=sizes)
        weights = torch.linspace(0.1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
        return out, *torch.autograd.grad(out, [leaves[i] for i in needs], weights.to(dtype))

    found = derivatives(ops.isotropic_reblur, dtype)
    with tta_restore.backend("reference"):
        expected = derivatives(ops.isotropic_reblur, torch.float64)
    for got, want in zip(found, expected, strict=True):
        scale = want.abs().max().item() if want.numel() else 1
        limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(got.double(), want, atol=limit * max(scale, 1e-6), rtol=0)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, 1, 0), (2, None, None)])
def test_vmap(in_dims, generator):
    made = [draw(2, 3, 5, 6, (3, 5), generator=generator) for _ in range(3)]
    assert_vmap_agrees(lambda *tensors: ops.isotropic_reblur(*tensors, kernel_sizes=(3, 5)), in_dims, made)


def test_export(generator):
    class Blur(torch.nn.Module):
        def forward(self, image, seeds, weights):
            return ops.isotropic_reblur(image, seeds, weights, kernel_sizes=(3, 5))

    tensors = draw(1, 3, 6, 7, (3, 5), generator=generator)
    program = torch.export.export(Blur(), tensors)
    assert_agrees(program.module()(*tensors), Blur()(*tensors))
    assert "isotropic_reblur" in str(program.graph)


@needs_extension
def test_threads_do_not_change_results(generator):
    image, seeds, weights = (t.float() for t in draw(1, 3, 100, 33, SIZES, generator=generator))

    def derivatives():
        leaves = [t.clone().requires_grad_() for t in (image, seeds, weights)]
        out = ops.isotropic_reblur(*leaves)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    assert_same_bits_for_threads(derivatives)
