"""Inputs of the test bases: calls, memory layouts, gradients, and a record of the registered ops that ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import dispatch


@dataclass
class Sample:
    """Arguments of one call: tensors by position, options by name."""

    tensors: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)
    unbatched: tuple[int, ...] = ()  # positions of tensors without a batch axis
    frozen: tuple[int, ...] = ()  # positions of tensors that take no gradient

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """Apply ``function`` to every tensor."""
        return Sample(tuple(map(function, self.tensors)), self.options, self.unbatched, self.frozen)

    def to(self, dtype: torch.dtype) -> Sample:
        """Convert every tensor that can take a gradient."""
        return self.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def leaves(self) -> tuple[Tensor, ...]:
        """Detached copies, each requiring grad unless frozen or not floating."""
        return tuple(
            tensor.detach().clone().requires_grad_(tensor.is_floating_point() and i not in self.frozen)
            for i, tensor in enumerate(self.tensors)
        )


@dataclass
class Bad:
    """A call that must be refused, with a message that matches."""

    tensors: tuple[Any, ...]
    error: type[Exception]
    match: str
    options: dict[str, Any] = field(default_factory=dict)


def random(*shape: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform float64 numbers."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low


def gradients(
    function: Callable[..., Tensor], sample: Sample, weights: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return the result and the gradients of its weighted sum in every leaf that takes one."""
    leaves = sample.leaves()
    out = function(*leaves, **sample.options)
    taking = [leaf for leaf in leaves if leaf.requires_grad]
    weights = torch.ones_like(out) if weights is None else weights.to(out)
    return out, list(torch.autograd.grad(out, taking, weights))


def strided(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor), -1)[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def offset(tensor: Tensor) -> Tensor:
    buffer = tensor.new_zeros(tensor.numel() + 3)
    buffer[3:] = tensor.flatten()
    return buffer[3:].view(tensor.shape)


@contextmanager
def recorded_operators() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Collect name and arguments of every registered op of the package that runs inside."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    original = dispatch.Operator.__call__

    def record(self: dispatch.Operator, *args: Any) -> Any:
        calls.append((self.name, tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)))
        return original(self, *args)

    dispatch.Operator.__call__ = record
    try:
        yield calls
    finally:
        dispatch.Operator.__call__ = original


@contextmanager
def default_float64() -> Iterator[None]:
    """Let the default dtype be float64, as programs of the sciences do."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def default_meta() -> torch.device:
    """Let the default device be one on which nothing can be computed."""
    return torch.device("meta")
