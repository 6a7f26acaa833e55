"""Saturation and rounding of stored values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.degradations.degradation import STEP, Degradation, Parameters, at_least_float32, quantity
from tta_restore.degradations.registry import register_degradation

__all__ = ["Clip", "ClipParameters", "Quantize", "QuantizeParameters"]


@dataclass(frozen=True, eq=False)
class ClipParameters(Parameters):
    """The value that saturates, per image."""

    white: Tensor = quantity("value that saturates and is stored as 1", minimum=1e-3, maximum=1)


@register_degradation("clip")
@dataclass(frozen=True)
class Clip(Degradation):
    """Saturation: values are limited to [0, white] and stored with white as 1.

    Args:
        white: value that saturates, in (0, 1]; below 1 the image is overexposed.
    """

    white: float = 1.0

    Parameters = ClipParameters

    def __post_init__(self) -> None:
        checks.expect_number("Clip", "white", self.white, minimum=1e-3, maximum=1)

    def sample(self, generator: torch.Generator, n: int) -> ClipParameters:
        """Return ``n`` times the setting; nothing is drawn."""
        return ClipParameters(torch.full((n,), float(self.white)))

    def apply(self, sharp: Tensor, parameters: ClipParameters, generator: torch.Generator | None = None) -> Tensor:
        """Limit the values; see :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters)
        white = parameters.white.to(sharp)[:, None, None, None]
        return (sharp / white).clamp(0, 1)

    def distance(self, a: ClipParameters, b: ClipParameters) -> Tensor:
        """Return the distance of the exposures, (N,)."""
        return (a.white / b.white).log().abs() / STEP


@dataclass(frozen=True, eq=False)
class QuantizeParameters(Parameters):
    """The number of bits, per image."""

    bits: Tensor = quantity("bits per channel", minimum=1, maximum=16)


@register_degradation("quantize")
@dataclass(frozen=True)
class Quantize(Degradation):
    """Rounding to whole steps of ``1 / (2^bits - 1)``; the gradient is zero.

    Args:
        bits: bits per channel, 1 to 16.
    """

    bits: int = 8

    Parameters = QuantizeParameters

    def __post_init__(self) -> None:
        checks.expect_int("Quantize", "bits", self.bits, minimum=1)
        checks.expect_number("Quantize", "bits", self.bits, maximum=16)

    def sample(self, generator: torch.Generator, n: int) -> QuantizeParameters:
        """Return ``n`` times the setting; nothing is drawn."""
        return QuantizeParameters(torch.full((n,), self.bits))

    def apply(self, sharp: Tensor, parameters: QuantizeParameters, generator: torch.Generator | None = None) -> Tensor:
        """Round the values; see :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters)
        x = at_least_float32(sharp)
        steps = (2.0 ** parameters.bits.to(x.device, torch.float32) - 1).to(x)[:, None, None, None]
        return ((x * steps).round() / steps).to(sharp.dtype)

    def distance(self, a: QuantizeParameters, b: QuantizeParameters) -> Tensor:
        """Return the distance of the step sizes over one that is not visible (1/255), (N,)."""
        first, second = (1 / (2.0 ** part.bits.float() - 1) for part in (a, b))
        return ((first + 1 / 255) / (second + 1 / 255)).log().abs() / STEP
