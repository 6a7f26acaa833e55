"""A trivial Triton kernel, launched once per device to find out whether kernels compile and run there."""
# pyrefly: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _add_one_kernel(p, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202, N803
    o = tl.arange(0, BLOCK)
    tl.store(p + o, tl.load(p + o) + 1.0)


def launch(device: torch.device) -> None:
    """Compile and run the kernel.

    Raises:
        RuntimeError: the kernel ran and its result is wrong.
    """
    with torch.cuda.device(device):
        values = torch.zeros(32, device=device, dtype=torch.float32)
        _add_one_kernel[(1,)](values, BLOCK=32)
        if not bool((values == 1).all()):
            raise RuntimeError("a trivial kernel returned a wrong result")
