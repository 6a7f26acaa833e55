"""Triton kernels of the isotropic blur: one pixel per lane, the coefficients of all classes of offsets in registers.

Forward: seeds and weights become one coefficient per class (symmetry.py), multiplied by the image summed over it.
Backward: the gradients of seeds and weights read the image in the same way. The gradient of the image gathers what the
neighbors' kernels give, so their coefficients are written to memory, for one band of rows at a time: a band stays in
the cache of the device, and no kernel is ever held. No atomics: results do not depend on the order of blocks.
"""
# pyrefly: ignore-errors

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tta_restore.ops.isotropic import symmetry

# Bytes of coefficients per band: about half of what the second-level cache of a large device holds.
_BAND_BYTES = 24 << 20


def _tables(kernel_sizes: Sequence[int]) -> dict[str, Any]:
    """Constants of the kernels; flat tuples with positions, which Triton indexes at compile time.

    Triton before 3.9 takes plain numbers out of them, which count as constants in sums but not as bounds of loops.
    """
    branches = symmetry.branches(tuple(kernel_sizes))
    radius = symmetry.largest_radius(tuple(kernel_sizes))
    rings = [ring for branch in branches for ring in branch.rings]
    return {
        "RADIUS": radius,
        "RADII": tuple(branch.radius for branch in branches),
        "FIRST": tuple(branch.first_seed for branch in branches),
        "START": tuple(sum(len(b.rings) for b in branches[:n]) for n in range(len(branches) + 1)),
        "BELOW": tuple(ring.below for ring in rings),
        "FRACTION": tuple(ring.fraction for ring in rings),
        "TAPS": tuple(float(ring.taps) for ring in rings),
        "CORNERS": tuple(float(branch.corner_taps) for branch in branches),
        "RING": tuple(tuple(branch.ring_of_class) for branch in branches),
    }


@triton.jit
def _place(blocks, H, W, rows, BLOCK: tl.constexpr):
    """Frame (or channel of all frames), H * W and the pixels of this block within ``rows`` rows.

    The grid has one axis, because the others end at 65535.
    """
    i = tl.program_id(0)
    o = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
    one = tl.full((), 1, tl.int64)  # where H and W are 1 they are compile-time numbers, which have no dtype
    return (i // blocks).to(tl.int64), one * H * W, one * rows * W, o, o < rows * W


@triton.jit
def _exponentials(
    p_seeds, plane, mask, N: tl.constexpr, RADII: tl.constexpr, FIRST: tl.constexpr, START: tl.constexpr,
    BELOW: tl.constexpr, FRACTION: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr,
):  # fmt: skip
    """Exponentials of the logits of branch N, ring by ring, the corners last, and 1 / (their sum over all taps)."""
    b_a = ()
    b_peak = tl.zeros_like(mask.to(tl.float32))
    for k in tl.static_range(RADII[N] + 1):
        b_s = tl.abs(tl.load(p_seeds + (FIRST[N] + k) * plane, mask=mask, other=0.0).to(tl.float32))
        b_a = b_a + (b_s,)
        b_peak = tl.maximum(b_peak, b_s)
    b_corner = tl.exp(-b_peak)
    b_sum = CORNERS[N] * b_corner
    b_e = ()
    for r in tl.static_range(tl.constexpr(START[N]), tl.constexpr(START[N + 1])):
        b_logit = b_a[BELOW[r]]
        if FRACTION[r] > 0:
            b_logit += FRACTION[r] * (b_a[BELOW[r] + 1] - b_logit)
        b_ring = tl.exp(b_logit - b_peak)
        b_e = b_e + (b_ring,)
        b_sum += TAPS[r] * b_ring
    return b_e + (b_corner,), 1.0 / b_sum


@triton.jit
def _coefficients(
    p_seeds, p_weights, plane, mask, RADIUS: tl.constexpr, RADII: tl.constexpr, FIRST: tl.constexpr,
    START: tl.constexpr, BELOW: tl.constexpr, FRACTION: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """Return the mixed kernel of every pixel: one coefficient per class."""
    CLASSES: tl.constexpr = (RADIUS + 1) * (RADIUS + 2) // 2
    b_c = (tl.load(p_weights, mask=mask, other=0.0).to(tl.float32),)
    for _ in tl.static_range(CLASSES - 1):
        b_c = b_c + (tl.zeros_like(b_c[0]),)
    for n in tl.static_range(len(RADII)):
        b_e, b_scale = _exponentials(p_seeds, plane, mask, n, RADII, FIRST, START, BELOW, FRACTION, TAPS, CORNERS)
        b_scale *= tl.load(p_weights + (n + 1) * plane, mask=mask, other=0.0).to(tl.float32)
        b_sum = ()
        for c in tl.static_range(CLASSES):
            if c < len(RING[n]):
                b_sum = b_sum + (b_c[c] + b_scale * b_e[RING[n][c]],)
            else:
                b_sum = b_sum + (b_c[c],)
        b_c = b_sum
    return b_c


@triton.jit
def _at(p, o_y, o_x, H, W, mask, DY: tl.constexpr, DX: tl.constexpr):
    """Value of a plane at an offset, zero outside the frame."""
    inside = mask & (o_y + DY >= 0) & (o_y + DY < H) & (o_x + DX >= 0) & (o_x + DX < W)
    return tl.load(p + (o_y + DY) * W + o_x + DX, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _class_sum(p, o_y, o_x, H, W, mask, A: tl.constexpr, B: tl.constexpr):
    """Sum of a plane over the class (A, B)."""
    b_sum = _at(p, o_y, o_x, H, W, mask, A, B)
    if A > 0:
        b_sum += _at(p, o_y, o_x, H, W, mask, -A, -B)
        b_sum += _at(p, o_y, o_x, H, W, mask, -B, A) + _at(p, o_y, o_x, H, W, mask, B, -A)
    if A > B:
        if B > 0:
            b_sum += _at(p, o_y, o_x, H, W, mask, A, -B) + _at(p, o_y, o_x, H, W, mask, -A, B)
            b_sum += _at(p, o_y, o_x, H, W, mask, B, A) + _at(p, o_y, o_x, H, W, mask, -B, -A)
    return b_sum


@triton.jit
def reblur_kernel(
    p_image, p_seeds, p_weights, p_out, C, H, W, SEEDS: tl.constexpr, RADIUS: tl.constexpr, RADII: tl.constexpr,
    FIRST: tl.constexpr, START: tl.constexpr, BELOW: tl.constexpr, FRACTION: tl.constexpr, TAPS: tl.constexpr,
    CORNERS: tl.constexpr, RING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Out = sum over classes of coefficient x class sum of the image."""
    i_b, plane, _, o, mask = _place(tl.cdiv(H * W, BLOCK), H, W, H, BLOCK)
    o_y, o_x = o // W, o % W
    b_c = _coefficients(
        p_seeds + i_b * SEEDS * plane + o, p_weights + i_b * (len(RADII) + 1) * plane + o, plane, mask, RADIUS, RADII,
        FIRST, START, BELOW, FRACTION, TAPS, CORNERS, RING,
    )  # fmt: skip
    for k in range(C):
        p = p_image + (i_b * C + k) * plane
        b_out = tl.zeros([BLOCK], dtype=tl.float32)
        for a in tl.static_range(RADIUS + 1):
            for b in tl.static_range(a + 1):
                b_out += b_c[a * (a + 1) // 2 + b] * _class_sum(p, o_y, o_x, H, W, mask, a, b)
        tl.store(p_out + (i_b * C + k) * plane + o, b_out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def kernel_gradients_kernel(
    p_grad, p_image, p_seeds, p_weights, p_grad_seeds, p_grad_weights, C, H, W, SEEDS: tl.constexpr,
    RADIUS: tl.constexpr, RADII: tl.constexpr, FIRST: tl.constexpr, START: tl.constexpr, BELOW: tl.constexpr,
    FRACTION: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr, RING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the gradients of seeds and weights; reference.py has the formula."""
    i_b, plane, _, o, mask = _place(tl.cdiv(H * W, BLOCK), H, W, H, BLOCK)
    o_y, o_x = o // W, o % W
    # per class, the gradient times the class sum, over all channels
    b_g = ()
    for a in tl.static_range(RADIUS + 1):
        for b in tl.static_range(a + 1):
            b_sum = tl.zeros([BLOCK], dtype=tl.float32)
            for k in range(C):
                i_plane = (i_b * C + k) * plane
                b_grad = tl.load(p_grad + i_plane + o, mask=mask, other=0.0).to(tl.float32)
                b_sum += b_grad * _class_sum(p_image + i_plane, o_y, o_x, H, W, mask, a, b)
            b_g = b_g + (b_sum,)
    p_seeds += i_b * SEEDS * plane + o
    p_grad_seeds += i_b * SEEDS * plane + o
    p_weights += i_b * (len(RADII) + 1) * plane + o
    p_grad_weights += i_b * (len(RADII) + 1) * plane + o
    kept = p_grad_seeds.dtype.element_ty
    tl.store(p_grad_weights, b_g[0].to(kept), mask=mask)
    for n in tl.static_range(len(RADII)):
        b_e, b_reciprocal = _exponentials(p_seeds, plane, mask, n, RADII, FIRST, START, BELOW, FRACTION, TAPS, CORNERS)
        b_expected = tl.zeros([BLOCK], dtype=tl.float32)
        for c in tl.static_range(len(RING[n])):
            b_expected += b_e[RING[n][c]] * b_g[c]
        b_expected *= b_reciprocal
        tl.store(p_grad_weights + (n + 1) * plane, b_expected.to(kept), mask=mask)
        b_scale = tl.load(p_weights + (n + 1) * plane, mask=mask, other=0.0).to(tl.float32) * b_reciprocal
        b_carried = tl.zeros([BLOCK], dtype=tl.float32)  # what rings below a seed's distance give to it
        for k in tl.static_range(RADII[n] + 1):
            b_own, b_next = b_carried, tl.zeros([BLOCK], dtype=tl.float32)
            for r in tl.static_range(tl.constexpr(START[n]), tl.constexpr(START[n + 1])):
                if BELOW[r] == k:
                    b_q = tl.zeros([BLOCK], dtype=tl.float32)
                    for c in tl.static_range(len(RING[n])):
                        if RING[n][c] == r - START[n]:
                            b_q += b_g[c]
                    b_logit = b_scale * b_e[r - START[n]] * (b_q - TAPS[r] * b_expected)
                    b_own += (1.0 - FRACTION[r]) * b_logit
                    b_next += FRACTION[r] * b_logit
            o_seed = (FIRST[n] + k) * plane
            b_s = tl.load(p_seeds + o_seed, mask=mask, other=0.0).to(tl.float32)
            # |s| has derivative 0 at 0; the last case passes NaN on
            b_own = tl.where(b_s > 0, b_own, tl.where(b_s < 0, -b_own, b_s * b_own))
            tl.store(p_grad_seeds + o_seed, b_own.to(kept), mask=mask)
            b_carried = b_next


@triton.jit(do_not_specialize=["row", "rows"])
def coefficients_kernel(
    p_seeds, p_weights, p_coefficients, row, rows, H, W, SEEDS: tl.constexpr, RADIUS: tl.constexpr,
    RADII: tl.constexpr, FIRST: tl.constexpr, START: tl.constexpr, BELOW: tl.constexpr, FRACTION: tl.constexpr,
    TAPS: tl.constexpr, CORNERS: tl.constexpr, RING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Coefficients (B, classes, rows, W) of the rows [row, row + rows) of the frame."""
    CLASSES: tl.constexpr = (RADIUS + 1) * (RADIUS + 2) // 2
    i_b, plane, band, o, mask = _place(tl.cdiv(rows * W, BLOCK), H, W, rows, BLOCK)
    o_frame = row * W + o
    b_c = _coefficients(
        p_seeds + i_b * SEEDS * plane + o_frame, p_weights + i_b * (len(RADII) + 1) * plane + o_frame, plane, mask,
        RADIUS, RADII, FIRST, START, BELOW, FRACTION, TAPS, CORNERS, RING,
    )  # fmt: skip
    for c in tl.static_range(CLASSES):
        tl.store(p_coefficients + (i_b * CLASSES + c) * band + o, b_c[c], mask=mask)


@triton.jit(do_not_specialize=["first", "count", "row", "rows"])
def image_gradient_kernel(
    p_grad, p_coefficients, p_grad_image, first, count, row, rows, C, H, W, RADIUS: tl.constexpr, BLOCK: tl.constexpr
):
    """Rows [first, first + count) of the image's gradient; the coefficients begin at row ``row``."""
    CLASSES: tl.constexpr = (RADIUS + 1) * (RADIUS + 2) // 2
    i_channel, plane, _, o, mask = _place(tl.cdiv(count * W, BLOCK), H, W, count, BLOCK)
    band = tl.full((), 1, tl.int64) * rows * W
    o_y, o_x = first + o // W, o % W
    p_grad += i_channel * plane
    p_coefficients += i_channel // C * CLASSES * band
    b_out = tl.zeros([BLOCK], dtype=tl.float32)
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            i_a, i_b = tl.maximum(tl.abs(dy), tl.abs(dx)), tl.minimum(tl.abs(dy), tl.abs(dx))
            inside = mask & (o_y + dy >= 0) & (o_y + dy < H) & (o_x + dx >= 0) & (o_x + dx < W)
            p = p_coefficients + (i_a * (i_a + 1) // 2 + i_b) * band
            b_c = tl.load(p + (o_y + dy - row) * W + o_x + dx, mask=inside, other=0.0)
            b_g = tl.load(p_grad + (o_y + dy) * W + o_x + dx, mask=inside, other=0.0).to(tl.float32)
            b_out += b_c * b_g
    tl.store(p_grad_image + i_channel * plane + o_y * W + o_x, b_out.to(p_grad_image.dtype.element_ty), mask=mask)


_OPTIONS: dict[str, Any] = {"BLOCK": 128, "num_warps": 4, "enable_fp_fusion": True}
_LEAST_ROWS = 64  # of a band: the coefficients of 2 * radius more rows are computed again


def _grid(planes: int, rows: int, width: int) -> tuple[int]:
    """Return one axis over blocks of pixels and planes; offsets within a plane are 32-bit."""
    if rows * width > 2**31 - _OPTIONS["BLOCK"]:
        raise ValueError(f"triton: expected fewer than 2^31 pixels in image (B, C, H, W), got H, W = {rows}, {width}")
    return (planes * triton.cdiv(rows * width, _OPTIONS["BLOCK"]),)


def isotropic_reblur(image: Tensor, seeds: Tensor, weights: Tensor, kernel_sizes: Sequence[int]) -> Tensor:
    """Launch the forward kernel."""
    image, seeds, weights = (t.contiguous() for t in (image, seeds, weights))
    b, c, h, w = image.shape
    out = torch.empty_like(image)
    if out.numel():
        tables = _tables(kernel_sizes)
        with torch.cuda.device_of(image):
            reblur_kernel[_grid(b, h, w)](
                image, seeds, weights, out, c, h, w, SEEDS=seeds.shape[1], **tables, **_OPTIONS
            )
    return out


def isotropic_reblur_backward(
    grad: Tensor,
    image: Tensor,
    seeds: Tensor,
    weights: Tensor,
    kernel_sizes: Sequence[int],
    need_image: bool,
    need_kernels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels of the gradients that are needed."""
    grad, image, seeds, weights = (t.contiguous() for t in (grad, image, seeds, weights))
    b, c, h, w = image.shape
    tables = _tables(kernel_sizes)
    tables["SEEDS"] = seeds.shape[1]
    grad_image = torch.empty_like(image) if need_image else image.new_empty(0)
    grad_seeds = torch.empty_like(seeds) if need_kernels else image.new_empty(0)
    grad_weights = torch.empty_like(weights) if need_kernels else image.new_empty(0)
    if not image.numel():
        return grad_image, grad_seeds, grad_weights
    with torch.cuda.device_of(image):
        if need_kernels:
            results = (grad_seeds, grad_weights, c, h, w)
            kernel_gradients_kernel[_grid(b, h, w)](grad, image, seeds, weights, *results, **tables, **_OPTIONS)
        if need_image:
            radius = tables["RADIUS"]
            classes = len(symmetry.classes(radius))
            band = max(_BAND_BYTES // (b * classes * w * 4) - 2 * radius, _LEAST_ROWS)
            scratch = image.new_empty(b * classes * min(band + 2 * radius, h) * w, dtype=torch.float32)
            for first in range(0, h, band):
                count = min(band, h - first)
                row, end = max(first - radius, 0), min(first + count + radius, h)
                coefficients_kernel[_grid(b, end - row, w)](
                    seeds, weights, scratch, row, end - row, h, w, **tables, **_OPTIONS
                )
                image_gradient_kernel[_grid(b * c, count, w)](
                    grad, scratch, grad_image, first, count, row, end - row, c, h, w, RADIUS=radius, **_OPTIONS
                )
    return grad_image, grad_seeds, grad_weights
