"""Triton kernels of the product convolution and of its three derivatives: one pixel per lane, sums in float32.

The R kernels are mixed at every pixel, tap by tap; the mixed tap is applied to all channels that share kernels. The
adjoint is the same kernel on frames and weights with a margin of zeros. The gradient of the kernels is a matrix product
over the pixels of a part of the frame; torch adds the parts. Gathers only, no atomics: results do not depend on the
order of blocks. reference.py has the formulas, and runs beyond the sizes of ``DIRECT_UP_TO``.
"""
# pyrefly: ignore-errors

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from tta_restore._core.padding import pad
from tta_restore._core.triton_grid import place

from . import reference

# Largest kernel size of each op; above, Fourier transforms run. By counts of instructions and bytes, see README.md.
DIRECT_UP_TO = {"forward": 11, "adjoint": 11, "kernels": 7, "weights": 11}


@triton.jit
def _masked(mask, r, R):
    """Mask of the pixels of weight map r; the interpreter needs blocks on both sides of ``&``."""
    return mask & (tl.full(mask.shape, 0, tl.int32) + r < R)


@triton.jit(do_not_specialize=["C", "G", "R"])
def mix_kernel(
    p_x, p_kernels, p_weights, p_out, C, G, R, H, W, kernels_frame, weights_frame,
    K: tl.constexpr, RANKS: tl.constexpr, CHANNELS: tl.constexpr, ADJOINT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Out (B, C, H, W) = sum over taps of (sum over r of weight x tap) x frame, whose margin is K - 1 in all.

    C // G channels share their kernels (B, G, K, K, R), R filled up to whole parts by zeros. With ADJOINT the weights
    have the same margin, and every tap takes the weight of the pixel that it reads.
    """
    i, plane, o, o_y, o_x, mask = place(tl.cdiv(H * W, BLOCK), H, W, BLOCK)
    each = C // G
    parts = tl.cdiv(each, CHANNELS)
    i_g, i_b = i // parts % G, i // parts // G
    o_c = i % parts * CHANNELS + tl.arange(0, CHANNELS)
    both = (o_c < each)[:, None] & mask[None, :]
    channels = i_b * C + i_g * each + o_c
    padded_w = W + K - 1
    padded = tl.full((), 1, tl.int64) * (H + K - 1) * padded_w
    p_x += (channels * padded)[:, None]
    ranks = tl.cdiv(R, RANKS) * RANKS
    p_kernels += i_b * kernels_frame + i_g * K * K * ranks
    p_weights += i_b * weights_frame
    o_source = o_y * padded_w + o_x
    b_out = tl.zeros([CHANNELS, BLOCK], dtype=tl.float32)
    for first in range(0, R, RANKS):
        b_w = ()
        if not ADJOINT:
            for r in tl.static_range(RANKS):
                m_r = _masked(mask, first + r, R)
                b_w = b_w + (tl.load(p_weights + (first + r) * plane + o, mask=m_r, other=0.0).to(tl.float32),)
        for t in range(K * K):
            t_read = t if ADJOINT else K * K - 1 - t
            o_tap = o_source + t_read // K * padded_w + t_read % K
            b_tap = tl.zeros([BLOCK], dtype=tl.float32)
            for r in tl.static_range(RANKS):
                b_k = tl.load(p_kernels + t * ranks + first + r).to(tl.float32)
                if ADJOINT:
                    m_r = _masked(mask, first + r, R)
                    b_tap += b_k * tl.load(p_weights + (first + r) * padded + o_tap, mask=m_r, other=0.0).to(tl.float32)
                else:
                    b_tap += b_k * b_w[r]
            b_out += b_tap[None, :] * tl.load(p_x + o_tap[None, :], mask=both, other=0.0).to(tl.float32)
    tl.store(p_out + (channels * plane)[:, None] + o[None, :], b_out.to(p_out.dtype.element_ty), mask=both)


@triton.jit(do_not_specialize=["C", "G", "R"])
def grad_weights_kernel(
    p_g, p_x, p_kernels, p_out, C, G, R, H, W, kernels_frame,
    K: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Out (B, R, H, W) = sum over taps of tap x (sum over the channels that share it of gradient x frame)."""
    i, plane, o, o_y, o_x, mask = place(tl.cdiv(H * W, BLOCK), H, W, BLOCK)
    parts = tl.cdiv(R, RANKS)
    i_b, first = i // parts, i % parts * RANKS
    padded_w = W + K - 1
    padded = tl.full((), 1, tl.int64) * (H + K - 1) * padded_w
    p_g += i_b * C * plane + o
    p_x += i_b * C * padded + o_y * padded_w + o_x
    p_kernels += i_b * kernels_frame + first
    b_out = ()
    for _ in tl.static_range(RANKS):
        b_out = b_out + (tl.zeros([BLOCK], dtype=tl.float32),)
    for g in range(G):
        for t in range(K * K):
            o_tap = (K - 1 - t // K) * padded_w + K - 1 - t % K
            b_product = tl.zeros([BLOCK], dtype=tl.float32)
            for c in range(g * (C // G), (g + 1) * (C // G)):
                b_x = tl.load(p_x + c * padded + o_tap, mask=mask, other=0.0).to(tl.float32)
                b_product += b_x * tl.load(p_g + c * plane, mask=mask, other=0.0).to(tl.float32)
            b_sum = ()
            for r in tl.static_range(RANKS):
                b_k = tl.load(p_kernels + (g * K * K + t) * parts * RANKS + r).to(tl.float32)
                b_sum = b_sum + (b_out[r] + b_k * b_product,)
            b_out = b_sum
    p_out += (i_b * R + first) * plane + o
    for r in tl.static_range(RANKS):
        tl.store(p_out + r * plane, b_out[r].to(p_out.dtype.element_ty), mask=_masked(mask, first + r, R))


@triton.jit(do_not_specialize=["C", "R", "blocks"])
def grad_kernels_kernel(
    p_g, p_x, p_weights, p_out, C, R, H, W, weights_frame, blocks,
    K: tl.constexpr, RANKS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum over ``blocks`` blocks of pixels of weight x gradient x frame: out (B, C, parts, R, K * K), in float32."""
    parts = tl.cdiv(tl.cdiv(H * W, BLOCK), blocks)
    ranks = tl.cdiv(R, RANKS)
    i = tl.program_id(0)
    o_r = i % ranks * RANKS + tl.arange(0, RANKS)
    i_part = i // ranks % parts
    i_channel = (i // ranks // parts).to(tl.int64)
    one = tl.full((), 1, tl.int64)
    plane, padded_w = one * H * W, W + K - 1
    p_g += i_channel * plane
    p_x += i_channel * (one * (H + K - 1) * padded_w)
    p_weights += i_channel // C * weights_frame + (o_r * plane)[:, None]
    o_t = tl.arange(0, TAPS)
    o_tap = (K - 1 - o_t // K) * padded_w + K - 1 - o_t % K
    b_sum = tl.zeros([RANKS, TAPS], dtype=tl.float32)
    for n in range(blocks):
        o = (i_part * blocks + n) * BLOCK + tl.arange(0, BLOCK)
        mask = o < H * W
        o_source = o // W * padded_w + o % W
        m_w, m_x = (o_r < R)[:, None] & mask[None, :], mask[:, None] & (o_t < K * K)[None, :]
        b_w = tl.load(p_weights + o[None, :], mask=m_w, other=0.0).to(tl.float32)
        b_x = tl.load(p_x + (o_source[:, None] + o_tap[None, :]), mask=m_x, other=0.0).to(tl.float32)
        b_g = tl.load(p_g + o, mask=mask, other=0.0).to(tl.float32)
        b_sum = tl.dot(b_w, b_g[:, None] * b_x, b_sum, input_precision="ieee")
    p_out += (i_channel * parts + i_part) * R * K * K
    m_out = (o_r < R)[:, None] & (o_t < K * K)[None, :]
    tl.store(p_out + o_r[:, None] * (K * K) + o_t[None, :], b_sum, mask=m_out)


_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
_BLOCK = 128
_MOST_RANKS, _MOST_CHANNELS = 8, 4  # of a program: weights, and sums, that its registers hold
_SUMMED_PIXELS = 4096  # of a program of the gradient of the kernels


def _grid(planes: int, height: int, width: int, pixels: int = _BLOCK) -> tuple[int]:
    if height * width > 2**31 - pixels:
        raise ValueError(f"triton: expected fewer than 2^31 pixels, got H, W = {height}, {width}")
    return (planes * triton.cdiv(height * width, pixels),)


def _ranks(count: int) -> int:
    """Return how many kernels a program takes at a time, so that the last part is nearly as large as the others."""
    return triton.cdiv(count, triton.cdiv(count, _MOST_RANKS))


def _frame(tensor: Tensor) -> int:
    """Distance between frames, 0 where all share one."""
    return tensor.stride(0) if tensor.shape[0] > 1 else 0


def _adjacent(kernels: Tensor) -> Tensor:
    """Lay the R taps of a pixel next to each other: (B, R, C, K, K) -> (B|1, C|1, K, K, R), R filled up."""
    count = kernels.shape[1]
    return F.pad(reference.shared(kernels, 0, 2).permute(0, 2, 3, 4, 1), (0, -count % _ranks(count))).contiguous()


def _mix(x: Tensor, kernels: Tensor, weights: Tensor, height: int, width: int, adjoint: bool) -> Tensor:
    b, c, groups, count = *x.shape[:2], kernels.shape[1], weights.shape[1]
    out = x.new_empty(b, c, height, width)
    channels = min(triton.next_power_of_2(c // groups), _MOST_CHANNELS)
    with torch.cuda.device_of(x):
        mix_kernel[_grid(b * groups * triton.cdiv(c // groups, channels), height, width)](
            x, kernels, weights, out, c, groups, count, height, width, _frame(kernels), _frame(weights),
            K=kernels.shape[2], RANKS=_ranks(count), CHANNELS=channels, ADJOINT=adjoint, BLOCK=_BLOCK, **_OPTIONS,
        )  # fmt: skip
    return out


def product_conv2d(x: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """Launch the kernel of the output."""
    if kernels.shape[-1] > DIRECT_UP_TO["forward"] or not x.numel() * weights.numel():
        return reference.product_conv2d(x, kernels, weights)
    weights = reference.shared(weights, 0).contiguous()
    return _mix(x.contiguous(), _adjacent(kernels), weights, *weights.shape[2:], adjoint=False)


def product_conv2d_adjoint(g: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """Launch the same kernel, between margins of zeros."""
    margin = kernels.shape[-1] - 1
    if margin >= DIRECT_UP_TO["adjoint"] or not g.numel() * weights.numel():
        return reference.product_conv2d_adjoint(g, kernels, weights)
    g, weights = (pad(t, margin, "zeros").contiguous() for t in (g, reference.shared(weights, 0)))
    return _mix(g, _adjacent(kernels), weights, *(side - margin for side in g.shape[2:]), adjoint=True)


def product_conv2d_grad_kernels(g: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """Launch the kernel of the kernels' gradient, and add its parts."""
    (b, c, h, w), size, count = g.shape, x.shape[-1] - g.shape[-1] + 1, weights.shape[1]
    if size > DIRECT_UP_TO["kernels"] or not g.numel() * weights.numel():
        return reference.product_conv2d_grad_kernels(g, x, weights)
    g, x, weights = g.contiguous(), x.contiguous(), reference.shared(weights, 0).contiguous()
    taps = max(triton.next_power_of_2(size**2), 16)
    block = 16  # the least that tl.dot takes: products in float32 keep a block's operands in registers
    blocks = min(_SUMMED_PIXELS // block, triton.cdiv(h * w, block))
    parts = triton.cdiv(triton.cdiv(h * w, block), blocks)
    sums = g.new_empty(b, c, parts, count, size**2, dtype=torch.float32)
    with torch.cuda.device_of(g):
        grad_kernels_kernel[_grid(b * c * triton.cdiv(count, 16), h, w, block * blocks)](
            g, x, weights, sums, c, count, h, w, _frame(weights), blocks,
            K=size, RANKS=16, TAPS=taps, BLOCK=block, **_OPTIONS,
        )  # fmt: skip
    return sums.sum(2).transpose(1, 2).reshape(b, count, c, size, size).to(g.dtype)


def product_conv2d_grad_weights(g: Tensor, x: Tensor, kernels: Tensor) -> Tensor:
    """Launch the kernel of the weights' gradient."""
    (b, c, h, w), size, count = g.shape, kernels.shape[-1], kernels.shape[1]
    if size > DIRECT_UP_TO["weights"] or not g.numel() * count:
        return reference.product_conv2d_grad_weights(g, x, kernels)
    g, x, kernels = g.contiguous(), x.contiguous(), _adjacent(kernels)
    out = g.new_empty(b, count, h, w)
    with torch.cuda.device_of(g):
        grad_weights_kernel[_grid(b * triton.cdiv(count, _ranks(count)), h, w)](
            g, x, kernels, out, c, kernels.shape[1], count, h, w, _frame(kernels),
            K=size, RANKS=_ranks(count), BLOCK=_BLOCK, **_OPTIONS,
        )  # fmt: skip
    return out
