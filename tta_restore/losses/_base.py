"""Common parts of the losses: reduction, precision, checks, and the module form of a function."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from tta_restore._core import checks

Reduction = Literal["mean", "sum", "none"]

REDUCTIONS = ("mean", "sum", "none")
SCALAR_REDUCTIONS = ("mean", "sum")  # for losses that have no value per pixel


def expect_reduction(function: str, reduction: str, choices: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise ValueError for an unknown reduction."""
    checks.expect_choice(function, "reduction", reduction, choices)


def reduce(values: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean or the sum of ``values``, or ``values`` themselves."""
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def widen(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others unchanged.

    Sums over an image lose all digits in half precision; a float32 tensor also promotes the other operand.
    """
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def expect_pair(function: str, shape: str | None = "(B, C, H, W)", **pair: Tensor) -> None:
    """Check two floating-point tensors of one shape, the second against the first.

    ``shape`` gives the axes as the docstring does; None allows any number of axes.
    """
    checks.expect_floating(function, **pair)
    (name, tensor), (other_name, other) = pair.items()
    if shape is not None:
        checks.expect_shape(function, name, tensor, shape)
    checks.expect_shape(function, other_name, other, f"{name}.shape", tuple(tensor.shape))


class LossModule(nn.Module):
    """Base of the module forms: stores the keyword arguments of a loss function as attributes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """Return the arguments that ``repr`` shows."""
        shown = {name: value for name, value in self.settings.items() if not callable(value)}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
