"""Definition of per-pixel convolution and of its derivatives, in plain torch; also the fallback where no kernel runs.

Everything is a partial derivative of one form, linear in each of its three arguments:
``T(g, x, k) = sum g[c, p] k[group of c, t, p] x'[c, stride * p + dilation * t]`` over c, p, t, with ``x'`` the frame
with its margin, whose pixels are repeated ``scale`` times along both axes (adaptive_upsample; 1 otherwise).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tta_restore._core.padding import PADDING_MODES, fold, pad


def _widen(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def output_size(size: int, stride: int, scale: int) -> int:
    """Length of an axis of the output for one of the input."""
    return (size * scale - 1) // stride + 1


def _padded(x: Tensor, kernel_size: int, dilation: int, scale: int, padding: int) -> Tensor:
    wide = pad(x, dilation * (kernel_size // 2), PADDING_MODES[padding])
    return wide if scale == 1 else wide.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def _folded(y: Tensor, kernel_size: int, dilation: int, scale: int, padding: int) -> Tensor:
    if scale > 1:
        y = y.unflatten(-1, (-1, scale)).sum(-1).unflatten(-2, (-1, scale)).sum(-2)
    return fold(y, dilation * (kernel_size // 2), PADDING_MODES[padding])


def _windows(
    padded: Tensor, size: tuple[int, int], groups: int, kernel_size: int, step: int, stride: int
) -> Iterator[Tensor]:
    """Views of what each tap reads, (B, G, C/G, H', W')."""
    height, width = (stride * (n - 1) + 1 for n in size)
    for i in range(0, step * kernel_size, step):
        for j in range(0, step * kernel_size, step):
            window = padded[:, :, i : i + height : stride, j : j + width : stride]
            yield window.unflatten(1, (groups, -1))


def adaptive_conv2d(
    x: Tensor, kernels: Tensor, kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int
) -> Tensor:
    """dT/dg: (B, C, H, W), (B, G*K*K, H', W') -> (B, C, H', W')."""
    size = kernels.shape[2], kernels.shape[3]
    taps = kernels.unflatten(1, (groups, kernel_size**2)).unbind(2)
    padded = _padded(_widen(x), kernel_size, dilation, scale, padding)
    out = padded.new_zeros(x.shape[0], groups, x.shape[1] // groups, *size)
    windows = _windows(padded, size, groups, kernel_size, dilation * scale, stride)
    for tap, window in zip(taps, windows, strict=True):
        out = out + _widen(tap)[:, :, None] * window
    return out.flatten(1, 2).to(x.dtype).contiguous()


def adaptive_conv2d_grad_x(
    g: Tensor, kernels: Tensor, kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int,
    height: int, width: int,
) -> Tensor:  # fmt: skip
    """dT/dx: (B, C, H', W'), (B, G*K*K, H', W') -> (B, C, height, width)."""
    size = kernels.shape[2], kernels.shape[3]
    taps = kernels.unflatten(1, (groups, kernel_size**2)).unbind(2)
    wide = _widen(g)
    margin = 2 * dilation * (kernel_size // 2)
    padded = wide.new_zeros(*g.shape[:2], (height + margin) * scale, (width + margin) * scale)
    windows = _windows(padded, size, groups, kernel_size, dilation * scale, stride)
    grouped = wide.unflatten(1, (groups, -1))
    for tap, window in zip(taps, windows, strict=True):
        window += _widen(tap)[:, :, None] * grouped
    return _folded(padded, kernel_size, dilation, scale, padding).to(g.dtype).contiguous()


def adaptive_conv2d_grad_kernels(
    g: Tensor, x: Tensor, kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int
) -> Tensor:
    """dT/dk: (B, C, H', W'), (B, C, H, W) -> (B, G*K*K, H', W')."""
    size = g.shape[2], g.shape[3]
    padded = _padded(_widen(x), kernel_size, dilation, scale, padding)
    grouped = _widen(g).unflatten(1, (groups, -1))
    windows = _windows(padded, size, groups, kernel_size, dilation * scale, stride)
    taps = [(grouped * window).sum(2) for window in windows]
    return torch.stack(taps, 2).flatten(1, 2).to(g.dtype)
