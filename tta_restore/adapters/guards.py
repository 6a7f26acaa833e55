"""Limits on losses, parameter drift and divergence from the source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from tta_restore._core import checks

__all__ = ["Guards"]

_HISTORY = 32  # losses whose median is the usual one
_MIN_HISTORY = 8  # losses before a ratio to their median means anything


@dataclass(frozen=True)
class Guards:
    """Limits, each None to switch it off. A loss or gradient that is not finite is never followed, whatever is set.

    Attributes:
        max_loss_ratio: a step is skipped when its loss exceeds this many times the median of the latest 32.
        max_drift: radius of the trust region: the adapted tensors are projected onto it when, as one vector, their
            distance from the source exceeds this fraction of the source's norm.
        min_source_psnr: PSNR in dB between the output and the source's. Below it the frame's adaptation is undone and
            the source's output returned; after two such frames in a row the adapter resets. Costs one forward pass per
            frame.
    """

    max_loss_ratio: float | None = 10.0
    max_drift: float | None = 0.5
    min_source_psnr: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_loss_ratio", "max_drift", "min_source_psnr"):
            checks.expect_number("Guards", name, getattr(self, name), above=0, optional=True)

    def check_loss(self, loss: float, history: Sequence[float]) -> str | None:
        """Return why a step with this loss has to be skipped, or None."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if self.max_loss_ratio is not None and len(history) >= _MIN_HISTORY:
            usual = median(history)
            if loss > self.max_loss_ratio * usual:
                return f"loss {loss:.3g} is more than {self.max_loss_ratio:g} times the usual {usual:.3g}"
        return None

    def record_loss(self, loss: float, history: list[float]) -> None:
        """Append a loss to the history, skipped ones included: a level that lasts becomes the usual one."""
        if math.isfinite(loss):
            history.append(loss)
            del history[:-_HISTORY]

    def check_output(self, image: Tensor, source: Tensor) -> str | None:
        """Return why an output must not be returned, or None."""
        if self.min_source_psnr is None:
            return None
        error = (image.float() - source.float()).square().mean().item()
        decibels = -10 * math.log10(max(error, 1e-20)) if math.isfinite(error) else -math.inf
        if decibels >= self.min_source_psnr:
            return None
        return f"output is {decibels:.1f} dB from the source's, the limit is {self.min_source_psnr:g} dB"
