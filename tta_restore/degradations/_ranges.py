"""Ranges of parameters: their check, their JSON form, and draws from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tta_restore._core import checks

Range = float | tuple[float, float]
"""A fixed value, or the lowest and the highest one."""


def expect_range(function: str, name: str, value: object, *, minimum: float, maximum: float = math.inf) -> None:
    """Check a fixed value or a pair (low, high) against the limits of the parameter.

    Raises:
        TypeError: the value is neither a number nor a pair of numbers.
        ValueError: a number is out of the limits, or low is above high.
    """
    if not isinstance(value, (tuple, list)):
        checks.expect_number(function, name, value, minimum=minimum, maximum=maximum)
        return
    if len(value) != 2:
        raise ValueError(f"{function}: expected {name} to be a number or a pair (low, high), got {value!r}")
    for end in value:
        checks.expect_number(function, name, end, minimum=minimum, maximum=maximum)
    if value[0] > value[1]:
        raise ValueError(f"{function}: expected {name} (low, high) with low <= high, got {value!r}")


def ends(value: Range) -> tuple[float, float]:
    """Return the lowest and the highest value of a range."""
    return (float(value[0]), float(value[1])) if isinstance(value, (tuple, list)) else (float(value), float(value))


def rand(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw uniform numbers in [0, 1) on the generator's device and return them on the CPU."""
    return torch.rand(*shape, generator=generator, device=generator.device, dtype=torch.float32).cpu()


def on_cpu(generator: torch.Generator) -> torch.Generator:
    """Return a generator on the CPU: the given one, or one that is seeded by it."""
    if generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(int(rand(generator, 1) * 2**31))


def uniform(value: Range, generator: torch.Generator, n: int) -> Tensor:
    """Draw (N,) values, each as likely as any other one in the range."""
    low, high = ends(value)
    return low + (high - low) * rand(generator, n)


def log_uniform(value: Range, generator: torch.Generator, n: int, *, floor: float) -> Tensor:
    """Draw (N,) values of which every ratio is equally likely; below ``floor`` the range counts as linear."""
    low, high = ends(value)
    first, last = math.log(low + floor), math.log(high + floor)
    return (torch.exp(first + (last - first) * rand(generator, n)) - floor).clamp(low, high)


def spaced(value: Range, generator: torch.Generator, n: int, *, floor: float, log: bool) -> Tensor:
    """Draw (N,) values log-uniformly above the floor, or uniformly."""
    return log_uniform(value, generator, n, floor=floor) if log else uniform(value, generator, n)


def choice(weights: Tensor, generator: torch.Generator, n: int) -> Tensor:
    """Draw (N,) indices in proportion to their weights (M,)."""
    edges = weights.double().cumsum(0) / weights.double().sum()
    return torch.searchsorted(edges, rand(generator, n).double(), right=True).clamp(max=len(weights) - 1)
