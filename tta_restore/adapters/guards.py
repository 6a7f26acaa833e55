"""What holds an adapter back when a frame, a loss or a gradient goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from tta_restore._core import checks

_REMEMBERED = 32
_NEEDED = 8


@dataclass(frozen=True)
class Guards:
    """Limits, each None to switch it off. A loss or gradient that is not finite is never followed, whatever is set.

    Attributes:
        spike: a step is skipped when its loss exceeds this many times the median of the latest 32.
        drift: adapted tensors are pulled back when, as one vector, they are further from the source than this share
            of the source's norm.
        divergence: PSNR in dB between the output and the source's, below which the frame's adaptation is undone and
            the source's output given; after two such frames in a row the adapter starts afresh. Costs one more
            forward pass per frame.
    """

    spike: float | None = 10.0
    drift: float | None = 0.5
    divergence: float | None = None

    def __post_init__(self) -> None:
        for name in ("spike", "drift", "divergence"):
            checks.expect_number("Guards", name, getattr(self, name), above=0, optional=True)

    def refuses(self, loss: float, history: Sequence[float]) -> str | None:
        """Why a step with this loss is to be skipped, or None."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if self.spike is not None and len(history) >= _NEEDED and loss > self.spike * median(history):
            return f"loss {loss:.3g} is more than {self.spike:g} times the usual {median(history):.3g}"
        return None

    def remember(self, loss: float, history: list[float]) -> None:
        """Put a loss into the history; skipped ones too, so that a level that lasts becomes the usual one."""
        if math.isfinite(loss):
            history.append(loss)
            del history[:-_REMEMBERED]

    def strays(self, image: Tensor, source: Tensor) -> str | None:
        """Why an output is not to be given, or None."""
        if self.divergence is None:
            return None
        error = (image.float() - source.float()).square().mean().item()
        decibels = -10 * math.log10(max(error, 1e-20)) if math.isfinite(error) else -math.inf
        if decibels >= self.divergence:
            return None
        return f"output is {decibels:.1f} dB from the source's, the limit is {self.divergence:g} dB"
