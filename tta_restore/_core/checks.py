"""Argument checks with the caller's argument names, run before any kernel.

Every check takes the name of the public function first, so that its message names the function that the user called.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def expect_keywords(function: str, called: Callable[..., Any], keywords: Iterable[str]) -> None:
    """Raise TypeError for the first keyword that ``called`` does not accept, and list similar names."""
    parameters = inspect.signature(called).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    expect_known(function, keywords, [parameter.name for parameter in parameters])


def expect_known(function: str, keywords: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for the first unknown keyword, and list similar names."""
    for keyword in keywords:
        if keyword not in known:
            near = get_close_matches(keyword, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
            raise TypeError(f"{function} has no {keyword}; {hint}")


def expect_tensor(function: str, **tensors: object) -> None:
    """Raise TypeError for the first argument that is not a tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{function}: expected {name} to be a torch.Tensor, got {type(value).__name__}")


def expect_values(function: str, **tensors: Tensor) -> None:
    """Raise ValueError for the first tensor whose values cannot be read, such as a sparse one."""
    for name, value in tensors.items():
        if value.is_meta or value.layout != torch.strided:
            kind = "device meta" if value.is_meta else str(value.layout)
            raise ValueError(f"{function}: expected {name} to be a dense tensor with values, got {kind}")


def expect_shape(
    function: str, name: str, tensor: Tensor, letters: str, sizes: Sequence[int | None] | None = None
) -> tuple[int, ...]:
    """Check the number of axes and, if given, their sizes, and return the shape.

    Args:
        function: name of the public function.
        name: name of the argument.
        tensor: value of the argument.
        letters: shape as the docstring writes it, ``"(B, C, H, W)"``.
        sizes: one number per axis, or None for an axis of any size.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        ValueError: the shape differs.
    """
    expect_tensor(function, **{name: tensor})
    shape = tuple(tensor.shape)
    if sizes is None:
        if len(shape) != letters.count(",") + 1:
            raise ValueError(f"{function}: expected {name} of shape {letters}, got {shape}")
        return shape
    if len(shape) != len(sizes) or any(
        want is not None and want != got for want, got in zip(sizes, shape, strict=True)
    ):
        values = ", ".join("any" if want is None else str(want) for want in sizes)
        raise ValueError(f"{function}: expected {name} of shape {letters} = ({values}), got {shape}")
    return shape


def expect_floating(function: str, **tensors: Tensor) -> None:
    """Raise TypeError for the first tensor without a floating-point dtype."""
    expect_tensor(function, **tensors)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            hint = " (frames are floats in [0, 1]: divide by 255 first)" if tensor.dtype == torch.uint8 else ""
            raise TypeError(f"{function}: expected {name} with a floating dtype, got {tensor.dtype}{hint}")


def expect_same_device(function: str, **tensors: Tensor) -> None:
    """Raise ValueError if the tensors are on different devices."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"{function}: expected all tensors on one device, got {found}")


def expect_same_dtype(function: str, **tensors: Tensor) -> None:
    """Raise TypeError if the tensors have different dtypes."""
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(f"{function}: expected all tensors with one dtype, got {found}")


def expect_int(function: str, name: str, value: object, *, minimum: int, odd: bool = False) -> None:
    """Raise TypeError for a value that is not an integer, ValueError below ``minimum`` or, with ``odd``, if even."""
    kind = "an odd integer" if odd else "an integer"
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{function}: expected {name} to be {kind} >= {minimum}, got {type(value).__name__} {value!r}")
    if value < minimum or (odd and value % 2 == 0):
        raise ValueError(f"{function}: expected {name} to be {kind} >= {minimum}, got {value}")


def expect_number(
    function: str,
    name: str,
    value: object,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    """Raise TypeError for a value that is not a number, ValueError outside its range and for NaN.

    ``minimum`` and ``maximum`` belong to the range, ``above`` and ``below`` do not. ``optional`` allows None.
    """
    if optional and value is None:
        return
    tail = " or None" if optional else ""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{function}: expected {name} to be a number{tail}, got {type(value).__name__} {value!r}")
    number: Any = value
    within = number >= minimum and number <= maximum
    if not within or (above is not None and not number > above) or (below is not None and not number < below):
        low, opening, more = (minimum, "[", ">=") if above is None else (above, "(", ">")
        high, closing, less = (maximum, "]", "<=") if below is None else (below, ")", "<")
        if math.isinf(low) or math.isinf(high):
            sides = ((more, low), (less, high))
            kind = " ".join(["a number", *(f"{sign} {limit}" for sign, limit in sides if not math.isinf(limit))])
        else:
            kind = f"a number in {opening}{low}, {high}{closing}"
        raise ValueError(f"{function}: expected {name} to be {kind}{tail}, got {value}")


def expect_choice(function: str, name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError if ``value`` is not one of ``choices``."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{function}: expected {name} to be one of {listed}, got {value!r}")
