"""Triton kernels of the anisotropic Gaussian blur: one pixel per lane, weights made where they are used.

The frame has its margin already, so that no load tests bounds. The gradient of the frame gathers what the pixels around
give back, with their precision and ``1 / Z``, which a first kernel writes. No atomics: results do not depend on the
order of blocks. Second derivatives run the reference. reference.py has the formulas.
"""
# pyrefly: ignore-errors

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tta_restore._core.triton_grid import place


@triton.jit
def _precision(p, plane, mask):
    """a, b and c of every pixel; 0 where masked."""
    b_a = tl.load(p, mask=mask, other=0.0).to(tl.float32)
    b_b = tl.load(p + plane, mask=mask, other=0.0).to(tl.float32)
    return b_a, b_b, tl.load(p + 2 * plane, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _weight(b_a, b_b, b_c, t, K: tl.constexpr):
    """Weight of tap t before the normalization, and the tap's moments."""
    i, j = t // K - K // 2, t % K - K // 2
    m_a, m_b, m_c = j * j * 1.0, 2.0 * i * j, i * i * 1.0
    return tl.exp(-(m_a * b_a + m_b * b_b + m_c * b_c)), m_a, m_b, m_c


@triton.jit
def forward_kernel(p_x, p_precision, p_out, C, H, W, K: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Out = sum over taps of weight x frame, divided by the sum of the weights, for CHANNELS channels."""
    i, plane, o, o_y, o_x, mask = place(tl.cdiv(H * W, BLOCK), H, W, BLOCK)
    parts = tl.cdiv(C, CHANNELS)
    i_b = i // parts
    o_c = i % parts * CHANNELS + tl.arange(0, CHANNELS)
    both = (o_c < C)[:, None] & mask[None, :]
    channels = i_b * C + o_c
    padded_w = W + K - 1
    one = tl.full((), 1, tl.int64)
    p_x += (channels * (one * (H + K - 1) * padded_w))[:, None]
    b_a, b_b, b_c = _precision(p_precision + i_b * 3 * plane + o, plane, mask)
    b_total = tl.zeros([BLOCK], dtype=tl.float32)
    b_out = tl.zeros([CHANNELS, BLOCK], dtype=tl.float32)
    for t in range(K * K):
        b_w, _, _, _ = _weight(b_a, b_b, b_c, t, K)
        b_total += b_w
        o_tap = (o_y + t // K) * padded_w + o_x + t % K
        b_out += b_w[None, :] * tl.load(p_x + o_tap[None, :], mask=both, other=0.0).to(tl.float32)
    b_out = b_out / b_total[None, :]
    tl.store(p_out + (channels * plane)[:, None] + o[None, :], b_out.to(p_out.dtype.element_ty), mask=both)


@triton.jit
def scale_kernel(p_precision, p_scale, H, W, K: tl.constexpr, BLOCK: tl.constexpr):
    """1 / Z of every pixel."""
    i_b, plane, o, _, _, mask = place(tl.cdiv(H * W, BLOCK), H, W, BLOCK)
    b_a, b_b, b_c = _precision(p_precision + i_b * 3 * plane + o, plane, mask)
    b_total = tl.zeros([BLOCK], dtype=tl.float32)
    for t in range(K * K):
        b_total += _weight(b_a, b_b, b_c, t, K)[0]
    tl.store(p_scale + i_b * plane + o, 1.0 / b_total, mask=mask)


@triton.jit
def grad_image_kernel(
    p_grad, p_precision, p_scale, p_grad_x, C, H, W, K: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of the padded frame: the sum of what every pixel that read this one gives back."""
    i, plane, o, o_y, o_x, mask = place(tl.cdiv((H + K - 1) * (W + K - 1), BLOCK), H + K - 1, W + K - 1, BLOCK)
    parts = tl.cdiv(C, CHANNELS)
    i_b = i // parts
    o_c = i % parts * CHANNELS + tl.arange(0, CHANNELS)
    channels = i_b * C + o_c
    one = tl.full((), 1, tl.int64)
    inner = one * H * W
    p_grad += (channels * inner)[:, None]
    p_precision += i_b * 3 * inner
    p_scale += i_b * inner
    b_out = tl.zeros([CHANNELS, BLOCK], dtype=tl.float32)
    for t in range(K * K):
        i_y, i_x = o_y - t // K, o_x - t % K
        inside = mask & (i_y >= 0) & (i_x >= 0) & (i_y < H) & (i_x < W)
        o_tap = i_y * W + i_x
        b_a, b_b, b_c = _precision(p_precision + o_tap, inner, inside)
        b_p = _weight(b_a, b_b, b_c, t, K)[0] * tl.load(p_scale + o_tap, mask=inside, other=0.0)
        both = (o_c < C)[:, None] & inside[None, :]
        b_out += b_p[None, :] * tl.load(p_grad + o_tap[None, :], mask=both, other=0.0).to(tl.float32)
    both = (o_c < C)[:, None] & mask[None, :]
    tl.store(p_grad_x + (channels * plane)[:, None] + o[None, :], b_out.to(p_grad_x.dtype.element_ty), mask=both)


@triton.jit
def grad_precision_kernel(p_grad, p_x, p_precision, p_grad_precision, C, H, W, K: tl.constexpr, BLOCK: tl.constexpr):
    """Gradients of a, b and c, with the moments about their means."""
    i_b, plane, o, o_y, o_x, mask = place(tl.cdiv(H * W, BLOCK), H, W, BLOCK)
    padded_w = W + K - 1
    one = tl.full((), 1, tl.int64)
    padded = one * (H + K - 1) * padded_w
    b_a, b_b, b_c = _precision(p_precision + i_b * 3 * plane + o, plane, mask)
    b_total, b_mean_a = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    b_mean_b, b_mean_c = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    for t in range(K * K):
        b_w, m_a, m_b, m_c = _weight(b_a, b_b, b_c, t, K)
        b_total += b_w
        b_mean_a += m_a * b_w
        b_mean_b += m_b * b_w
        b_mean_c += m_c * b_w
    b_scale = 1.0 / b_total
    b_mean_a, b_mean_b, b_mean_c = b_mean_a * b_scale, b_mean_b * b_scale, b_mean_c * b_scale
    p_grad += i_b * C * plane + o
    p_x += i_b * C * padded
    o_center = (o_y + K // 2) * padded_w + o_x + K // 2
    b_grad_a, b_grad_b = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    b_grad_c = tl.zeros([BLOCK], dtype=tl.float32)
    for t in range(K * K):
        o_tap = (o_y + t // K) * padded_w + o_x + t % K
        b_product = tl.zeros([BLOCK], dtype=tl.float32)  # of the gradient and the difference to the center
        for c in range(C):
            b_x = tl.load(p_x + c * padded + o_tap, mask=mask, other=0.0).to(tl.float32)
            b_x -= tl.load(p_x + c * padded + o_center, mask=mask, other=0.0).to(tl.float32)
            b_product += b_x * tl.load(p_grad + c * plane, mask=mask, other=0.0).to(tl.float32)
        b_w, m_a, m_b, m_c = _weight(b_a, b_b, b_c, t, K)
        b_product *= b_w * b_scale
        b_grad_a -= (m_a - b_mean_a) * b_product
        b_grad_b -= (m_b - b_mean_b) * b_product
        b_grad_c -= (m_c - b_mean_c) * b_product
    p_grad_precision += i_b * 3 * plane + o
    kept = p_grad_precision.dtype.element_ty
    tl.store(p_grad_precision, b_grad_a.to(kept), mask=mask)
    tl.store(p_grad_precision + plane, b_grad_b.to(kept), mask=mask)
    tl.store(p_grad_precision + 2 * plane, b_grad_c.to(kept), mask=mask)


_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
_BLOCK = 128


def _grid(planes: int, height: int, width: int) -> tuple[int]:
    if height * width > 2**31 - _BLOCK:
        raise ValueError(f"triton: expected fewer than 2^31 pixels, got H, W = {height}, {width}")
    return (planes * triton.cdiv(height * width, _BLOCK),)


def _channels(count: int) -> int:
    return min(triton.next_power_of_2(count), 4)


def anisotropic_reblur(padded: Tensor, precision: Tensor, kernel_size: int) -> Tensor:
    """Launch the forward kernel."""
    padded, precision = padded.contiguous(), precision.contiguous()
    b, c = padded.shape[:2]
    h, w = precision.shape[2:]
    out = padded.new_empty(b, c, h, w)
    if out.numel():
        channels = _channels(c)
        with torch.cuda.device_of(padded):
            forward_kernel[_grid(b * triton.cdiv(c, channels), h, w)](
                padded, precision, out, c, h, w, K=kernel_size, CHANNELS=channels, BLOCK=_BLOCK, **_OPTIONS
            )
    return out


def anisotropic_reblur_backward(
    grad: Tensor, padded: Tensor, precision: Tensor, kernel_size: int, need_image: bool, need_precision: bool
) -> tuple[Tensor, Tensor]:
    """Launch the kernels of the gradients that are needed."""
    grad, padded, precision = (t.contiguous() for t in (grad, padded, precision))
    b, c, h, w = grad.shape
    grad_x = torch.empty_like(padded) if need_image else padded.new_empty(0)
    grad_precision = torch.empty_like(precision) if need_precision else padded.new_empty(0)
    if not grad.numel():
        return grad_x.zero_(), grad_precision.zero_()
    options = {"K": kernel_size, "BLOCK": _BLOCK, **_OPTIONS}
    with torch.cuda.device_of(padded):
        if need_image:
            scale = precision.new_empty(b, h, w, dtype=torch.float32)
            scale_kernel[_grid(b, h, w)](precision, scale, h, w, **options)
            channels = _channels(c)
            grad_image_kernel[_grid(b * triton.cdiv(c, channels), *padded.shape[2:])](
                grad, precision, scale, grad_x, c, h, w, CHANNELS=channels, **options
            )
        if need_precision:
            grad_precision_kernel[_grid(b, h, w)](grad, padded, precision, grad_precision, c, h, w, **options)
    return grad_x, grad_precision
