"""Triton kernels of the isotropic blur: one pixel per lane, the coefficients of all classes of offsets in registers.

Forward: seeds and weights become one coefficient per class (symmetry.py), multiplied by the image summed over it.
Backward: the gradients of the coefficients read the image in the same way, and those of seeds and weights follow from
them. The gradient of the image gathers what the neighbors' kernels give, so coefficients are written to memory, too.
Both go through memory for one band of rows at a time: a band stays in the cache of the device, and no kernel is ever
held. No atomics: results do not depend on the order of blocks.

What is read around a pixel is copied once into float32 with zeros around it, in rows whose length kernels know when
they are compiled. No load then needs a mask or the calculation of an address.
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
def _place(H, W, rows, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Frame, H * W, row, column and mask of this program's tile of the first ``rows`` rows.

    Pixels beyond them, which are not stored, take the coordinates of the last row or column, so that no load needs a
    mask. The grid has one axis, because the others end at 65535.
    """
    columns = tl.cdiv(W, TILE_X)
    tiles = columns * tl.cdiv(rows, TILE_Y)
    i, o = tl.program_id(0), tl.arange(0, TILE_Y * TILE_X)
    o_y, o_x = i % tiles // columns * TILE_Y + o // TILE_X, i % columns * TILE_X + o % TILE_X
    mask = (o_y < rows) & (o_x < W)
    one = tl.full((), 1, tl.int64)  # where H and W are 1 they are compile-time numbers, which have no dtype
    return (i // tiles).to(tl.int64), one * H * W, tl.minimum(o_y, rows - 1), tl.minimum(o_x, W - 1), mask


@triton.jit
def _exponentials(
    p_seeds, plane, N: tl.constexpr, RADII: tl.constexpr, FIRST: tl.constexpr, START: tl.constexpr,
    BELOW: tl.constexpr, FRACTION: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr,
):  # fmt: skip
    """Exponentials of the logits of branch N, ring by ring, the corners last, and 1 / (their sum over all taps)."""
    b_s = (tl.abs(tl.load(p_seeds + FIRST[N] * plane).to(tl.float32)),)
    b_peak = b_s[0]
    for k in tl.static_range(1, RADII[N] + 1):
        b_s = b_s + (tl.abs(tl.load(p_seeds + (FIRST[N] + k) * plane).to(tl.float32)),)
        b_peak = tl.maximum(b_peak, b_s[k])
    b_a = ()  # powers of two cost one multiplication per seed instead of one per exponential
    for k in tl.static_range(RADII[N] + 1):
        b_a = b_a + ((b_s[k] - b_peak) * 1.4426950408889634,)
    b_d = ()
    for k in tl.static_range(tl.constexpr(RADII[N])):
        b_d = b_d + (b_a[k + 1] - b_a[k],)
    b_corner = tl.exp2(b_peak * -1.4426950408889634)
    b_sum = CORNERS[N] * b_corner
    b_e = ()
    for r in tl.static_range(tl.constexpr(START[N]), tl.constexpr(START[N + 1])):
        b_logit = b_a[BELOW[r]]
        if FRACTION[r] > 0:
            b_logit += FRACTION[r] * b_d[BELOW[r]]
        b_ring = tl.exp2(b_logit)
        b_e = b_e + (b_ring,)
        b_sum += TAPS[r] * b_ring
    return b_e + (b_corner,), 1.0 / b_sum


@triton.jit
def _coefficients(
    p_seeds, p_weights, plane, RADIUS: tl.constexpr, RADII: tl.constexpr, FIRST: tl.constexpr,
    START: tl.constexpr, BELOW: tl.constexpr, FRACTION: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """Return the mixed kernel of every pixel: one coefficient per class."""
    CLASSES: tl.constexpr = (RADIUS + 1) * (RADIUS + 2) // 2
    b_c = (tl.load(p_weights).to(tl.float32),)
    for _ in tl.static_range(CLASSES - 1):
        b_c = b_c + (tl.zeros_like(b_c[0]),)
    for n in tl.static_range(len(RADII)):
        b_e, b_scale = _exponentials(p_seeds, plane, n, RADII, FIRST, START, BELOW, FRACTION, TAPS, CORNERS)
        b_scale *= tl.load(p_weights + (n + 1) * plane).to(tl.float32)
        b_sum = ()
        for c in tl.static_range(CLASSES):
            if c < len(RING[n]):
                b_sum = b_sum + (b_c[c] + b_scale * b_e[RING[n][c]],)
            else:
                b_sum = b_sum + (b_c[c],)
        b_c = b_sum
    return b_c


@triton.jit
def _padded_offset(i_b, o_y, o_x, H, RADIUS: tl.constexpr, PITCH: tl.constexpr):
    """Offset of pixels of the first channel in a padded image, (B, H + 2 RADIUS, C, PITCH / C)."""
    return (i_b * (H + 2 * RADIUS) + o_y + RADIUS) * PITCH + o_x + RADIUS


@triton.jit
def _rows_of(p, RADIUS: tl.constexpr, PITCH: tl.constexpr):
    """Pointers to the rows -RADIUS .. RADIUS around pixels of a padded image."""
    p_rows = ()
    for dy in tl.static_range(-RADIUS, RADIUS + 1):
        p_rows = p_rows + (p + dy * PITCH,)
    return p_rows


@triton.jit
def _class_sum(p_rows, RADIUS: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """Sum over the class (A, B)."""
    b_sum = tl.load(p_rows[RADIUS + A] + B)
    if A > 0:
        b_sum += tl.load(p_rows[RADIUS - A] - B)
        b_sum += tl.load(p_rows[RADIUS - B] + A) + tl.load(p_rows[RADIUS + B] - A)
    if A > B:
        if B > 0:
            b_sum += tl.load(p_rows[RADIUS + A] - B) + tl.load(p_rows[RADIUS - A] + B)
            b_sum += tl.load(p_rows[RADIUS + B] + A) + tl.load(p_rows[RADIUS - B] - A)
    return b_sum


@triton.jit
def reblur_kernel(
    p_image, p_seeds, p_weights, p_out, C, H, W, SEEDS: tl.constexpr, RADIUS: tl.constexpr, RADII: tl.constexpr,
    FIRST: tl.constexpr, START: tl.constexpr, BELOW: tl.constexpr, FRACTION: tl.constexpr, TAPS: tl.constexpr,
    CORNERS: tl.constexpr, RING: tl.constexpr, PITCH: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Out = sum over classes of coefficient x class sum of the image, which is padded."""
    i_b, plane, o_y, o_x, mask = _place(H, W, H, TILE_Y, TILE_X)
    o = o_y * W + o_x
    b_c = _coefficients(
        p_seeds + i_b * SEEDS * plane + o, p_weights + i_b * (len(RADII) + 1) * plane + o, plane, RADIUS, RADII,
        FIRST, START, BELOW, FRACTION, TAPS, CORNERS, RING,
    )  # fmt: skip
    p_pixel = p_image + _padded_offset(i_b, o_y, o_x, H, RADIUS, PITCH)
    for k in range(C):
        p_rows = _rows_of(p_pixel + k * (PITCH // C), RADIUS, PITCH)
        b_out = tl.zeros([TILE_Y * TILE_X], dtype=tl.float32)
        for a in tl.static_range(RADIUS + 1):
            for b in tl.static_range(a + 1):
                b_out += b_c[a * (a + 1) // 2 + b] * _class_sum(p_rows, RADIUS, a, b)
        tl.store(p_out + (i_b * C + k) * plane + o, b_out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["row", "rows"])
def correlation_kernel(
    p_grad, p_image, p_scratch, row, rows, C, H, W, RADIUS: tl.constexpr, PITCH: tl.constexpr, TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):  # fmt: skip
    """Gradient in the coefficient of each class, (B, rows, classes, W), of the rows [row, row + rows) of the frame.

    It is the class sum of the image, which is padded, times the gradient, summed over the channels.
    """
    CLASSES: tl.constexpr = (RADIUS + 1) * (RADIUS + 2) // 2
    i_b, plane, o_y, o_x, mask = _place(H, W, rows, TILE_Y, TILE_X)
    p_grad += i_b * C * plane + (row + o_y) * W + o_x
    p_pixel = p_image + _padded_offset(i_b, row + o_y, o_x, H, RADIUS, PITCH)
    b_sums = ()
    for _ in tl.static_range(CLASSES):
        b_sums = b_sums + (tl.zeros([TILE_Y * TILE_X], dtype=tl.float32),)
    for k in range(C):
        b_grad = tl.load(p_grad + k * plane).to(tl.float32)
        p_rows = _rows_of(p_pixel + k * (PITCH // C), RADIUS, PITCH)
        b_next = ()
        for a in tl.static_range(RADIUS + 1):
            for b in tl.static_range(a + 1):
                b_next = b_next + (b_sums[a * (a + 1) // 2 + b] + b_grad * _class_sum(p_rows, RADIUS, a, b),)
        b_sums = b_next
    p_scratch += (i_b * rows + o_y) * CLASSES * W + o_x
    for c in tl.static_range(CLASSES):
        tl.store(p_scratch + c * W, b_sums[c], mask=mask)


@triton.jit(do_not_specialize=["row", "rows"])
def kernel_gradients_kernel(
    p_scratch, p_seeds, p_weights, p_grad_seeds, p_grad_weights, row, rows, H, W, SEEDS: tl.constexpr,
    RADIUS: tl.constexpr, RADII: tl.constexpr, FIRST: tl.constexpr, START: tl.constexpr, BELOW: tl.constexpr,
    FRACTION: tl.constexpr, TAPS: tl.constexpr, CORNERS: tl.constexpr, RING: tl.constexpr, TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):  # fmt: skip
    """Return the gradients of seeds and weights in rows [row, row + rows) from that of the coefficients.

    reference.py has the formula.
    """
    CLASSES: tl.constexpr = (RADIUS + 1) * (RADIUS + 2) // 2
    i_b, plane, o_y, o_x, mask = _place(H, W, rows, TILE_Y, TILE_X)
    p_scratch += (i_b * rows + o_y) * CLASSES * W + o_x
    b_g = ()
    for c in tl.static_range(CLASSES):
        b_g = b_g + (tl.load(p_scratch + c * W),)
    o = (row + o_y) * W + o_x
    p_seeds += i_b * SEEDS * plane + o
    p_grad_seeds += i_b * SEEDS * plane + o
    p_weights += i_b * (len(RADII) + 1) * plane + o
    p_grad_weights += i_b * (len(RADII) + 1) * plane + o
    kept = p_grad_seeds.dtype.element_ty
    tl.store(p_grad_weights, b_g[0].to(kept), mask=mask)
    for n in tl.static_range(len(RADII)):
        b_e, b_reciprocal = _exponentials(p_seeds, plane, n, RADII, FIRST, START, BELOW, FRACTION, TAPS, CORNERS)
        b_expected = tl.zeros_like(b_reciprocal)
        for c in tl.static_range(len(RING[n])):
            b_expected += b_e[RING[n][c]] * b_g[c]
        b_expected *= b_reciprocal
        tl.store(p_grad_weights + (n + 1) * plane, b_expected.to(kept), mask=mask)
        b_scale = tl.load(p_weights + (n + 1) * plane).to(tl.float32) * b_reciprocal
        b_carried = tl.zeros_like(b_reciprocal)  # what rings below a seed's distance give to it
        for k in tl.static_range(RADII[n] + 1):
            b_own, b_next = b_carried, tl.zeros_like(b_reciprocal)
            for r in tl.static_range(tl.constexpr(START[n]), tl.constexpr(START[n + 1])):
                if BELOW[r] == k:
                    b_q = tl.zeros_like(b_reciprocal)
                    for c in tl.static_range(len(RING[n])):
                        if RING[n][c] == r - START[n]:
                            b_q += b_g[c]
                    b_logit = b_scale * b_e[r - START[n]] * (b_q - TAPS[r] * b_expected)
                    b_own += (1.0 - FRACTION[r]) * b_logit
                    b_next += FRACTION[r] * b_logit
            o_seed = (FIRST[n] + k) * plane
            b_s = tl.load(p_seeds + o_seed).to(tl.float32)
            # |s| has derivative 0 at 0; the last case passes NaN on
            b_own = tl.where(b_s > 0, b_own, tl.where(b_s < 0, -b_own, b_s * b_own))
            tl.store(p_grad_seeds + o_seed, b_own.to(kept), mask=mask)
            b_carried = b_next


@triton.jit(do_not_specialize=["row", "rows"])
def coefficients_kernel(
    p_seeds, p_weights, p_scratch, row, rows, stride, H, W, SEEDS: tl.constexpr, RADIUS: tl.constexpr,
    RADII: tl.constexpr, FIRST: tl.constexpr, START: tl.constexpr, BELOW: tl.constexpr, FRACTION: tl.constexpr,
    TAPS: tl.constexpr, CORNERS: tl.constexpr, RING: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Coefficients of the rows [row, row + rows), zero in those outside the frame: (B, rows, quadrant, stride).

    The quadrant is every distance in rows and columns, so that the offset of a tap's coefficient is linear in both.
    """
    SIDE: tl.constexpr = RADIUS + 1
    i_b, plane, o_y, o_x, mask = _place(H, W, rows, TILE_Y, TILE_X)
    o_row = tl.minimum(tl.maximum(row + o_y, 0), H - 1)
    o = o_row * W + o_x
    b_c = _coefficients(
        p_seeds + i_b * SEEDS * plane + o, p_weights + i_b * (len(RADII) + 1) * plane + o, plane, RADIUS, RADII,
        FIRST, START, BELOW, FRACTION, TAPS, CORNERS, RING,
    )  # fmt: skip
    p_scratch += (i_b * rows + o_y) * SIDE * SIDE * stride + o_x + RADIUS
    for a in tl.static_range(SIDE):
        for b in tl.static_range(a + 1):
            # the gradient is zero outside the frame: times an infinite coefficient of the last row it would be NaN
            b_k = tl.where(o_row == row + o_y, b_c[a * (a + 1) // 2 + b], 0.0)
            tl.store(p_scratch + (a * SIDE + b) * stride, b_k, mask=mask)
            if a != b:
                tl.store(p_scratch + (b * SIDE + a) * stride, b_k, mask=mask)


@triton.jit(do_not_specialize=["row", "rows"])
def image_gradient_kernel(
    p_grad, p_scratch, p_grad_image, row, rows, H, W, C: tl.constexpr, GROUP: tl.constexpr, RADIUS: tl.constexpr,
    PITCH: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Rows [row, row + rows) of the image's gradient; ``grad`` is padded, and coefficients begin RADIUS rows before."""
    SIDE: tl.constexpr = RADIUS + 1
    STRIDE: tl.constexpr = PITCH // C
    i_b, plane, o_y, o_x, mask = _place(H, W, rows, TILE_Y, TILE_X)
    p_column = p_scratch + (i_b * (rows + 2 * RADIUS) + o_y) * (SIDE * SIDE * STRIDE)
    p_column += RADIUS * SIDE * STRIDE + o_x + RADIUS  # of distance RADIUS in rows, in the first row of the window
    p_pixel = p_grad + _padded_offset(i_b, row + o_y - RADIUS, o_x, H, RADIUS, PITCH)
    p_grad_image += i_b * C * plane + (row + o_y) * W + o_x
    for k in range(0, C, GROUP):
        b_sums = ()
        for _ in tl.static_range(GROUP):
            b_sums = b_sums + (tl.zeros([TILE_Y * TILE_X], dtype=tl.float32),)
        p_row, p_k = p_pixel + k * STRIDE, p_column
        for dy in range(-RADIUS, RADIUS + 1):
            for dx in tl.static_range(-RADIUS, RADIUS + 1):
                if dx < 0:
                    b_k = tl.load(p_k + (dx - dx * STRIDE))
                else:
                    b_k = tl.load(p_k + (dx + dx * STRIDE))
                b_next = ()
                for g in tl.static_range(GROUP):
                    b_next = b_next + (b_sums[g] + b_k * tl.load(p_row + (g * STRIDE + dx)),)
                b_sums = b_next
            p_row += PITCH
            p_k += SIDE * SIDE * STRIDE + tl.where(dy < 0, -SIDE * STRIDE, SIDE * STRIDE)
        for g in tl.static_range(GROUP):
            tl.store(p_grad_image + (k + g) * plane, b_sums[g].to(p_grad_image.dtype.element_ty), mask=mask)


_TILE = {"TILE_Y": 8, "TILE_X": 32}
_OPTIONS: dict[str, Any] = {**_TILE, "num_warps": 8, "enable_fp_fusion": True}
_LEAST_ROWS = 64  # of a band: the coefficients of 2 * radius more rows are computed again
_STRIDE = 64  # padded rows are multiples of so many pixels: kernels are compiled for a length of row


def _grid(frames: int, rows: int, width: int) -> tuple[int]:
    """Return one axis over tiles of pixels and frames."""
    return (frames * triton.cdiv(rows, _TILE["TILE_Y"]) * triton.cdiv(width, _TILE["TILE_X"]),)


def _padded(image: Tensor, radius: int) -> Tensor:
    """Return the image in float32 with zeros around it, (B, H + 2 radius, C, W + 2 radius or more)."""
    b, c, h, w = image.shape
    if h * w > 2**31 - _TILE["TILE_Y"] * _TILE["TILE_X"]:
        raise ValueError(f"triton: expected fewer than 2^31 pixels in image (B, C, H, W), got H, W = {h}, {w}")
    stride = triton.cdiv(w + 2 * radius, _STRIDE) * _STRIDE
    padded = image.new_zeros(b, h + 2 * radius, c, stride, dtype=torch.float32)
    padded[:, radius : radius + h, :, radius : radius + w].copy_(image.transpose(1, 2))
    return padded


def isotropic_reblur(image: Tensor, seeds: Tensor, weights: Tensor, kernel_sizes: Sequence[int]) -> Tensor:
    """Launch the forward kernel."""
    seeds, weights = seeds.contiguous(), weights.contiguous()
    b, c, h, w = image.shape
    out = torch.empty_like(image, memory_format=torch.contiguous_format)
    if out.numel():
        tables = _tables(kernel_sizes)
        with torch.cuda.device_of(image):
            padded = _padded(image, tables["RADIUS"])
            reblur_kernel[_grid(b, h, w)](
                padded, seeds, weights, out, c, h, w, SEEDS=seeds.shape[1], PITCH=padded.stride(1), **tables, **_OPTIONS
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
    """Launch the kernels of the gradients that are needed, two for each band of rows."""
    grad, image, seeds, weights = (t.contiguous() for t in (grad, image, seeds, weights))
    b, c, h, w = image.shape
    tables = _tables(kernel_sizes)
    radius, tables["SEEDS"] = tables["RADIUS"], seeds.shape[1]
    grad_image = torch.empty_like(image) if need_image else image.new_empty(0)
    grad_seeds = torch.empty_like(seeds) if need_kernels else image.new_empty(0)
    grad_weights = torch.empty_like(weights) if need_kernels else image.new_empty(0)
    if not image.numel():
        return grad_image, grad_seeds, grad_weights
    with torch.cuda.device_of(image):
        if need_kernels:
            padded, classes = _padded(image, radius), len(symmetry.classes(radius))
            band = min(max(_BAND_BYTES // (b * classes * w * 4), _LEAST_ROWS), h)
            scratch = image.new_empty(b * classes * band * w, dtype=torch.float32)
            for row in range(0, h, band):
                rows = min(band, h - row)
                correlation_kernel[_grid(b, rows, w)](
                    grad, padded, scratch, row, rows, c, h, w, RADIUS=radius, PITCH=padded.stride(1), **_OPTIONS
                )
                kernel_gradients_kernel[_grid(b, rows, w)](
                    scratch, seeds, weights, grad_seeds, grad_weights, row, rows, h, w, **tables, **_OPTIONS
                )
        if need_image:
            padded, quadrant = _padded(grad, radius), (radius + 1) ** 2
            stride = padded.shape[3]
            band = min(max(_BAND_BYTES // (b * quadrant * stride * 4) - 2 * radius, _LEAST_ROWS), h)
            scratch = image.new_zeros(b * quadrant * (band + 2 * radius) * stride, dtype=torch.float32)
            group = next(n for n in (4, 3, 2, 1) if c % n == 0)
            for row in range(0, h, band):
                rows = min(band, h - row)
                coefficients_kernel[_grid(b, rows + 2 * radius, w)](
                    seeds, weights, scratch, row - radius, rows + 2 * radius, stride, h, w, **tables, **_OPTIONS
                )
                image_gradient_kernel[_grid(b, rows, w)](
                    padded, scratch, grad_image, row, rows, h, w, C=c, GROUP=group, RADIUS=radius,
                    PITCH=padded.stride(1), **_OPTIONS,
                )  # fmt: skip
    return grad_image, grad_seeds, grad_weights
