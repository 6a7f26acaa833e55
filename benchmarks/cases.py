"""What is measured: ops, shapes and dtypes, the contenders for each, and the bytes and operations none can avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import tta_restore
from tta_restore import ops

from . import original


@dataclass(frozen=True)
class Case:
    """One op at one size. Tensors are (B, C, H, W); ``features`` is D, 0 where filters are given."""

    op: str
    shape: tuple[int, int, int, int]
    num_steps: int
    kernel_size: int
    dtype: torch.dtype = torch.float32
    features: int = 0

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.op} {size} N{self.num_steps} K{self.kernel_size} {str(self.dtype).removeprefix('torch.')}"

    @property
    def filter_channels(self) -> int:
        per_step = self.shape[1] * (2 * self.kernel_size + (self.op != "sac"))
        return self.num_steps * per_step

    def tensors(self, device: str) -> tuple[Tensor, ...]:
        """Frames and filters near the identity, so that nothing overflows, dies out or becomes subnormal."""
        b, c, h, w = self.shape
        generator = torch.Generator().manual_seed(0)

        def rand(*size: int) -> Tensor:
            return torch.rand(size, generator=generator)

        centre = torch.zeros(self.kernel_size)
        centre[self.kernel_size // 2] = 1
        identity = torch.zeros(self.filter_channels)
        taps = self.num_steps * 2 * c * self.kernel_size
        identity[:taps] = centre.repeat(taps // self.kernel_size)
        x = rand(b, c, h, w)
        if self.features:
            d = self.features
            made = (x, rand(b, d, h, w), (rand(self.filter_channels, d) - 0.5) * 0.1 / d, identity)
        else:
            filters = (rand(b, self.filter_channels, h, w).sub_(0.5)).mul_(0.05).add_(identity[:, None, None])
            made = (x, filters)
        made = tuple(t.to(device, self.dtype) for t in made)
        return (made[0], *made[1].chunk(2, 1)) if self.op == "sac" else made

    def least_bytes(self, direction: str) -> int:
        """Bytes that any implementation must move: for the backward pass, inputs again, and gradients."""
        b, c, h, w = self.shape
        size = torch.finfo(self.dtype).bits // 8
        plane = b * c * h * w * size
        filters = 0 if self.features else b * self.filter_channels * h * w * size
        weights = b * self.features * h * w * size + self.filter_channels * (self.features + 1) * size
        inputs = filters + (weights if self.features else 0)
        forward = inputs + 2 * plane
        if direction == "forward":
            return forward
        return forward + inputs + inputs + 3 * plane

    def operations(self, direction: str) -> int:
        """Multiplications and additions: the filters' use, and the products of their predictor."""
        b, c, h, w = self.shape
        use = b * c * h * w * self.num_steps * 4 * self.kernel_size
        predictor = 2 * b * h * w * self.filter_channels * self.features
        return use + predictor if direction == "forward" else 3 * (use + predictor)


FRAME, PATCH, TINY = (1, 128, 70, 105), (2, 128, 32, 32), (1, 2, 4, 4)
GPU_FRAME = (1, 128, 140, 210)


def cases(device: str) -> list[Case]:
    if device == "cuda":
        steps = [
            (op, GPU_FRAME, 17, 3, dtype, d)
            for op, d in (("iac", 0), ("iac_from_features", 128))
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ]
        return [
            *(Case(*step) for step in steps),
            Case("iac", GPU_FRAME, 17, 5, torch.bfloat16),
            Case("iac", PATCH, 17, 3, torch.bfloat16),
            Case("sac", GPU_FRAME, 1, 3),
        ]
    return [
        Case("iac", FRAME, 17, 3),
        Case("iac", FRAME, 17, 3, torch.bfloat16),
        Case("iac", FRAME, 17, 5),
        Case("iac", PATCH, 17, 3),
        Case("sac", FRAME, 1, 3),
        Case("iac_from_features", FRAME, 17, 3, torch.float32, 128),
        Case("iac_from_features", PATCH, 17, 3, torch.float32, 128),
    ]


def _with_backend(backend: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*tensors: Tensor) -> Tensor:
        with tta_restore.backend(backend):
            return function(*tensors)

    return run


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


def contenders(case: Case, device: str) -> dict[str, Callable[..., Tensor]]:
    """Name to function of the case's tensors. ``ours`` is the kernel of this device."""
    options: dict[str, Any] = {"num_steps": case.num_steps, "kernel_size": case.kernel_size}
    kernel = "triton" if device == "cuda" else "cpu"
    if case.op == "sac":
        found = {"ours": _with_backend(kernel, ops.sac), "reference": _with_backend("reference", ops.sac)}
        return {**found, "original": original.sac, "compiled": _compiled(original.sac)}
    old = partial(original.iac, **options)
    if case.op == "iac":
        ours = partial(ops.iac, **options)
        found = {"ours": _with_backend(kernel, ours), "reference": _with_backend("reference", ours)}
        return {**found, "original": old, "compiled": _compiled(old)}
    fused = partial(ops.iac_from_features, **options)

    def composed(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.iac(x, original.predict(features, weight, bias), **options)

    def first(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return old(x, original.predict(features, weight, bias))

    return {"ours": _with_backend(kernel, fused), "composed": _with_backend(kernel, composed), "original": first}


def runner(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], direction: str) -> Callable[[], Any]:
    """Return a call without arguments that runs forward, or forward and backward, and keeps nothing."""
    if direction == "forward":

        def forward() -> None:
            with torch.no_grad():
                function(*tensors)

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    weights = torch.ones_like(tensors[0])

    def both() -> None:
        torch.autograd.grad(function(*leaves), leaves, weights)

    return both
