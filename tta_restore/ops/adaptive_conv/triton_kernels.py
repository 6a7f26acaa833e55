"""Triton kernels of the adaptive convolutions: all steps of a channel, or one step of all, forward and backward.

Pixels of one channel lie on the lanes. A step is one pass over its filters: where it is a launch of its own,
intermediate values of neighbors are recomputed from cache lines that are in L1 already. No atomics: results do not
depend on the order of blocks.

Names: ``p_`` pointers, ``o_`` offsets, ``m_`` masks, ``b_`` blocks of values. A channel's planes are H * W apart;
offsets between channels, steps and frames are 64-bit, within a plane 32-bit.
"""
# pyrefly: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(C, H, W, BLOCK: tl.constexpr):
    """Frame, channel and H * W, all 64-bit, then this block's pixels with their coordinates and mask."""
    blocks = tl.cdiv(H * W, BLOCK)
    i = tl.program_id(0)
    o = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
    i_channel = (i // blocks).to(tl.int64)
    plane = tl.full((), 1, tl.int64) * H * W
    return i_channel // C, i_channel % C, plane, o, o // W, o % W, o < H * W


@triton.jit
def _clamped(o, size):
    return tl.minimum(tl.maximum(o, 0), size - 1)


@triton.jit
def _columns_filtered(p_u, p_taps, plane, o_y, o_x, m, H, W, KS: tl.constexpr):
    """Return the vertical pass at pixels (o_y, o_x)."""
    b_v = tl.zeros(o_x.shape, tl.float32)
    for t in tl.static_range(KS):
        b_u = tl.load(p_u + _clamped(o_y + t - KS // 2, H) * W + o_x, mask=m, other=0.0).to(tl.float32)
        b_v += tl.load(p_taps + t * plane + o_y * W + o_x, mask=m, other=0.0).to(tl.float32) * b_u
    return b_v


@triton.jit
def _before_activation(p_grad, p_out, o, m, slope):
    """Return the gradient in z where that in leaky_relu(z) is given, the sign of z being that of the output."""
    b_g = tl.load(p_grad + o, mask=m, other=0.0).to(tl.float32)
    return tl.where(tl.load(p_out + o, mask=m, other=0.0).to(tl.float32) > 0, b_g, b_g * slope)


@triton.jit(do_not_specialize=["n"])
def step_kernel(
    p_u, p_vertical, p_horizontal, p_bias, p_out, C, H, W, u_frame, taps_frame, bias_frame, out_frame, n, slope,
    KS: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step n: out = leaky_relu(H V u + bias); ``slope`` 1 is no activation.

    ``*_frame`` are distances between frames; steps of taps are 2 * C * KS planes apart, those of the bias C planes.
    """
    i_b, i_c, plane, o, o_y, o_x, m = _place(C, H, W, BLOCK)
    p_u += i_b * u_frame + i_c * plane
    o_taps = i_b * taps_frame + (2 * n * C + i_c) * KS * plane
    p_vertical += o_taps
    p_horizontal += o_taps
    b_z = tl.zeros((BLOCK,), tl.float32)
    if BIAS:
        b_z += tl.load(p_bias + i_b * bias_frame + (n * C + i_c) * plane + o, mask=m, other=0.0).to(tl.float32)
    for t in range(KS):
        o_source = _clamped(o_x + t - KS // 2, W)
        b_v = _columns_filtered(p_u, p_vertical, plane, o_y, o_source, m, H, W, KS)
        b_z += tl.load(p_horizontal + t * plane + o, mask=m, other=0.0).to(tl.float32) * b_v
    b_z = tl.where(b_z > 0, b_z, b_z * slope)
    p_out += i_b * out_frame + i_c * plane
    tl.store(p_out + o, b_z.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def _channel_columns(p_u, p_v, p_taps, plane, W, KS: tl.constexpr, BLOCK: tl.constexpr):
    """Write V u, the vertical pass over one channel. Taps are read once, 16 bytes at a time, and stay in no cache."""
    for start in range(0, plane, BLOCK):
        o = start + tl.arange(0, BLOCK)
        m = o < plane
        b_v = tl.zeros((BLOCK,), tl.float32)
        for t in tl.static_range(KS):
            o_t = o  # moved row by row up to the border, without a division
            for _ in tl.static_range(KS // 2 - t):
                o_t = tl.where(o_t < W, o_t, o_t - W)
            for _ in tl.static_range(t - KS // 2):
                o_t = tl.where(o_t >= plane - W, o_t, o_t + W)
            b_tap = tl.load(p_taps + t * plane.to(tl.int64) + o, mask=m, other=0.0, eviction_policy="evict_first")
            b_v += b_tap.to(tl.float32) * tl.load(p_u + o_t, mask=m, other=0.0).to(tl.float32)
        tl.store(p_v + o, b_v, mask=m)


@triton.jit(do_not_specialize=["C", "plane8", "x_planes", "taps_planes", "bias_planes", "out_planes", "n", "steps"])
def channel_kernel(
    p_x, p_vertical, p_horizontal, p_bias, p_states, p_scratch, p_out, C, W, plane8, x_planes, taps_planes,
    bias_planes, out_planes, n, steps, slope, last_slope,
    KS: tl.constexpr, BIAS: tl.constexpr, SAVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run ``steps`` steps from step n on, for one channel of one frame per program.

    The passes of a step alternate on two float32 planes of scratch that no other program touches; the barrier between
    them orders global memory within a program. ``plane8`` is H * W / 8: Triton then concludes that every plane starts
    at a multiple of 16 bytes. ``*_planes`` are distances between frames. With SAVE, the states between the steps are
    written to (B, steps - 1, C, H, W). ``last_slope`` belongs to the last step.
    """
    plane = plane8 * 8
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    p_x += (i_b * x_planes + i_c) * plane
    p_out += (i_b * out_planes + i_c) * plane
    p_v = p_scratch + i * plane
    p_u = p_v + tl.num_programs(0).to(tl.int64) * plane  # unused, and not there, if it is one step
    p_states += (i_b * (steps - 1) * C + i_c) * plane
    o_taps = (i_b * taps_planes + (2 * n * C + i_c) * KS) * plane
    p_vertical += o_taps
    p_horizontal += o_taps
    p_bias += (i_b * bias_planes + n * C + i_c) * plane
    step_taps = i * 0 + 2 * C * KS  # planes between two steps, 64-bit
    _channel_columns(p_x, p_v, p_vertical, plane, W, KS, BLOCK)
    for k in range(steps):
        tl.debug_barrier()
        p_step = p_horizontal + k * step_taps * plane
        step_slope = tl.where(k == steps - 1, last_slope, slope)
        for start in range(0, plane, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m = o < plane
            o_x = o % W
            b_z = tl.zeros((BLOCK,), tl.float32)
            if BIAS:
                p = p_bias + k * C * plane.to(tl.int64) + o
                b_z += tl.load(p, mask=m, other=0.0, eviction_policy="evict_first").to(tl.float32)
            for t in tl.static_range(KS):
                if t < KS // 2:
                    o_t = o - tl.minimum(o_x, KS // 2 - t)
                elif t > KS // 2:
                    o_t = o + tl.minimum(W - 1 - o_x, t - KS // 2)
                else:
                    o_t = o  # as it is, so that this load is of 16 bytes, too
                b_tap = tl.load(p_step + t * plane.to(tl.int64) + o, mask=m, other=0.0, eviction_policy="evict_first")
                b_z += b_tap.to(tl.float32) * tl.load(p_v + o_t, mask=m, other=0.0)
            b_z = tl.where(b_z > 0, b_z, b_z * step_slope)
            if k == steps - 1:
                tl.store(p_out + o, b_z.to(p_out.dtype.element_ty), mask=m)
            else:
                tl.store(p_u + o, b_z, mask=m)
                if SAVE:
                    tl.store(p_states + k * C * plane.to(tl.int64) + o, b_z, mask=m)
        if k < steps - 1:
            tl.debug_barrier()
            _channel_columns(p_u, p_v, p_vertical + (k + 1) * step_taps * plane, plane, W, KS, BLOCK)


@triton.jit
def _plus_at(b_sum, p, o, p_taps, o_taps, m):
    """Add values at ``o`` times taps at ``o_taps``: those of neighbors, whose cache lines other loads brought."""
    b = tl.load(p + o, mask=m, other=0.0).to(tl.float32)
    return b_sum + b * tl.load(p_taps + o_taps, mask=m, other=0.0).to(tl.float32)


@triton.jit
def _stream(p, b, m):
    """Store what is not read again."""
    tl.store(p, b.to(p.dtype.element_ty), mask=m, eviction_policy="evict_first")


@triton.jit
def _channel_rows_backward(
    p_s, g, m, v, p_taps, g_done, m_done, p_u, p_grad_vertical, p_grad_horizontal, p_grad_bias, plane, W,
    GATHER: tl.constexpr, DONE: tl.constexpr, OWN: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row pass over one channel: with GATHER, ``m = H^T g``; with DONE, gradients of the taps of the step before.

    What a tap read from beyond a border, where no neighbor is, the pixel at the border gets from its own taps.
    Without OWN the gradients of both passes are one, whose vertical part waits in ``m_done``; ``u`` is that step's.
    """
    o_x = tl.arange(0, BLOCK) % W  # moved from block to block, without a division
    for start in range(0, plane, BLOCK):
        o = start + tl.arange(0, BLOCK)
        mask = o < plane
        o_left, o_right = o - tl.minimum(o_x, 1), o + tl.minimum(W - 1 - o_x, 1)
        if GATHER:
            b_m = tl.load(p_taps + plane + o, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
            b_m *= tl.load(p_s + g + o, mask=mask, other=0.0)
            b_m = _plus_at(b_m, p_s, g + o_left, p_taps, tl.where(o_x > 0, o_left + 2 * plane, o), mask)
            b_m = _plus_at(b_m, p_s, g + o_right, p_taps, tl.where(o_x < W - 1, o_right, o + 2 * plane), mask)
            tl.store(p_s + m + o, b_m, mask=mask)
        if DONE:
            b_g = tl.load(p_s + g_done + o, mask=mask, other=0.0)
            if BIAS:
                _stream(p_grad_bias + o, b_g, mask)
            for t in tl.static_range(3):
                o_t, o_row = o, o
                if t == 0:
                    o_t, o_row = o_left, tl.where(o < W, o, o - W)
                elif t == 2:
                    o_t, o_row = o_right, tl.where(o >= plane - W, o, o + W)
                b_tap = b_g * tl.load(p_s + v + o_t, mask=mask, other=0.0)
                if OWN:
                    _stream(p_grad_horizontal + t * plane + o, b_tap, mask)
                else:
                    b_u = tl.load(p_u + o_row, mask=mask, other=0.0).to(tl.float32)
                    b_tap += tl.load(p_s + m_done + o, mask=mask, other=0.0) * b_u
                    _stream(p_grad_vertical + t * plane + o, b_tap, mask)
        o_x += BLOCK % W
        o_x = tl.where(o_x >= W, o_x - W, o_x)


@triton.jit
def _channel_columns_backward(
    p_s, m, v, p_taps, p_u, p_g, p_grad_taps, plane, W, slope,
    ACTIVATED: tl.constexpr, TAPS: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Column pass over one channel: ``g = V^T m``; with TAPS, ``v = V u`` and, with OWN, the gradient of the taps.

    With ACTIVATED, ``u`` is the output of a leaky_relu, and ``g`` becomes the gradient before it.
    """
    for start in range(0, plane, BLOCK):
        o = start + tl.arange(0, BLOCK)
        mask = o < plane
        o_above, o_below = tl.where(o < W, o, o - W), tl.where(o >= plane - W, o, o + W)
        b_m = tl.load(p_s + m + o, mask=mask, other=0.0)
        b_tap = tl.load(p_taps + plane + o, mask=mask, other=0.0).to(tl.float32)
        b_g = b_m * b_tap
        if TAPS or ACTIVATED:
            b_u = tl.load(p_u + o, mask=mask, other=0.0).to(tl.float32)
        b_g = _plus_at(b_g, p_s, m + o_above, p_taps, tl.where(o < W, o, o_above + 2 * plane), mask)
        b_g = _plus_at(b_g, p_s, m + o_below, p_taps, tl.where(o >= plane - W, o + 2 * plane, o_below), mask)
        if TAPS:
            b_v = b_tap * b_u
            for t in tl.static_range(3):
                b_row = b_u
                if t != 1:
                    o_row = o_above if t == 0 else o_below
                    b_row = tl.load(p_u + o_row, mask=mask, other=0.0).to(tl.float32)
                    b_v += b_row * tl.load(p_taps + t * plane + o, mask=mask, other=0.0).to(tl.float32)
                if OWN:
                    _stream(p_grad_taps + t * plane + o, b_m * b_row, mask)
            tl.store(p_s + v + o, b_v, mask=mask)
        if ACTIVATED:
            b_g = tl.where(b_u > 0, b_g, b_g * slope)
        tl.store(p_g + o, b_g.to(p_g.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["C", "plane8", "out_planes", "x_planes", "taps_planes", "steps"])
def channel_backward_kernel(
    p_grad, p_out, p_x, p_states, p_vertical, p_horizontal, p_scratch, p_grad_x, p_grad_vertical, p_grad_horizontal,
    p_grad_bias, C, W, plane8, out_planes, x_planes, taps_planes, steps, slope, last_slope,
    TAPS: tl.constexpr, OWN: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the backward of all steps, last one first, for one channel of one frame per program; for 3 taps.

    ``grad`` is the gradient in the output ``out``, of whose activation ``last_slope`` is the slope; ``states``
    (B, steps - 1, C, H, W) are the inputs of all steps but the first. A step is a row pass from g to m, then a column
    pass from m to the g of the step before, which also makes v, what the forward's row pass read. The horizontal taps'
    gradient needs v of neighbors, so that the row pass after that writes it. Scratch, float32, are the planes m, g and,
    with TAPS, v and another g, without OWN another m: those of two steps are in use at once. Offsets within a
    channel's scratch and taps are 32-bit.
    """
    plane = plane8 * 8
    i = tl.program_id(0).to(tl.int64)
    i_b, i_c = i // C, i % C
    g, v, turn_g, turn_m = plane, 2 * plane, 0, 0  # m is the first plane; from the g and m of a step to the others
    if TAPS:
        turn_g += 2 * plane
        if not OWN:
            turn_m += 4 * plane
        p_s = p_scratch + i * (4 if OWN else 5) * plane
    else:
        p_s = p_scratch + i * 2 * plane
    p_grad += i * plane
    p_grad_x += i * plane
    p_out += (i_b * out_planes + i_c) * plane
    p_x += (i_b * x_planes + i_c) * plane
    p_states += (i_b * (steps - 1) * C + i_c) * plane
    o_step = (i * 0 + 2 * C * 3) * plane
    o_taps = (i_b * taps_planes + i_c * 3) * plane + (steps - 1) * o_step
    p_vertical += o_taps
    p_horizontal += o_taps
    p_grad_vertical += o_taps
    p_grad_horizontal += o_taps
    o_bias = (i * 0 + C) * plane
    p_grad_bias += (i_b * taps_planes + i_c) * plane + (steps - 1) * o_bias
    for start in range(0, plane, BLOCK):
        o = start + tl.arange(0, BLOCK)
        tl.store(p_s + g + o, _before_activation(p_grad, p_out, o, o < plane, last_slope), mask=o < plane)
    tl.debug_barrier()
    _channel_rows_backward(
        p_s, g, 0, v, p_horizontal, g, 0, p_x, p_grad_vertical, p_grad_horizontal, p_grad_bias, plane, W,
        True, False, OWN, BIAS, BLOCK,
    )  # fmt: skip
    for k in range(steps - 1):
        now, then = k % 2, (k + 1) % 2
        p_u = p_states + (steps - 2 - k) * o_bias
        o_k = k * o_step
        tl.debug_barrier()
        _channel_columns_backward(
            p_s, now * turn_m, v, p_vertical - o_k, p_u, p_s + g + then * turn_g, p_grad_vertical - o_k, plane, W,
            slope, True, TAPS, OWN, BLOCK,
        )  # fmt: skip
        tl.debug_barrier()
        _channel_rows_backward(
            p_s, g + then * turn_g, then * turn_m, v, p_horizontal - o_k - o_step, g + now * turn_g, now * turn_m, p_u,
            p_grad_vertical - o_k, p_grad_horizontal - o_k, p_grad_bias - k * o_bias, plane, W,
            True, TAPS, OWN, BIAS, BLOCK,
        )  # fmt: skip
    now = (steps - 1) % 2
    o_k = (steps - 1) * o_step
    tl.debug_barrier()
    _channel_columns_backward(
        p_s, now * turn_m, v, p_vertical - o_k, p_x, p_grad_x, p_grad_vertical - o_k, plane, W, slope,
        False, TAPS, OWN, BLOCK,
    )  # fmt: skip
    if TAPS:
        tl.debug_barrier()
        _channel_rows_backward(
            p_s, g, 0, v, p_horizontal, g + now * turn_g, now * turn_m, p_x, p_grad_vertical - o_k,
            p_grad_horizontal - o_k, p_grad_bias - (steps - 1) * o_bias, plane, W,
            False, True, OWN, BIAS, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def rows_backward_kernel(
    p_grad, p_out, p_horizontal, p_middle, C, H, W, out_frame, taps_frame, n, slope,
    KS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the gradient between the passes: what the horizontal pass of step n read from each pixel, gathered.

    ``grad`` is the gradient in the step's output ``out``; it and the result, ``middle``, are (B, C, H, W).
    """
    i_b, i_c, plane, o, _, o_x, m = _place(C, H, W, BLOCK)
    o_plane = (i_b * C + i_c) * plane
    p_grad += o_plane
    p_out += i_b * out_frame + i_c * plane
    p_horizontal += i_b * taps_frame + (2 * n * C + i_c) * KS * plane
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for t in range(KS):
        m_t = m & (o_x - (t - KS // 2) >= 0) & (o_x - (t - KS // 2) < W)
        b_g = _before_activation(p_grad, p_out, o - (t - KS // 2), m_t, slope)
        b_sum += b_g * tl.load(p_horizontal + t * plane + o - (t - KS // 2), mask=m_t, other=0.0).to(tl.float32)
    # What was read from beyond a border belongs to the pixel there: from column j by the taps that reach past it.
    for j in tl.static_range(KS // 2):
        m_left, o_left = m & (o_x == 0) & (o_x + j < W), o + j
        m_right, o_right = m & (o_x == W - 1) & (o_x - j >= 0), o - j
        b_left = _before_activation(p_grad, p_out, o_left, m_left, slope)
        b_right = _before_activation(p_grad, p_out, o_right, m_right, slope)
        for t in tl.static_range(KS // 2 - j):
            b_sum += b_left * tl.load(p_horizontal + t * plane + o_left, mask=m_left, other=0.0).to(tl.float32)
            p_mirrored = p_horizontal + (KS - 1 - t) * plane
            b_sum += b_right * tl.load(p_mirrored + o_right, mask=m_right, other=0.0).to(tl.float32)
    tl.store(p_middle + o_plane + o, b_sum, mask=m)


@triton.jit(do_not_specialize=["n"])
def columns_backward_kernel(
    p_grad, p_out, p_u, p_middle, p_vertical, p_grad_u, p_grad_vertical, p_grad_horizontal, p_grad_bias,
    C, H, W, out_frame, u_frame, taps_frame, bias_frame, n, slope,
    KS: tl.constexpr, TAPS: tl.constexpr, OWN: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the gradients in the step's input and, with TAPS, in its filters. ``grad_u`` is (B, C, H, W).

    Without OWN both passes read the vertical taps, and nothing is written for the horizontal ones.
    """
    i_b, i_c, plane, o, o_y, o_x, m = _place(C, H, W, BLOCK)
    o_plane = (i_b * C + i_c) * plane
    o_taps = i_b * taps_frame + (2 * n * C + i_c) * KS * plane
    p_middle += o_plane
    p_vertical += o_taps
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for t in range(KS):
        o_row = o_y - (t - KS // 2)
        m_t = m & (o_row >= 0) & (o_row < H)
        o_t = o_row * W + o_x
        b_middle = tl.load(p_middle + o_t, mask=m_t, other=0.0)
        b_sum += b_middle * tl.load(p_vertical + t * plane + o_t, mask=m_t, other=0.0).to(tl.float32)
    for j in tl.static_range(KS // 2):
        m_top, o_top = m & (o_y == 0) & (o_y + j < H), o + j * W
        m_bottom, o_bottom = m & (o_y == H - 1) & (o_y - j >= 0), o - j * W
        b_top = tl.load(p_middle + o_top, mask=m_top, other=0.0)
        b_bottom = tl.load(p_middle + o_bottom, mask=m_bottom, other=0.0)
        for t in tl.static_range(KS // 2 - j):
            b_sum += b_top * tl.load(p_vertical + t * plane + o_top, mask=m_top, other=0.0).to(tl.float32)
            p_mirrored = p_vertical + (KS - 1 - t) * plane
            b_sum += b_bottom * tl.load(p_mirrored + o_bottom, mask=m_bottom, other=0.0).to(tl.float32)
    tl.store(p_grad_u + o_plane + o, b_sum.to(p_grad_u.dtype.element_ty), mask=m)
    if TAPS:
        p_u += i_b * u_frame + i_c * plane
        b_g = _before_activation(p_grad + o_plane, p_out + i_b * out_frame + i_c * plane, o, m, slope)
        if BIAS:
            p_grad_bias += i_b * bias_frame + (n * C + i_c) * plane
            tl.store(p_grad_bias + o, b_g.to(p_grad_bias.dtype.element_ty), mask=m)
        b_middle = tl.load(p_middle + o, mask=m, other=0.0)
        for t in range(KS):
            b_u = tl.load(p_u + _clamped(o_y + t - KS // 2, H) * W + o_x, mask=m, other=0.0).to(tl.float32)
            o_source = _clamped(o_x + t - KS // 2, W)
            b_vertical = b_middle * b_u
            b_horizontal = b_g * _columns_filtered(p_u, p_vertical, plane, o_y, o_source, m, H, W, KS)
            o_tap = o_taps + t * plane + o
            if OWN:
                tl.store(p_grad_horizontal + o_tap, b_horizontal.to(p_grad_horizontal.dtype.element_ty), mask=m)
            else:
                b_vertical += b_horizontal
            tl.store(p_grad_vertical + o_tap, b_vertical.to(p_grad_vertical.dtype.element_ty), mask=m)
