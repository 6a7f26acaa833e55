"""Comparison of a result with its expectation: element by element, and as vectors.

A small error everywhere in one direction, or a gradient that points slightly elsewhere, passes an elementwise tolerance
and still ruins an optimization. So four things must hold, and the message says which one did not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def assert_vmap_agrees(
    call: Callable[..., Tensor], in_dims: tuple[int | None, ...], made: list[tuple[Tensor, ...]]
) -> None:
    """Compare vmap of a function and of its gradient with calls one after the other; None takes the first tensor."""
    stacked = [torch.stack(tensors, d or 0) for tensors, d in zip(zip(*made, strict=True), in_dims, strict=True)]
    stacked = [t if d is not None else t[0] for t, d in zip(stacked, in_dims, strict=True)]

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda *t: call(*t).square().sum(), argnums=tuple(range(len(tensors))))(*tensors)

    rows = [
        [t if d is None else t.select(d, i) for t, d in zip(stacked, in_dims, strict=True)] for i in range(len(made))
    ]
    assert_agrees(torch.vmap(call, in_dims)(*stacked), torch.stack([call(*row) for row in rows]))
    expected = zip(*(gradient(*row) for row in rows), strict=True)
    for got, want in zip(torch.vmap(gradient, in_dims)(*stacked), expected, strict=True):
        assert_agrees(got, torch.stack(want))


def assert_same_bits_for_threads(call: Callable[[], Sequence[Tensor]], counts: tuple[int, ...] = (1, 2)) -> None:
    """Check that a function returns the same tensors, to the last bit, for each number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def _one_minus_cosine(got: Tensor, want: Tensor) -> float:
    """Half the squared distance of the unit vectors: exact where 1 - dot product would cancel."""
    if got.norm() == 0 or want.norm() == 0:
        return 0.0  # directions of zero vectors are covered by the other measures
    return 0.5 * (got / got.norm() - want / want.norm()).square().sum().item()
