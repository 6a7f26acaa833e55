"""Triton kernels of per-pixel convolution and of its two gradients: one output pixel per lane, sums in float32.

The margin is added by torch, once per call and before the kernels, which then load without a test of bounds; what the
gradient has in the margin is folded back the same way. Kernels are read where they are, in any layout. Gathers only, no
atomics: results do not depend on the order of blocks. reference.py has the formulas.
"""
# pyrefly: ignore-errors

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tta_restore._core.padding import PADDING_MODES, fold, pad
from tta_restore._core.triton_grid import place


@triton.jit
def forward_kernel(
    p_x, p_kernels, p_out, C, G, H, W, padded_h, padded_w, batch, channel, row, pixel, dilation, stride, scale,
    K: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Out = sum over taps of tap x padded frame, for CHANNELS channels that share their taps."""
    i, plane, o, o_y, o_x, mask = place(tl.cdiv(H * W, BLOCK), H, W, BLOCK)
    each = C // G
    parts = tl.cdiv(each, CHANNELS)
    i_g, i_b = i // parts % G, i // parts // G
    o_c = i % parts * CHANNELS + tl.arange(0, CHANNELS)
    both = (o_c < each)[:, None] & mask[None, :]
    channels = i_b * C + i_g * each + o_c
    one = tl.full((), 1, tl.int64)
    p_x += (channels * (one * padded_h * padded_w))[:, None]
    o_source = (o_y * stride // scale) * padded_w + o_x * stride // scale
    p_taps = p_kernels + i_b * batch + i_g * K * K * channel + (o_y.to(tl.int64) * row + o_x.to(tl.int64) * pixel)
    b_out = tl.zeros([CHANNELS, BLOCK], dtype=tl.float32)
    for t in range(K * K):
        b_tap = tl.load(p_taps + t * (one * channel), mask=mask, other=0.0).to(tl.float32)
        o_tap = o_source + (t // K) * dilation * padded_w + t % K * dilation
        b_x = tl.load(p_x + o_tap[None, :], mask=both, other=0.0).to(tl.float32)
        b_out += b_tap[None, :] * b_x
    tl.store(p_out + (channels * plane)[:, None] + o[None, :], b_out.to(p_out.dtype.element_ty), mask=both)


@triton.jit
def grad_x_kernel(
    p_g, p_kernels, p_grad, C, G, H, W, padded_h, padded_w, batch, channel, row, pixel, dilation, stride, scale,
    K: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the padded frame: what every output pixel that read this one gives back to it."""
    i, plane, o, o_y, o_x, mask = place(tl.cdiv(padded_h * padded_w, BLOCK), padded_h, padded_w, BLOCK)
    each = C // G
    parts = tl.cdiv(each, CHANNELS)
    i_g, i_b = i // parts % G, i // parts // G
    o_c = i % parts * CHANNELS + tl.arange(0, CHANNELS)
    channels = i_b * C + i_g * each + o_c
    one = tl.full((), 1, tl.int64)
    p_g += (channels * (one * H * W))[:, None]
    p_kernels += i_b * batch + i_g * K * K * channel
    b_grad = tl.zeros([CHANNELS, BLOCK], dtype=tl.float32)
    for t in range(K * K):
        # padded pixel q is read by the output pixels p with q = p * stride // scale + dilation * t
        q_y, q_x = o_y - t // K * dilation, o_x - t % K * dilation
        met = mask & (q_y >= 0) & (q_x >= 0) & (q_y % stride == 0) & (q_x % stride == 0)
        for s in range(scale * scale):
            i_y, i_x = q_y * scale // stride + s // scale, q_x * scale // stride + s % scale
            inside = met & (i_y < H) & (i_x < W)
            o_tap = t * (one * channel) + i_y.to(tl.int64) * row + i_x.to(tl.int64) * pixel
            b_tap = tl.load(p_kernels + o_tap, mask=inside, other=0.0).to(tl.float32)
            both = (o_c < each)[:, None] & inside[None, :]
            b_g = tl.load(p_g + (i_y * W + i_x)[None, :], mask=both, other=0.0).to(tl.float32)
            b_grad += b_tap[None, :] * b_g
    both = (o_c < each)[:, None] & mask[None, :]
    tl.store(p_grad + (channels * plane)[:, None] + o[None, :], b_grad.to(p_grad.dtype.element_ty), mask=both)


@triton.jit
def grad_kernels_kernel(
    p_g, p_x, p_grad, C, G, H, W, padded_h, padded_w, dilation, stride, scale,
    K: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of one row of K taps: products of gradient and padded frame, summed over the channels of the group."""
    i, plane, o, o_y, o_x, mask = place(tl.cdiv(H * W, BLOCK), H, W, BLOCK)
    each = C // G
    i_row, i_g, i_b = i % K, i // K % G, i // K // G
    one = tl.full((), 1, tl.int64)
    o_j = tl.arange(0, TAPS)
    both = (o_j < K)[:, None] & mask[None, :]
    o_source = (o_y * stride // scale + i_row.to(tl.int32) * dilation) * padded_w + o_x * stride // scale
    o_taps = o_source[None, :] + (o_j * dilation)[:, None]
    p_g += (i_b * C + i_g * each) * plane + o
    p_x += (i_b * C + i_g * each) * (one * padded_h * padded_w)
    b_grad = tl.zeros([TAPS, BLOCK], dtype=tl.float32)
    for _ in range(each):
        b_g = tl.load(p_g, mask=mask, other=0.0).to(tl.float32)
        b_grad += b_g[None, :] * tl.load(p_x + o_taps, mask=both, other=0.0).to(tl.float32)
        p_g += plane
        p_x += one * padded_h * padded_w
    p_grad += ((i_b * G + i_g) * (K * K) + i_row * K) * plane
    o_grad = o_j.to(tl.int64)[:, None] * plane + o[None, :]
    tl.store(p_grad + o_grad, b_grad.to(p_grad.dtype.element_ty), mask=both)


_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
_LANES = 512  # pixels times channels, or times taps of a row, of a program


def _tile(together: int) -> tuple[int, int]:
    """Return a power of two of channels or taps, at most 8, and the pixels of a program."""
    count = min(triton.next_power_of_2(together), 8)
    return count, _LANES // count


def _grid(planes: int, height: int, width: int, block: int) -> tuple[int]:
    if height * width > 2**31 - block:
        raise ValueError(f"triton: expected fewer than 2^31 pixels, got H, W = {height}, {width}")
    return (planes * triton.cdiv(height * width, block),)


def _widths(kernels: Tensor) -> tuple[int, int, int, int]:
    return kernels.stride(0), kernels.stride(1), kernels.stride(2), kernels.stride(3)


def adaptive_conv2d(
    x: Tensor, kernels: Tensor, kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int
) -> Tensor:
    """Launch the forward kernel."""
    b, c, h, w = x.shape[0], x.shape[1], kernels.shape[2], kernels.shape[3]
    out = x.new_empty(b, c, h, w)
    if out.numel():
        padded = pad(x, dilation * (kernel_size // 2), PADDING_MODES[padding]).contiguous()
        channels, block = _tile(c // groups)
        grid = _grid(b * groups * triton.cdiv(c // groups, channels), h, w, block)
        sizes = (c, groups, h, w, *padded.shape[2:], *_widths(kernels), dilation, stride, scale)
        with torch.cuda.device_of(x):
            forward_kernel[grid](
                padded, kernels, out, *sizes, K=kernel_size, CHANNELS=channels, BLOCK=block, **_OPTIONS
            )
    return out


def adaptive_conv2d_grad_x(
    g: Tensor, kernels: Tensor, kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int,
    height: int, width: int,
) -> Tensor:  # fmt: skip
    """Launch the kernel of the frame's gradient."""
    b, c, h, w = g.shape
    margin = dilation * (kernel_size // 2)
    if not b * c * height * width:
        return g.new_empty(b, c, height, width)
    g = g.contiguous()
    padded = g.new_empty(b, c, height + 2 * margin, width + 2 * margin, dtype=torch.float32)
    channels, block = _tile(c // groups)
    grid = _grid(b * groups * triton.cdiv(c // groups, channels), *padded.shape[2:], block)
    sizes = (c, groups, h, w, *padded.shape[2:], *_widths(kernels), dilation, stride, scale)
    with torch.cuda.device_of(g):
        grad_x_kernel[grid](g, kernels, padded, *sizes, K=kernel_size, CHANNELS=channels, BLOCK=block, **_OPTIONS)
    return fold(padded, margin, PADDING_MODES[padding]).to(g.dtype).contiguous()


def adaptive_conv2d_grad_kernels(
    g: Tensor, x: Tensor, kernel_size: int, groups: int, dilation: int, stride: int, scale: int, padding: int
) -> Tensor:
    """Launch the kernel of the kernels' gradient."""
    b, c, h, w = g.shape
    grad = g.new_empty(b, groups * kernel_size**2, h, w)
    if grad.numel():
        g = g.contiguous()
        padded = pad(x, dilation * (kernel_size // 2), PADDING_MODES[padding]).contiguous()
        taps = triton.next_power_of_2(kernel_size)
        block = max(_LANES // taps, 32)
        sizes = (c, groups, h, w, *padded.shape[2:], dilation, stride, scale)
        with torch.cuda.device_of(x):
            grad_kernels_kernel[_grid(b * groups * kernel_size, h, w, block)](
                g, padded, grad, *sizes, K=kernel_size, TAPS=taps, BLOCK=block, **_OPTIONS
            )
    return grad
