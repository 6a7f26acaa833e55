"""Per-pixel convolution and upsampling against the sum over taps by unfold, and what every op keeps."""

import pytest
import torch
from _base import Bad, OpTests, Sample, needs_extension, random
from _compare import assert_agrees, assert_same_bits_for_threads, assert_vmap_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import tta_restore
from tta_restore import ops

MODES = ("zeros", "reflect", "replicate", "circular")


def pad(x, margin, mode):
    return F.pad(x, (margin,) * 4, "constant" if mode == "zeros" else mode) if margin else x


def normalized(taps, normalize):
    if normalize == "softmax":
        return taps.softmax(2)
    return taps / taps.sum(2, keepdim=True) if normalize == "sum" else taps


def unfolded_conv(
    x, kernels, *, kernel_size, groups=None, dilation=1, stride=1, padding_mode="replicate", normalize=None
):
    b, c = x.shape[:2]
    groups = c if groups is None else groups
    padded = pad(x, dilation * (kernel_size // 2), padding_mode)
    columns = F.unfold(padded, kernel_size, dilation=dilation, stride=stride)
    columns = columns.view(b, groups, c // groups, kernel_size**2, *kernels.shape[2:])
    taps = normalized(kernels.unflatten(1, (groups, kernel_size**2)), normalize)
    return (columns * taps[:, :, None]).sum(3).flatten(1, 2)


def unfolded_upsample(x, kernels, *, scale, kernel_size, groups=1, padding_mode="zeros", normalize="softmax"):
    b, c = x.shape[:2]
    groups = c if groups is None else groups
    columns = F.unfold(pad(x, kernel_size // 2, padding_mode), kernel_size)
    columns = columns.view(b, -1, *x.shape[2:]).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    columns = columns.view(b, groups, c // groups, kernel_size**2, *kernels.shape[2:])
    taps = normalized(kernels.unflatten(1, (groups, kernel_size**2)), normalize)
    return (columns * taps[:, :, None]).sum(3).flatten(1, 2)


def draw(b, c, h, w, size, groups, *, kernel_size, generator):
    taps = random(b, groups * kernel_size**2, *size, generator=generator, low=0.05)
    return random(b, c, h, w, generator=generator, low=-1), taps


class TestAdaptiveConv2d(OpTests):
    op = staticmethod(ops.adaptive_conv2d)

    def reference(self, *tensors, **options):
        return unfolded_conv(*tensors, **options)

    def samples(self, generator):
        def sample(shape, size, groups, **options):
            tensors = draw(*shape, size, shape[1] if groups is None else groups,
                           kernel_size=options["kernel_size"], generator=generator)  # fmt: skip
            return Sample(tensors, {"groups": groups, **options})

        return [
            sample((1, 2, 2, 3), (2, 3), None, kernel_size=3),
            sample((2, 3, 5, 70), (5, 70), None, kernel_size=5, padding_mode="reflect"),
            sample((1, 6, 40, 33), (40, 33), 1, kernel_size=3, normalize="softmax"),
            sample((2, 4, 9, 8), (5, 4), 2, kernel_size=3, stride=2, dilation=2, padding_mode="circular"),
            sample((1, 2, 12, 37), (12, 37), None, kernel_size=7, padding_mode="zeros", normalize="sum"),
            sample((1, 5, 3, 4), (1, 2), 5, kernel_size=9, stride=3, padding_mode="zeros"),
            sample((1, 7, 6, 18), (6, 18), 1, kernel_size=11, padding_mode="replicate"),
            sample((1, 2, 3, 3), (3, 3), 1, kernel_size=1),
        ]

    def bad(self):
        x, kernels, three = torch.rand(2, 4, 6, 7), torch.rand(2, 36, 6, 7), {"kernel_size": 3}
        return [
            Bad((x[0], kernels), ValueError, r"x of shape \(B, C, H, W\), got \(4, 6, 7\)", three),
            Bad((x[:, :, :0], kernels), ValueError, "C, H and W at least 1", three),
            Bad((x, kernels), ValueError, "kernel_size to be an odd integer >= 1, got 4", {"kernel_size": 4}),
            Bad((x, kernels), TypeError, "kernel_size to be an odd integer", {"kernel_size": 3.0}),
            Bad((x, kernels), ValueError, r"kernels of shape \(B, G.* = \(2, 9, 6, 7\)", {**three, "groups": 1}),
            Bad((x, kernels), ValueError, r"= \(2, 36, 3, 4\), got \(2, 36, 6, 7\)", {**three, "stride": 2}),
            Bad((x, kernels), ValueError, "groups to divide the C = 4 channels of x, got 3", {**three, "groups": 3}),
            Bad((x, kernels), ValueError, "dilation to be an integer >= 1", {**three, "dilation": 0}),
            Bad((x, kernels), TypeError, "stride to be an integer", {**three, "stride": 1.5}),
            Bad((x, kernels), ValueError, "padding_mode to be one of 'zeros'", {**three, "padding_mode": "mirror"}),
            Bad((x, kernels), ValueError, "H and W at least 9", {**three, "dilation": 8, "padding_mode": "reflect"}),
            Bad((x, kernels), ValueError, "normalize to be one of None", {**three, "normalize": "max"}),
            Bad((x, kernels.double()), TypeError, "one dtype", three),
            Bad((x, kernels.to("meta")), ValueError, "one device", three),
            Bad((x.byte(), kernels), TypeError, "divide by 255", three),
        ]  # fmt: skip


class TestAdaptiveUpsample(OpTests):
    op = staticmethod(ops.adaptive_upsample)

    def reference(self, *tensors, **options):
        return unfolded_upsample(*tensors, **options)

    def samples(self, generator):
        def sample(shape, groups, **options):
            size = options["scale"] * shape[2], options["scale"] * shape[3]
            tensors = draw(*shape, size, shape[1] if groups is None else groups,
                           kernel_size=options["kernel_size"], generator=generator)  # fmt: skip
            return Sample(tensors, {"groups": groups, **options})

        return [
            sample((1, 2, 2, 2), 1, scale=2, kernel_size=3),
            sample((2, 6, 5, 17), 2, scale=3, kernel_size=5, padding_mode="reflect"),
            sample((1, 3, 4, 5), None, scale=4, kernel_size=3, normalize=None, padding_mode="circular"),
            sample((1, 5, 3, 4), 1, scale=1, kernel_size=7, normalize="sum", padding_mode="replicate"),
        ]

    def bad(self):
        x, kernels, options = torch.rand(2, 4, 3, 5), torch.rand(2, 9, 6, 10), {"scale": 2, "kernel_size": 3}
        return [
            Bad((x[0], kernels), ValueError, r"x of shape \(B, C, H, W\), got \(4, 3, 5\)", options),
            Bad(
                (x, kernels), ValueError, r"scale\*W\) = \(2, 9, 9, 15\), got \(2, 9, 6, 10\)", {**options, "scale": 3}
            ),
            Bad((x, kernels), ValueError, "scale to be an integer >= 1, got 0", {**options, "scale": 0}),
            Bad((x, kernels), TypeError, "scale to be an integer", {**options, "scale": 2.0}),
            Bad((x, kernels), ValueError, r"= \(2, 18, 6, 10\)", {**options, "groups": 2}),
            Bad((x, kernels), ValueError, "kernel_size to be an odd", {**options, "kernel_size": 2}),
            Bad((x, kernels), ValueError, "normalize to be one of", {**options, "normalize": True}),
        ]


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9, 11, 13]),
    groups=st.integers(1, 3),
    dilation=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding_mode=st.sampled_from(MODES),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    needs=st.sampled_from([(0, 1), (0,), (1,)]),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced"]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_options(
    shape, kernel_size, groups, dilation, stride, padding_mode, dtype, needs, layout, seed
):  # fmt: skip
    b, each, h, w = shape
    reach = dilation * (kernel_size // 2)
    h, w = max(h, reach + 1), max(w, reach + 1)
    generator = torch.Generator().manual_seed(seed)
    size = (h - 1) // stride + 1, (w - 1) // stride + 1
    tensors = draw(b, groups * each, h, w, size, groups, kernel_size=kernel_size, generator=generator)
    options = {"kernel_size": kernel_size, "groups": groups, "dilation": dilation, "stride": stride}
    tensors = [t.to(dtype) for t in tensors]
    upstream = random(b, groups * each, *size, generator=generator).to(dtype)

    def laid_out(t):
        if layout == "channels_last":
            return t.contiguous(memory_format=torch.channels_last)
        return torch.cat((t, t), 3)[..., : t.shape[3]] if layout == "sliced" else t

    def derivatives(function, dtype, arrange=lambda t: t):
        leaves = [arrange(t.detach().to(dtype)).requires_grad_(i in needs) for i, t in enumerate(tensors)]
        out = function(*leaves, padding_mode=padding_mode, **options)
        return out, *torch.autograd.grad(out, [leaves[i] for i in needs], arrange(upstream.to(dtype)))

    found = derivatives(ops.adaptive_conv2d, dtype, laid_out)
    with tta_restore.backend("reference"):
        expected = derivatives(ops.adaptive_conv2d, torch.float64)
    for got, want in zip(found, expected, strict=True):
        scale = want.abs().max().item() if want.numel() else 1
        limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        torch.testing.assert_close(got.double(), want, atol=limit * max(scale, 1e-6), rtol=0)


def test_bad_values_stay_bad(generator):
    """A NaN tap makes its own pixel NaN and no other; an infinite pixel those that read it with a tap that is not 0."""
    x, kernels = (t.float() for t in draw(1, 2, 9, 40, (9, 40), 2, kernel_size=3, generator=generator))
    kernels[0, 3, 4, 5] = torch.nan
    out = ops.adaptive_conv2d(x, kernels, kernel_size=3)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[0, 0, 4, 5] = True
    assert torch.equal(out.isnan(), expected)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.adaptive_conv2d(leaf, kernels, kernel_size=3).sum(), leaf)
    expected = torch.zeros_like(expected)
    expected[0, 0, 4, 4] = True  # tap 3 is the left one
    assert torch.equal(gradient.isnan(), expected)


@pytest.mark.parametrize("in_dims", [(0, 0), (None, 1), (2, None)])
def test_vmap(in_dims, generator):
    made = [draw(2, 4, 5, 6, (3, 3), 2, kernel_size=3, generator=generator) for _ in range(3)]
    assert_vmap_agrees(lambda *tensors: ops.adaptive_conv2d(*tensors, kernel_size=3, groups=2, stride=2), in_dims, made)


def test_export_with_a_free_size(generator):
    class Filter(torch.nn.Module):
        def forward(self, x, kernels):
            return ops.adaptive_conv2d(x, kernels, kernel_size=3, groups=1, normalize="softmax")

    height, width = torch.export.Dim("height", min=4), torch.export.Dim("width", min=4)
    tensors = draw(1, 3, 6, 7, (6, 7), 1, kernel_size=3, generator=generator)
    program = torch.export.export(Filter(), tensors, dynamic_shapes=[{2: height, 3: width}] * 2)
    tensors = draw(1, 3, 8, 5, (8, 5), 1, kernel_size=3, generator=generator)
    assert_agrees(program.module()(*tensors), Filter()(*tensors))
    assert "adaptive_conv2d" in str(program.graph)


@needs_extension
@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_do_not_change_results(groups, layout, generator):
    x, kernels = (t.float() for t in draw(1, 6, 70, 90, (70, 90), groups, kernel_size=5, generator=generator))
    kernels = kernels.contiguous(memory_format=layout)

    def derivatives():
        leaves = [x.clone().requires_grad_(), kernels.clone().requires_grad_()]
        out = ops.adaptive_conv2d(*leaves, kernel_size=5, groups=groups)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    assert_same_bits_for_threads(derivatives)
