"""Definition of the product convolution and of its derivatives, in plain torch, which is the fast path on the CPU, too.

Everything is a partial derivative of one form, linear in each of its four arguments:
``T(g, x, k, w) = sum g[c, p] w[r, p] k[r, c, t] x[c, p + K - 1 - t]`` over r, c, p, t. The frame x has its
margin already. Small kernels are applied tap by tap or by torch's convolution, larger ones by Fourier transforms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Kernel size from which Fourier transforms are used, by op; measured in README.md.
FOURIER_FROM = {"forward": 5, "adjoint": 5, "kernels": 7}


def _widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return half-precision values as float32."""
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def shared(tensor: Tensor, *axes: int) -> Tensor:
    """Return the tensor with one entry along those axes that are expanded from one."""
    for axis in axes:
        if tensor.shape[axis] > 1 and tensor.stride(axis) == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _uses_fourier(kernel_size: int, what: str) -> bool:
    # Graphs for other runtimes are traced through here; few of those have Fourier transforms.
    return kernel_size >= FOURIER_FROM[what] and not torch.compiler.is_exporting()


def _fast_length(n: int) -> int:
    """Return the least even number from n on without prime factors above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def _lengths(height: int, width: int) -> tuple[int, int]:
    return _fast_length(height), _fast_length(width)


def _each_blurred(x: Tensor, kernels: Tensor) -> list[Tensor]:
    """Return the frame convolved with each of the R kernels, without its margin: R times (B, C, H, W)."""
    b, c, hp, wp = x.shape
    size = kernels.shape[-1]
    h, w = hp - size + 1, wp - size + 1
    if _uses_fourier(size, "forward"):
        lengths = _lengths(hp, wp)
        spectrum = torch.fft.rfft2(x, s=lengths)
        transfer = torch.fft.rfft2(shared(kernels, 0, 2), s=lengths)
        return [
            torch.fft.irfft2(spectrum * each, s=lengths)[..., size - 1 : size - 1 + h, size - 1 : size - 1 + w]
            for each in transfer.unbind(1)
        ]
    planes = x.reshape(1, b * c, hp, wp)
    flipped = kernels.flip(-2, -1).movedim(1, 0).reshape(-1, b * c, 1, size, size)
    return [F.conv2d(planes, each, groups=b * c).view(b, c, h, w) for each in flipped]


def product_conv2d(x: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """dT/dg: (B, C, H+K-1, W+K-1), (B, R, C, K, K), (B, R, H, W) -> (B, C, H, W)."""
    x_, k, w = _widen(x, kernels, weights)
    if x.numel() == 0 or weights.numel() == 0:
        return x.new_zeros(*x.shape[:2], *weights.shape[2:])
    out = x_.new_zeros(*x.shape[:2], *weights.shape[2:])
    for blurred, weight in zip(_each_blurred(x_, k), w.unbind(1), strict=True):
        out = out.addcmul(blurred, weight[:, None])  # not in place: torch.onnx.export cannot trace that
    return out.to(x.dtype)


def product_conv2d_adjoint(g: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """dT/dx: (B, C, H, W), (B, R, C, K, K), (B, R, H, W) -> (B, C, H+K-1, W+K-1)."""
    g_, k, w = _widen(g, kernels, weights)
    b, c, h, width = g.shape
    size = kernels.shape[-1]
    hp, wp = h + size - 1, width + size - 1
    if g.numel() == 0 or weights.numel() == 0:
        return g.new_zeros(b, c, hp, wp)
    if _uses_fourier(size, "adjoint"):
        lengths = _lengths(hp, wp)
        transfer = torch.fft.rfft2(shared(k, 0, 2).flip(-2, -1), s=lengths)
        total: Tensor | None = None
        for each, weight in zip(transfer.unbind(1), w.unbind(1), strict=True):
            part = torch.fft.rfft2(g_ * weight[:, None], s=lengths)
            total = part * each if total is None else total.addcmul_(part, each)
        out = torch.fft.irfft2(total, s=lengths)[..., :hp, :wp]
        return out.to(g.dtype).contiguous()
    out = g_.new_zeros(1, b * c, hp, wp)
    flipped = k.flip(-2, -1).movedim(1, 0).reshape(-1, b * c, 1, size, size)
    for each, weight in zip(flipped, w.unbind(1), strict=True):
        out = out + F.conv_transpose2d((g_ * weight[:, None]).reshape(1, b * c, h, width), each, groups=b * c)
    return out.view(b, c, hp, wp).to(g.dtype)


def product_conv2d_grad_kernels(g: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """dT/dk: (B, C, H, W), (B, C, H+K-1, W+K-1), (B, R, H, W) -> (B, R, C, K, K)."""
    g_, x_, w = _widen(g, x, weights)
    b, c, h, width = g.shape
    hp, wp = x.shape[2:]
    size, count = hp - h + 1, weights.shape[1]
    if g.numel() == 0 or weights.numel() == 0:
        return g.new_zeros(b, count, c, size, size)
    if _uses_fourier(size, "kernels"):
        lengths = _lengths(hp, wp)
        spectrum = torch.fft.rfft2(x_, s=lengths)
        found = [
            torch.fft.irfft2(spectrum * torch.fft.rfft2(g_ * weight[:, None], s=lengths).conj(), s=lengths)
            for weight in w.unbind(1)
        ]
        lags = torch.stack([each[..., :size, :size] for each in found], 1)
        return lags.flip(-2, -1).to(g.dtype).contiguous()
    flat = w.flatten(2)
    rows = []
    for i in reversed(range(size)):
        for j in reversed(range(size)):
            moved = x_[:, :, i : i + h, j : j + width]
            rows.append(flat @ (g_ * moved).flatten(2).mT)
    return torch.stack(rows, -1).view(b, count, c, size, size).to(g.dtype)


def product_conv2d_grad_weights(g: Tensor, x: Tensor, kernels: Tensor) -> Tensor:
    """dT/dw: (B, C, H, W), (B, C, H+K-1, W+K-1), (B, R, C, K, K) -> (B, R, H, W)."""
    g_, x_, k = _widen(g, x, kernels)
    if g.numel() == 0 or kernels.shape[1] == 0:
        return g.new_zeros(g.shape[0], kernels.shape[1], *g.shape[2:])
    return torch.stack([(g_ * blurred).sum(1) for blurred in _each_blurred(x_, k)], 1).to(g.dtype)
