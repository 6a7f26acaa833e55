"""Definition of the self-shift sums in plain torch, and reference fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def _pairs(x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the two sides of each overlap of ``x`` with itself moved by one pixel."""
    return (
        (x[..., :-1, 1:], x[..., 1:, :-1]),  # anti-diagonal
        (x[..., :-1, :], x[..., 1:, :]),  # vertical
        (x[..., :-1, :-1], x[..., 1:, 1:]),  # main diagonal
        (x[..., :-1], x[..., 1:]),  # horizontal
    )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def self_shift_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean product of the differences per overlap, in at least float32: (B, C, H, W) -> (B, 4)."""
    means = [
        ((p - q) * (r - s)).mean((1, 2, 3)) for (p, q), (r, s) in zip(_pairs(_wide(a)), _pairs(_wide(b)), strict=True)
    ]
    return torch.stack(means, 1)


def self_shift_laplacian(x: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of ``(weights * self_shift_products(x, b)).sum()`` with respect to b; weights (B, 4)."""
    out = torch.zeros_like(_wide(x), memory_format=torch.contiguous_format)
    for j, ((p, q), (to_p, to_q)) in enumerate(zip(_pairs(_wide(x)), _pairs(out), strict=True)):
        difference = (p - q) * (weights[:, j, None, None, None] / p.shape[1:].numel())
        to_p += difference
        to_q -= difference
    return out.to(x.dtype)
