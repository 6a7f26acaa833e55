"""Where a program of a Triton kernel works, for kernels of one pixel per lane."""
# pyrefly: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(blocks, H, W, BLOCK: tl.constexpr):
    """Plane of this program, H * W, and offset, row, column and mask of its pixels.

    The grid has one axis, because the others end at 65535.
    """
    i = tl.program_id(0)
    o = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
    one = tl.full((), 1, tl.int64)  # where H and W are 1 they are compile-time numbers, which have no dtype
    return (i // blocks).to(tl.int64), one * H * W, o, o // W, o % W, o < H * W
