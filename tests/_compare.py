"""Comparison of a result with its expectation: element by element, and as vectors.

A small error everywhere in one direction, or a gradient that points slightly elsewhere, passes an elementwise tolerance
and still ruins an optimization. So four things must hold, and the message says which one did not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """All but ``cosine`` are relative: to the largest value, to the norm, to the mean magnitude."""

    element: float
    norm: float
    cosine: float
    bias: float


# One table, per dtype of the result, for expectations in float64; never loosened by the environment.
TOLERANCES = {
    torch.float64: Tolerance(element=1e-11, norm=1e-12, cosine=1e-13, bias=1e-12),
    torch.float32: Tolerance(element=1e-5, norm=2e-6, cosine=1e-9, bias=1e-6),
    torch.float16: Tolerance(element=4e-3, norm=1e-3, cosine=1e-5, bias=5e-4),
    torch.bfloat16: Tolerance(element=3e-2, norm=8e-3, cosine=1e-4, bias=4e-3),
}


def assert_agrees(
    actual: Tensor, expected: Tensor, *, what: str = "result", tolerance: Tolerance | None = None
) -> None:
    """Fail unless ``actual`` equals ``expected`` within the tolerance of its dtype."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    limit = tolerance or TOLERANCES[actual.dtype]
    got, want = actual.detach().double().cpu().flatten(), expected.detach().double().cpu().flatten()
    if not got.numel():
        return
    assert torch.equal(got.isnan(), want.isnan()), f"{what}: NaN in other places than expected"
    assert torch.equal(got.isinf(), want.isinf()), f"{what}: infinity in other places than expected"
    finite = want.isfinite()
    assert torch.equal(got[want.isinf()], want[want.isinf()]), f"{what}: infinities of another sign"
    got, want = got[finite], want[finite]
    if not got.numel():
        return
    # An expectation of zeros asks for zeros up to the dtype's own noise at 1.
    scale = want.abs().max().item() or 1.0
    error = got - want
    for name, value, bound in (
        ("largest element error", error.abs().max().item() / scale, limit.element),
        ("relative L2 error", error.norm().item() / (want.norm().item() or scale), limit.norm),
        ("1 - cosine", _one_minus_cosine(got, want), limit.cosine),
        ("signed bias", abs(error.mean().item()) / (want.abs().mean().item() or scale), limit.bias),
    ):
        assert value <= bound, f"{what}: {name} {value:.3g} > {bound:.3g} ({actual.dtype}, {tuple(actual.shape)})"


def _one_minus_cosine(got: Tensor, want: Tensor) -> float:
    """Half the squared distance of the unit vectors: exact where 1 - dot product would cancel."""
    if got.norm() == 0 or want.norm() == 0:
        return 0.0  # directions of zero vectors are covered by the other measures
    return 0.5 * (got / got.norm() - want / want.norm()).square().sum().item()
