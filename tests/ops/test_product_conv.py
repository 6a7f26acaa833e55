"""The product convolution against its definition pixel by pixel, its adjoint, and what every op keeps."""

import pytest
import torch
from _base import Bad, OpTests, Sample, random
from _compare import assert_agrees, assert_vmap_agrees
from torch.nn import functional as F

from tta_restore import ops
from tta_restore.ops.product_conv import reference

MODES = ("zeros", "reflect", "replicate", "circular")


def literal(x, kernels, weights, *, adjoint=False, padding_mode="reflect"):
    """The sum as the docstring writes it; the adjoint as torch's derivative of it."""
    if adjoint:
        margin = kernels.shape[-1] // 2
        h, w = x.shape[2:]
        extra = 2 * margin if padding_mode == "valid" else 0
        zeros = torch.zeros(*x.shape[:2], h + extra, w + extra, dtype=x.dtype, requires_grad=True)
        out = literal(zeros, kernels, weights, padding_mode=padding_mode)
        return torch.autograd.grad(out, zeros, x, create_graph=True)[0]
    size = kernels.shape[-1]
    h, w = weights.shape[2:]
    if padding_mode != "valid":
        x = F.pad(x, (size // 2,) * 4, "constant" if padding_mode == "zeros" else padding_mode)
    out = 0
    for i in range(size):
        for j in range(size):
            tap = (weights[:, :, None] * kernels[..., i, j, None, None]).sum(1)
            top, left = size - 1 - i, size - 1 - j
            out = out + tap * x[:, :, top : top + h, left : left + w]
    return out


def draw(x, kernels, weights, *, generator):
    return tuple(random(*shape, generator=generator, low=-0.2) for shape in (x, kernels, weights))


class TestProductConv2d(OpTests):
    op = staticmethod(ops.product_conv2d)

    def reference(self, *tensors, **options):
        return literal(*tensors, **options)

    def samples(self, generator):
        shapes = [
            ((1, 2, 3, 2), (1, 2, 1, 3, 3), (1, 2, 3, 2), {"padding_mode": "reflect"}),
            ((2, 2, 4, 5), (2, 2, 2, 3, 3), (2, 2, 4, 5), {"padding_mode": "reflect"}),
            ((2, 3, 9, 8), (1, 2, 1, 5, 5), (1, 2, 9, 8), {"padding_mode": "replicate"}),
            ((1, 3, 14, 15), (1, 3, 3, 11, 11), (1, 3, 14, 15), {"padding_mode": "circular"}),
            ((2, 1, 17, 20), (2, 2, 1, 13, 13), (1, 2, 5, 8), {"padding_mode": "valid"}),
            ((1, 2, 5, 4), (1, 2, 1, 3, 3), (1, 2, 5, 4), {"padding_mode": "zeros", "adjoint": True}),
            ((1, 2, 14, 13), (1, 2, 1, 11, 11), (1, 2, 14, 13), {"padding_mode": "reflect", "adjoint": True}),
            ((1, 2, 3, 4), (1, 1, 2, 1, 1), (1, 1, 3, 4), {}),
        ]
        return [Sample(draw(*sizes, generator=generator), options) for *sizes, options in shapes]

    def bad(self):
        x, kernels, weights = torch.rand(2, 3, 6, 7), torch.rand(1, 2, 1, 3, 3), torch.rand(1, 2, 6, 7)
        return [
            Bad((x[0], kernels, weights), ValueError, r"x of shape \(B, C, H, W\), got \(3, 6, 7\)"),
            Bad((x[:, :0], kernels, weights), ValueError, "C, H and W at least 1"),
            Bad((x, kernels[..., :2], weights), ValueError, r"\(2 or 1, R, 3 or 1, K, K\), R at least 1 and K odd"),
            Bad((x, kernels[..., :2, :2], weights), ValueError, "K odd, got"),
            Bad((x, kernels.expand(3, -1, -1, -1, -1), weights), ValueError, r"kernels .* got \(3, 2, 1, 3, 3\)"),
            Bad((x, kernels[:, :1], weights), ValueError, r"weights .* = \(2 or 1, 1, 6, 7\), got \(1, 2, 6, 7\)"),
            Bad((x, kernels, weights[..., 1:]), ValueError, r"weights .* = \(2 or 1, 2, 6, 7\), got \(1, 2, 6, 6\)"),
            Bad((x, kernels, weights), ValueError, "padding_mode to be one of", {"padding_mode": "mirror"}),
            Bad((x, kernels, weights), TypeError, "adjoint to be a bool, got int 1", {"adjoint": 1}),
            Bad((x, torch.rand(1, 2, 1, 13, 13), weights), ValueError, "H and W at least 7 for padding_mode 'reflect'"),
            Bad((x, kernels, weights), ValueError, r"= \(2 or 1, 2, 4, 5\)", {"padding_mode": "valid"}),
            Bad((x[..., :2], kernels, weights), ValueError, "at least K = 3", {"padding_mode": "valid"}),
            Bad((x, kernels.double(), weights), TypeError, "one dtype"),
            Bad((x, kernels.to("meta"), weights), ValueError, "one device"),
            Bad((x.byte(), kernels, weights), TypeError, "divide by 255"),
        ]


@pytest.mark.parametrize("padding_mode", [*MODES, "valid"])
@pytest.mark.parametrize("size", [5, 11])
def test_adjoint(padding_mode, size, generator):
    x, kernels, weights = draw((2, 3, 16, 13), (2, 3, 1, size, size), (2, 3, 16, 13), generator=generator)
    larger = x
    if padding_mode == "valid":
        larger = random(2, 3, 15 + size, 12 + size, generator=generator)
    y = random(2, 3, 16, 13, generator=generator)
    forward = ops.product_conv2d(larger, kernels, weights, padding_mode=padding_mode)
    back = ops.product_conv2d(y, kernels, weights, padding_mode=padding_mode, adjoint=True)
    torch.testing.assert_close((forward * y).sum(), (larger * back).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("adjoint", [False, True])
def test_fourier_is_direct(adjoint, generator, monkeypatch):
    """Both ways, at second order too, in float32."""
    tensors = [t.float() for t in draw((1, 2, 13, 16), (1, 2, 2, 7, 7), (1, 2, 13, 16), generator=generator)]

    def derivatives():
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = ops.product_conv2d(*leaves, adjoint=adjoint)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        return out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    results = []
    for limit in (1, 99):
        for what in reference.FOURIER_FROM:
            monkeypatch.setitem(reference.FOURIER_FROM, what, limit)
        results.append(derivatives())
    for got, want in zip(*results, strict=True):
        assert_agrees(got, want)


def test_a_point_becomes_its_kernel(generator):
    """One-hot weights of output pixels: the left half has one kernel, the right half another, neither mirrored."""
    x = torch.zeros(1, 1, 9, 20)
    x[..., 4, 4] = x[..., 4, 14] = 1
    kernels = random(1, 2, 1, 5, 5, generator=generator).float()
    weights = torch.zeros(1, 2, 9, 20)
    weights[:, 0, :, :10] = weights[:, 1, :, 10:] = 1
    out = ops.product_conv2d(x, kernels, weights)[0, 0]
    torch.testing.assert_close(out[2:7, 2:7], kernels[0, 0, 0])
    torch.testing.assert_close(out[2:7, 12:17], kernels[0, 1, 0])


@pytest.mark.parametrize("padding_mode", MODES)
def test_a_mean_keeps_a_constant(padding_mode, generator):
    kernels = random(1, 2, 1, 5, 5, generator=generator).float()
    kernels = kernels / kernels.sum((-2, -1), keepdim=True)
    weights = random(1, 2, 8, 9, generator=generator).float().softmax(1)
    out = ops.product_conv2d(torch.ones(1, 3, 8, 9), kernels, weights, padding_mode=padding_mode)
    inside = out[..., 2:-2, 2:-2] if padding_mode == "zeros" else out
    torch.testing.assert_close(inside, torch.ones_like(inside))


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, 1, 0), (2, None, None)])
@pytest.mark.parametrize("adjoint", [False, True])
def test_vmap(in_dims, adjoint, generator):
    shapes = (2, 3, 5, 6), (1, 2, 1, 3, 3), (2, 2, 5, 6)
    made = [draw(*shapes, generator=generator) for _ in range(3)]
    assert_vmap_agrees(lambda *tensors: ops.product_conv2d(*tensors, adjoint=adjoint), in_dims, made)


def test_export(generator):
    class Blur(torch.nn.Module):
        def forward(self, x, kernels, weights):
            return ops.product_conv2d(x, kernels, weights)

    tensors = draw((1, 3, 12, 13), (1, 2, 1, 5, 5), (1, 2, 12, 13), generator=generator)
    program = torch.export.export(Blur(), tensors)
    assert_agrees(program.module()(*tensors), Blur()(*tensors))
    assert "product_conv2d" in str(program.graph)
